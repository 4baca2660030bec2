"""A first look at a packet in the receive buffer: is it one that a rewrite plan may be applied to?"""

import struct

from common.wire import ipv4, tcp
from common.wire.buffer import Buffer

_LOOK = struct.Struct(">BxHxxHxB22xH")
"""Version and header length, total length, fragment word, protocol; TCP's data offset and flags."""
_FIRST = 0x45
_FRAGMENT = 0x3FFF
_PLAIN_MASK, _PLAIN = tcp.ACK | tcp.SYN | tcp.FIN | tcp.RST, tcp.ACK


def payload_size(buffer: Buffer, at: int, length: int) -> int | None:
    """Payload bytes of the plain segment of ``length`` bytes whose IP header stands at ``at``.

    Plain: IPv4 without options, unfragmented, TCP with ACK and without SYN, FIN and RST, headers whole.
    None for everything else. The buffer reaches at least 40 bytes behind ``at``.
    """
    first, total, fragment, protocol, offset_flags = _LOOK.unpack_from(buffer, at)
    if first != _FIRST or fragment & _FRAGMENT or protocol != ipv4.PROTOCOL_TCP:
        return None
    if offset_flags & _PLAIN_MASK != _PLAIN or total > length:
        return None
    size = (offset_flags >> 12) * 4
    payload: int = total - ipv4.HEADER_SIZE - size
    return payload if size >= tcp.HEADER_SIZE and payload >= 0 else None
