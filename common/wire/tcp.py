"""TCP header (RFC 9293 section 3.1).

 0                   1                   2                   3
|          Source Port          |       Destination Port        |
|                        Sequence Number                        |
|                    Acknowledgment Number                      |
| Offset| Rsv |A|C|E|U|A|P|R|S|F|            Window             |
|           Checksum            |         Urgent Pointer        |
|                    Options, 0 to 40 bytes                     |
"""

import struct
from typing import NamedTuple

from common.wire.buffer import Buffer
from common.wire.errors import WireError

HEADER_SIZE = 20
OFFSET_AT, CHECKSUM_AT = 12, 16
"""Where data offset and checksum stand in the header."""

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
_FLAG_BITS = 0x0FFF
_HEADER = struct.Struct(">HHIIHHHH")


class TcpHeader(NamedTuple):
    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    """Twelve bits: the eight flags above, accurate ECN, and what is still reserved."""
    window: int
    """As it stands in the header, not scaled."""
    checksum: int
    urgent: int
    options: bytes = b""
    """Padded to a multiple of four bytes."""

    @property
    def size(self) -> int:
        return HEADER_SIZE + len(self.options)


def parse_untrusted(data: Buffer) -> TcpHeader:
    """The header at the start of ``data``, which reaches to the end of the IP packet."""
    view = memoryview(data)
    if len(view) < HEADER_SIZE:
        raise WireError("truncated")
    source_port, destination_port, seq, ack, offset_flags, window, check, urgent = _HEADER.unpack_from(view)
    size = (offset_flags >> 12) * 4
    if not HEADER_SIZE <= size <= len(view):
        raise WireError("bad_data_offset")
    flags = offset_flags & _FLAG_BITS
    options = bytes(view[HEADER_SIZE:size])
    return TcpHeader(source_port, destination_port, seq, ack, flags, window, check, urgent, options)


def emit(header: TcpHeader) -> bytes:
    """The header's bytes, checksum field as given."""
    offset_flags = header.size // 4 << 12 | header.flags
    return (
        _HEADER.pack(*header[:4], offset_flags, header.window, header.checksum, header.urgent)
        + header.options
    )
