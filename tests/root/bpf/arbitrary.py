"""TCP packets at random, by a seed: what is likely to go wrong is likely here, and nothing need be right."""

import random
import struct

from tests.unit.wire.packets import ACK, FIN, PSH, RST, SYN

EDGES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)
_HEADER = struct.Struct(">BBHHHBBH4s4s")
_TCP = struct.Struct(">HHIIHHHH")
_OPTION_SIZES = {2: 4, 3: 3, 4: 2, 8: 10}


def number(chance: random.Random) -> int:
    """32 bits, often where they wrap around."""
    return chance.choice(EDGES) if chance.random() < 0.3 else chance.getrandbits(32)


def option_area(chance: random.Random) -> bytes:
    """0 to 40 bytes, a multiple of four: usual layouts, options in any order and place, malformed ones."""
    if chance.random() < 0.2:
        return b"\x01\x01" + _timestamps(chance) + (sack(chance) if chance.random() < 0.3 else b"")
    area = b""
    wanted = chance.randrange(0, 41, 4)
    while len(area) < wanted:
        option = _option(chance)
        area += option if len(area) + len(option) <= wanted or chance.random() < 0.05 else b"\x01"
    area = area[:wanted]
    if area and chance.random() < 0.1:
        at = chance.randrange(len(area))
        area = area[:at] + bytes([chance.randrange(256)]) + area[at + 1 :]
    return area


def packet(chance: random.Random, *, flags: int | None = None, payload: int | None = None) -> bytes:
    """An IPv4 packet without IP options and fragments, whose checksum fields hold anything."""
    area = option_area(chance)
    data = chance.randbytes(chance.choice((0, 0, 1, 2, 3, 100)) if payload is None else payload)
    if flags is None:
        flags = chance.choice((ACK, ACK | PSH, ACK | FIN, SYN, RST, RST | ACK, chance.getrandbits(8)))
    offset_flags = (5 + len(area) // 4) << 12 | chance.choice((0, 0, 0x0F00)) | flags
    segment = _TCP.pack(
        chance.getrandbits(16),
        chance.getrandbits(16),
        number(chance),
        number(chance),
        offset_flags,
        chance.choice((0, 1, 0xFFFF, chance.getrandbits(16))),
        chance.choice((0, 0xFFFF, chance.getrandbits(16))),
        chance.choice((0, chance.getrandbits(16))),
    )
    total = 20 + len(segment) + len(area) + len(data)
    header = _HEADER.pack(
        0x45,
        chance.getrandbits(8),
        total,
        chance.getrandbits(16),
        chance.choice((0, 0x4000)),
        chance.randrange(2, 256),
        6,
        chance.choice((0, 0xFFFF, chance.getrandbits(16))),
        chance.randbytes(4),
        chance.randbytes(4),
    )
    return header + segment + area + data


def sack(chance: random.Random) -> bytes:
    blocks = chance.randrange(1, 4)
    edges = b"".join(number(chance).to_bytes(4, "big") for _ in range(2 * blocks))
    return b"\x01\x01" + bytes([5, 2 + len(edges)]) + edges


def _timestamps(chance: random.Random) -> bytes:
    return b"\x08\x0a" + number(chance).to_bytes(4, "big") + number(chance).to_bytes(4, "big")


def _option(chance: random.Random) -> bytes:
    match chance.randrange(10):
        case 0 | 1:
            return b"\x01"
        case 2:
            return chance.choice((b"\x00", b"\x01\x01"))
        case 3 | 4:
            return _timestamps(chance)
        case 5:
            return sack(chance)[chance.randrange(3) :]
        case 6 | 7 | 8:
            kind = chance.choice((2, 3, 4, 8))
            size = _OPTION_SIZES[kind] if chance.random() < 0.8 else chance.randrange(2, 12)
            return bytes([kind, size]) + chance.randbytes(size - 2)
        case _:
            return bytes([chance.randrange(256), chance.choice((0, 1, 2, 3, 6, 16, 41))]) + chance.randbytes(
                4
            )
