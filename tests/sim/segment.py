"""IPv4 and TCP as the model endpoints read and write them.

Independent of the product's `common.wire`, of which only the type `Packet` is used: what the cores get wrong
must not be got wrong here in the same way. scapy has the last word (`test_model.py`).
"""

import struct
import sys
from array import array
from typing import NamedTuple

from common.wire.offload import NO_OFFLOAD, Offload, Packet

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
MASK = 0xFFFFFFFF

Socket = tuple[bytes, int]
"""Address, 4 bytes, and port."""

_IP = struct.Struct(">BBHHHBBH4s4s")
_TCP = struct.Struct(">HHIIBBHHH")


class Options(NamedTuple):
    mss: int | None = None
    scale: int | None = None
    sack_permitted: bool = False
    stamps: tuple[int, int] | None = None
    """TSval and TSecr."""
    blocks: tuple[tuple[int, int], ...] = ()


class Segment(NamedTuple):
    source: Socket
    destination: Socket
    seq: int
    ack: int
    flags: int
    window: int
    options: Options = Options()
    payload: bytes = b""
    tos: int = 0
    gso_size: int = 0
    """Of a superpacket: payload bytes of each segment that it stands for."""
    damaged: bool = False
    """Whether a checksum is wrong; the options are not read then."""

    @property
    def length(self) -> int:
        return len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN)


def steps(start: int, end: int) -> int:
    """Signed number of steps from ``start`` to ``end`` in the circle of 2^32."""
    return ((end - start + 0x80000000) & MASK) - 0x80000000


def folded_sum(data: bytes) -> int:
    """One's complement sum of 16-bit words (RFC 1071), not complemented."""
    words = array("H", data + b"\0" * (len(data) % 2))
    if sys.byteorder == "little":
        words.byteswap()
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def parse(packet: Packet) -> Segment:
    """Of a packet whose lengths are right; ValueError otherwise."""
    data = packet.data
    first, tos, total, _, fragment, _, protocol, _, source, destination = _IP.unpack_from(data)
    if first != 0x45 or protocol != 6 or total != len(data) or fragment & 0x3FFF:
        raise ValueError(f"no plain TCP packet: {data[:20].hex()}")
    tcp = data[20:]
    sport, dport, seq, ack, offset, flags, window, check, _ = _TCP.unpack_from(tcp)
    size = (offset >> 4) * 4
    pseudo = source + destination + struct.pack(">HH", 6, len(tcp))
    offload = packet.offload
    if offload.needs_checksum:
        whole = check == folded_sum(pseudo) and (offload.checksum_start, offload.checksum_offset) == (20, 16)
        whole = whole and offload.header_length in (0, 20 + size)
    else:
        whole = folded_sum(pseudo + tcp) == 0xFFFF
    damaged = not whole or folded_sum(data[:20]) != 0xFFFF
    return Segment(
        source=(source, sport),
        destination=(destination, dport),
        seq=seq,
        ack=ack,
        flags=flags,
        window=window,
        options=Options() if damaged else _parse_options(tcp[20:size]),
        payload=tcp[size:],
        tos=tos,
        gso_size=offload.gso_size,
        damaged=damaged,
    )


def emit(segment: Segment) -> Packet:
    """As a host with checksum offload sends a superpacket, or with complete checksums where it is none."""
    area = emit_options(segment.options)
    size = 20 + len(area)
    head = _TCP.pack(
        segment.source[1],
        segment.destination[1],
        segment.seq & MASK,
        segment.ack & MASK,
        size // 4 << 4,
        segment.flags,
        segment.window,
        0,
        0,
    )
    tcp = head + area + segment.payload
    pseudo = segment.source[0] + segment.destination[0] + struct.pack(">HH", 6, len(tcp))
    offload = NO_OFFLOAD
    if segment.gso_size:
        check = folded_sum(pseudo)
        offload = Offload(1, 1, 20 + size, segment.gso_size, 20, 16)
    else:
        check = 0xFFFF - folded_sum(pseudo + tcp)
    tcp = tcp[:16] + check.to_bytes(2, "big") + tcp[18:]
    addresses = (segment.source[0], segment.destination[0])
    return Packet(ip_header(addresses, 6, len(tcp), segment.tos) + tcp, offload)


def ip_header(addresses: tuple[bytes, bytes], protocol: int, size: int, tos: int = 0) -> bytes:
    head = _IP.pack(0x45, tos, 20 + size, 0, 0x4000, 64, protocol, 0, *addresses)
    return head[:10] + (0xFFFF - folded_sum(head)).to_bytes(2, "big") + head[12:]


def emit_options(options: Options) -> bytes:
    area = b""
    if options.mss is not None:
        area += struct.pack(">BBH", 2, 4, options.mss)
    if options.sack_permitted:
        area += bytes((4, 2))
    if options.stamps is not None:
        area += b"\x01" * (-(len(area) + 10) % 4) + struct.pack(">BBII", 8, 10, *options.stamps)
    if options.scale is not None:
        area += bytes((1, 3, 3, options.scale))
    if options.blocks:
        area += bytes((1, 1, 5, 2 + 8 * len(options.blocks)))
        area += b"".join(struct.pack(">II", *block) for block in options.blocks)
    return area + b"\x01" * (-len(area) % 4)


def _parse_options(area: bytes) -> Options:
    found = Options()
    at = 0
    while at < len(area) and area[at] != 0:
        kind = area[at]
        if kind == 1:
            at += 1
            continue
        length = area[at + 1] if at + 1 < len(area) else 0
        data = area[at + 2 : at + length]
        if length < 2 or at + length > len(area):
            raise ValueError(f"bad options {area.hex()}")
        if kind == 2:
            found = found._replace(mss=int.from_bytes(data, "big"))
        elif kind == 3:
            found = found._replace(scale=data[0])
        elif kind == 4:
            found = found._replace(sack_permitted=True)
        elif kind == 5:
            found = found._replace(blocks=tuple(struct.iter_unpack(">II", data)))
        elif kind == 8:
            value, echo = struct.unpack(">II", data)
            found = found._replace(stamps=(value, echo))
        at += length
    return found
