"""ICMP errors on their way to the backend (RFC 5508 section 4.2; RFC 1191; RFC 5927 for the sequence number).

A router that could not deliver a packet from the VIP to the client tells the VIP, that is the balancer, which
passes the error on. The backend believes it only if the packet that it quotes is one of its own: from its
address, with a sequence number that it has in flight.
"""

from common.wire import dscp, icmp, ipv4, seq
from common.wire.errors import WireError
from common.wire.icmp import IcmpError
from common.wire.ipv4 import Ipv4Header
from common.wire.offload import Packet
from common.wire.segment import FlowKey, flow_key, key_ports
from packetbridge.core.service import Service


def parse_untrusted(packet: Packet) -> tuple[Ipv4Header, IcmpError]:
    """An unfragmented ICMP error about a TCP packet."""
    header = ipv4.parse_untrusted(packet.data)
    if not ipv4.checksum_holds(packet.data):
        raise WireError("bad_ip_checksum")
    ipv4.require_plain(header)
    return header, icmp.parse_untrusted(packet.data[header.size : header.total_length])


def backend_key(service: Service, error: IcmpError) -> FlowKey:
    """The key, backend to client, of the flow that the quoted packet belonged to; it was sent by the VIP."""
    quoted = error.quoted_key
    vip_port, client_port = key_ports(quoted)
    if (quoted[:4], vip_port) != (service.vip, service.vip_port):
        raise WireError("icmp_quotes_no_vip")
    return flow_key(service.backend, service.backend_port, quoted[4:8], client_port)


def to_backend(header: Ipv4Header, error: IcmpError, service: Service, seq_delta: int) -> Packet:
    """The error as the backend understands it; ``seq_delta`` is that of backend to client."""
    number = seq.add(error.quoted_seq, -seq_delta)
    requoted = icmp.requote(error, source=service.backend, source_port=service.backend_port, seq=number)
    addressed = header._replace(tos=dscp.ecn_of(header.tos), destination=service.backend)
    return Packet(ipv4.emit_with_checksum(addressed) + icmp.emit(requoted))
