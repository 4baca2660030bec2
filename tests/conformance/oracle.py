"""Numbers in packets, computed apart from the code under test: by other libraries, from the documents.

SYN cookies and TSval: docs/design.md section 3 and common/wire/syncookie.py's layout. Tags: docs/handoff.md.
"""

import struct
from ipaddress import IPv4Address

import xxhash

from tests.unit.wire.packets import siphash

COOKIE_KEY, TAG_KEY = bytes(range(16)), bytes(range(16, 32))
PREVIOUS_TAG_KEY = bytes(range(15, 31))
"""A key's id is the lowest bit of its last byte: 1 for the current, 0 for the previous one."""
WALL = 1_800_000_000
"""Seconds since 1970 when a vector begins."""
START = 1000.0
"""The monotonic clock then."""
MSS_CLASSES = (48, 536, 1024, 1220, 1360, 1400, 1440, 1460)
TABLE_SIZE = 65_537


def packed(address: str) -> bytes:
    return IPv4Address(address).packed


def cookie(client: str, port: int, vip: str, vip_port: int, client_isn: int, mss: int, now: float) -> int:
    """The ISN of the SYN-ACK: five bits of coarse time, three of MSS class, 24 of a keyed hash."""
    period = int(now) // 30
    index = max(at for at, least in enumerate(MSS_CLASSES) if least <= max(mss, MSS_CLASSES[0]))
    hashed = packed(client) + packed(vip) + struct.pack(">HHIIB", port, vip_port, client_isn, period, index)
    return period % 32 << 27 | index << 24 | int.from_bytes(siphash(COOKIE_KEY, hashed)[:3], "big")


def tsval(now: float, scale: int | None, *, sack: bool) -> int:
    """The newest not after the clock of milliseconds whose low six bits carry the client's options."""
    carried = (15 if scale is None else scale) | sack << 4
    ticks = int(now * 1000)
    value = (ticks & ~0x3F) | carried
    return (value if value <= ticks else value - 64) % 2**32


def tag(
    client: str, port: int, node: str, service_port: int, index: int, numbers: bytes, area: bytes
) -> bytes:
    """Over flow key, VIP index, S - 1 and A - 1, and the options up to the tag."""
    key = packed(client) + packed(node) + struct.pack(">HH", port, service_port)
    return siphash(TAG_KEY, key + bytes((index,)) + numbers + area)


def slot(key: bytes, seed: int = 0) -> int:
    """Of the lookup table."""
    return int(xxhash.xxh64_intdigest(key, seed)) % TABLE_SIZE


def four_tuple(client: str, port: int, vip: str, vip_port: int) -> bytes:
    """As it stands on the wire: addresses, then ports."""
    return packed(client) + packed(vip) + struct.pack(">HH", port, vip_port)
