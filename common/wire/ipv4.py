"""IPv4 header (RFC 791 section 3.1).

 0                   1                   2                   3
|Version|  IHL  |TOS: DSCP  |ECN|          Total Length         |
|         Identification        |Flags|      Fragment Offset    |
|  Time to Live |    Protocol   |         Header Checksum       |
|                       Source Address                          |
|                    Destination Address                        |
|                    Options, 0 to 40 bytes                     |
"""

import struct
from typing import NamedTuple

from common.wire import checksum
from common.wire.buffer import Buffer
from common.wire.errors import WireError

HEADER_SIZE = 20
SOURCE_AT, DESTINATION_AT = 12, 16
"""Where the addresses stand in the header."""
PROTOCOL_ICMP, PROTOCOL_TCP = 1, 6
PROTOCOL_AT = 9
CHECKSUM_AT = 10
DONT_FRAGMENT = 0x4000
_MORE_AND_OFFSET = 0x3FFF
_HEADER = struct.Struct(">BBHHHBBH4s4s")


class Ipv4Header(NamedTuple):
    tos: int
    total_length: int
    """Bytes of header and payload together."""
    identification: int
    fragment: int
    """The three flags and the fragment offset as one 16-bit word."""
    ttl: int
    protocol: int
    checksum: int
    source: bytes
    destination: bytes
    options: bytes = b""

    @property
    def size(self) -> int:
        return HEADER_SIZE + len(self.options)

    @property
    def is_fragment(self) -> bool:
        """Whether this is any part of a fragmented packet, the first included."""
        return bool(self.fragment & _MORE_AND_OFFSET)


def parse_untrusted(data: Buffer) -> Ipv4Header:
    """The header at the start of ``data``, which holds at least ``total_length`` bytes.

    The checksum is not verified: see `checksum_holds`.
    """
    view = memoryview(data)
    if len(view) < HEADER_SIZE:
        raise WireError("truncated")
    first, tos, total, ident, fragment, ttl, protocol, check, source, destination = _HEADER.unpack_from(view)
    size = (first & 0xF) * 4
    if first >> 4 != 4 or size < HEADER_SIZE:
        raise WireError("not_ipv4")
    if not size <= total <= len(view):
        raise WireError("truncated")
    options = bytes(view[HEADER_SIZE:size])
    return Ipv4Header(tos, total, ident, fragment, ttl, protocol, check, source, destination, options)


def carries(data: bytes, protocol: int) -> bool:
    """What the header's protocol field says, if there is one."""
    return len(data) > PROTOCOL_AT and data[PROTOCOL_AT] == protocol


def require_plain(header: Ipv4Header) -> None:
    """Raises `WireError` for a fragment and for IP options."""
    if header.is_fragment:
        raise WireError("fragment")
    if header.options:
        raise WireError("ip_options")


def emit(header: Ipv4Header) -> bytes:
    """The header's bytes, checksum field as given."""
    first = 0x40 | header.size // 4
    return _HEADER.pack(first, *header[:9]) + header.options


def checksum_holds(data: Buffer) -> bool:
    """Of the header at the start of ``data``, which `parse_untrusted` has accepted."""
    return checksum.is_whole(checksum.word_sum(data[: (data[0] & 0xF) * 4]))


def emit_with_checksum(header: Ipv4Header) -> bytes:
    """The header's bytes, checksum field computed from the others."""
    made = emit(header)
    check = checksum.finish(checksum.word_sum(made) - header.checksum)
    return made[:CHECKSUM_AT] + check.to_bytes(2, "big") + made[CHECKSUM_AT + 2 :]
