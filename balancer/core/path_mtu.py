"""What the path MTU to the nodes leaves for a first payload."""

from common.wire import handoff, ipv4

MIN_PAYLOAD = 536
"""The least that is promised to clients: what every host takes (RFC 9293 section 3.7.1)."""
FULL_MTU = ipv4.HEADER_SIZE + handoff.HEADER_SIZE + handoff.MAX_PAYLOAD
"""What carries the largest handoff."""
NEEDED_MTU = ipv4.HEADER_SIZE + handoff.HEADER_SIZE + MIN_PAYLOAD


def payload_within(mtu: int) -> int:
    """Bytes of payload of the largest handoff in one IP packet of ``mtu`` bytes; a multiple of 4."""
    return min(mtu - ipv4.HEADER_SIZE - handoff.HEADER_SIZE, handoff.MAX_PAYLOAD) & ~3
