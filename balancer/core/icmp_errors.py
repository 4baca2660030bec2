"""ICMP errors about packets from the VIP to a client (docs/design.md section 3, step 6).

A router on the way answers to the VIP, which is here, but the sender is a node: it gets the error, tagged
like everything else of the flow. And like all of that, it goes as if sent by the client: the way to the node
may lead through the very router that made the error, which drops packets that claim to come from itself.
"""

from balancer.core.service import Node
from common.wire import checksum, dscp, icmp, ipv4
from common.wire.ipv4 import Ipv4Header
from common.wire.offload import Packet
from common.wire.segment import FlowKey, reverse


def client_key_untrusted(packet: Packet) -> FlowKey:
    """The key, client to VIP, of the flow that the ICMP error is about."""
    header = ipv4.parse_untrusted(packet.data)
    ipv4.require_plain(header)
    error = icmp.parse_untrusted(packet.data[header.size : header.total_length])
    return reverse(error.quoted_key)


def to_node(packet: Packet, client: bytes, node: Node, vip_index: int) -> Packet:
    """The same message from the client's address to the node."""
    header = ipv4.parse_untrusted(packet.data)
    message = packet.data[header.size : header.total_length]
    return packet._replace(data=ipv4.emit(_addressed(header, client, node, vip_index)) + message)


def _addressed(header: Ipv4Header, client: bytes, node: Node, vip_index: int) -> Ipv4Header:
    tos = dscp.with_index(header.tos, vip_index)
    old = checksum.word_sum(header.source + header.destination)
    delta = checksum.word_sum(client + node.address) - old + tos - header.tos
    return header._replace(
        tos=tos,
        source=client,
        destination=node.address,
        checksum=checksum.update(header.checksum, delta),
    )
