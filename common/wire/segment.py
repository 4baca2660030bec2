"""One TCP segment in its IPv4 packet, as a value.

Segments that we originate have IP ID 0, DF, TTL 64 and TOS 0, which are the defaults here. A segment made
from a received one carries that one's TCP checksum on (`with_checksum_of`), so that damage on the way stays
visible to the end that verifies. The IP header is made anew, so its checksum is verified, as by any router.
"""

import struct
from typing import NamedTuple

from common.wire import checksum, ipv4, offload, tcp
from common.wire.errors import WireError
from common.wire.ipv4 import Ipv4Header
from common.wire.offload import NO_OFFLOAD, Offload, Packet
from common.wire.tcp import TcpHeader

FlowKey = bytes
"""12 bytes in network order: source address, destination address, source port, destination port."""

FLOW_KEY_AT, FLOW_KEY_END = 12, 24
"""Where the flow key stands in a packet whose IPv4 header has no options."""

_PORTS = struct.Struct(">HH")


class Segment(NamedTuple):
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int
    options: bytes = b""
    payload: bytes = b""
    urgent: int = 0
    tos: int = 0
    ttl: int = 64
    identification: int = 0
    fragment: int = ipv4.DONT_FRAGMENT
    checksum: int | None = None
    """The TCP checksum field; None where it is to be computed by `emit`."""
    offload: Offload = NO_OFFLOAD

    @property
    def key(self) -> FlowKey:
        return flow_key(self.source, self.source_port, self.destination, self.destination_port)

    @property
    def length(self) -> int:
        """Sequence numbers that it takes (SEG.LEN of RFC 9293): payload, SYN and FIN."""
        return len(self.payload) + bool(self.flags & tcp.SYN) + bool(self.flags & tcp.FIN)


def flow_key(source: bytes, source_port: int, destination: bytes, destination_port: int) -> FlowKey:
    return source + destination + _PORTS.pack(source_port, destination_port)


def key_ports(key: FlowKey) -> tuple[int, int]:
    """Source and destination port."""
    source_port, destination_port = _PORTS.unpack_from(key, 8)
    return source_port, destination_port


def reverse(key: FlowKey) -> FlowKey:
    """The key of the flow's other direction."""
    return key[4:8] + key[0:4] + key[10:12] + key[8:10]


def without_padding(packet: Packet) -> Packet:
    """The packet without what its link added behind its total length."""
    total = int.from_bytes(packet.data[2:4], "big")
    return packet if total >= len(packet.data) else packet._replace(data=packet.data[:total])


def parse_untrusted(packet: Packet) -> Segment:
    """An unfragmented TCP packet without IP options; bytes behind its total length are link padding."""
    header = ipv4.parse_untrusted(packet.data)
    if not ipv4.checksum_holds(packet.data):
        raise WireError("bad_ip_checksum")
    if header.protocol != ipv4.PROTOCOL_TCP:
        raise WireError("not_tcp")
    ipv4.require_plain(header)
    data = packet.data[ipv4.HEADER_SIZE : header.total_length]
    segment = tcp.parse_untrusted(data)
    source_port, destination_port, number, ack, flags, window, check, urgent, options = segment
    return Segment(
        header.source,
        header.destination,
        source_port,
        destination_port,
        number,
        ack,
        flags,
        window,
        options,
        data[tcp.HEADER_SIZE + len(options) :],
        urgent,
        header.tos,
        header.ttl,
        header.identification,
        header.fragment,
        check,
        packet.offload,
    )


def emit(segment: Segment) -> Packet:
    check = segment.checksum
    if check is None:
        check = checksum.finish(_header_sum(segment) + checksum.word_sum(segment.payload))
    tcp_bytes = tcp.emit(_tcp_header(segment, check)) + segment.payload
    header = Ipv4Header(
        tos=segment.tos,
        total_length=ipv4.HEADER_SIZE + len(tcp_bytes),
        identification=segment.identification,
        fragment=segment.fragment,
        ttl=segment.ttl,
        protocol=ipv4.PROTOCOL_TCP,
        checksum=0,
        source=segment.source,
        destination=segment.destination,
    )
    return Packet(ipv4.emit_with_checksum(header) + tcp_bytes, segment.offload)


def with_checksum_of(made: Segment, received: Segment) -> Segment:
    """``made`` with a checksum that is right exactly if ``received``'s was; both have the same payload.

    Into which segments it is to be cut, if any, remains what ``made.offload`` says.
    """
    if received.checksum is None:
        return made._replace(checksum=None, offload=NO_OFFLOAD)
    if received.offload.needs_checksum:
        unfinished = made.offload._replace(
            flags=offload.NEEDS_CHECKSUM,
            header_length=ipv4.HEADER_SIZE + tcp.HEADER_SIZE + len(made.options),
            checksum_start=ipv4.HEADER_SIZE,
            checksum_offset=tcp.CHECKSUM_AT,
        )
        return made._replace(checksum=_pseudo_sum(made) or 0xFFFF, offload=unfinished)
    delta = _header_sum(made) - _header_sum(received)
    return made._replace(checksum=checksum.update(received.checksum, delta), offload=NO_OFFLOAD)


def checksum_holds(segment: Segment) -> bool:
    """Whether the TCP checksum is right, or still to be computed by the kernel."""
    if segment.checksum is None or segment.offload.needs_checksum:
        return True
    total = _header_sum(segment) + checksum.word_sum(segment.payload)
    return checksum.is_whole(total + segment.checksum)


def _tcp_header(segment: Segment, check: int) -> TcpHeader:
    return TcpHeader(
        segment.source_port,
        segment.destination_port,
        segment.seq,
        segment.ack,
        segment.flags,
        segment.window,
        check,
        segment.urgent,
        segment.options,
    )


def _pseudo_sum(segment: Segment) -> int:
    """The pseudo-header's words (RFC 9293 section 3.1)."""
    length = tcp.HEADER_SIZE + len(segment.options) + len(segment.payload)
    return (checksum.word_sum(segment.source + segment.destination) + ipv4.PROTOCOL_TCP + length) % 0xFFFF


def _header_sum(segment: Segment) -> int:
    """Pseudo-header and TCP header without the checksum field."""
    return _pseudo_sum(segment) + checksum.word_sum(tcp.emit(_tcp_header(segment, 0)))
