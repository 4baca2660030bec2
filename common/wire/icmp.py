"""ICMP errors about a packet of ours (RFC 792; RFC 1191 for the next-hop MTU; RFC 5508 for translating them).

    |     Type      |     Code      |           Checksum            |
    |   unused, or next-hop MTU in the second half (type 3 code 4)  |
    |   the packet's IP header and at least 8 bytes of its payload  |

The quoted packet is cut, so only its IP header and the first 8 bytes of TCP (ports and sequence number)
can be relied on.
"""

import struct
from typing import NamedTuple

from common.wire import checksum, ipv4
from common.wire.buffer import Buffer
from common.wire.errors import WireError
from common.wire.segment import FLOW_KEY_AT, FLOW_KEY_END, FlowKey

UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM = 3, 11, 12
QUOTED_TCP_SIZE = 8

_HEADER = struct.Struct(">BBH4s")
_ERRORS = frozenset((UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM))


class IcmpError(NamedTuple):
    type: int
    code: int
    checksum: int
    rest: bytes
    """The header's second four bytes."""
    quoted: bytes
    """What the error is about, from its IP header on, cut anywhere behind TCP's sequence number."""

    @property
    def quoted_key(self) -> FlowKey:
        """The quoted packet's flow key, in the direction in which it was sent."""
        return self.quoted[FLOW_KEY_AT:FLOW_KEY_END]

    @property
    def quoted_seq(self) -> int:
        return int.from_bytes(self.quoted[FLOW_KEY_END : FLOW_KEY_END + 4], "big")


def parse_untrusted(message: Buffer) -> IcmpError:
    """An ICMP error (an IP packet's payload) about a TCP packet without IP options, or its first fragment."""
    data = bytes(message)
    if len(data) < _HEADER.size + ipv4.HEADER_SIZE + QUOTED_TCP_SIZE:
        raise WireError("truncated")
    kind, code, check, rest = _HEADER.unpack_from(data)
    quoted = data[_HEADER.size :]
    if kind not in _ERRORS:
        raise WireError("not_an_icmp_error")
    if quoted[0] != 0x45 or quoted[9] != ipv4.PROTOCOL_TCP:
        raise WireError("icmp_quotes_no_tcp")
    if int.from_bytes(quoted[6:8], "big") & 0x1FFF:
        raise WireError("icmp_quotes_no_tcp")
    return IcmpError(kind, code, check, rest, quoted)


def emit(error: IcmpError) -> bytes:
    """The message's bytes, checksum field as given."""
    return _HEADER.pack(error.type, error.code, error.checksum, error.rest) + error.quoted


def requote(error: IcmpError, *, source: bytes, source_port: int, seq: int) -> IcmpError:
    """The error as if it quoted the packet before its source was rewritten.

    The quoted IP checksum follows, and the ICMP checksum stays right exactly if it was.
    """
    quoted = bytearray(error.quoted)
    quoted[12:16] = source
    quoted[20:22] = source_port.to_bytes(2, "big")
    quoted[24:28] = seq.to_bytes(4, "big")
    ip_delta = checksum.word_sum(source) - checksum.word_sum(error.quoted[12:16])
    ip_check = checksum.update(int.from_bytes(error.quoted[10:12], "big"), ip_delta)
    quoted[10:12] = ip_check.to_bytes(2, "big")
    made = error._replace(quoted=bytes(quoted))
    delta = checksum.word_sum(made.quoted) - checksum.word_sum(error.quoted)
    return made._replace(checksum=checksum.update(error.checksum, delta))
