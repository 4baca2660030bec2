"""Which node a new connection goes to.

That is the one that its hash belongs to, or, with bounded loads, the first of the key's sequence
(`common.hashing.sequence`) that takes one more flow.
"""

from typing import NamedTuple

from balancer.core.loads import Loads
from balancer.core.service import Node, Service
from common.hashing.sequence import node_sequence

BOUNDED_AWAY = "bounded_away"
"""Counter: new flows whose first node had its share."""
ALL_AT_BOUND = "all_at_bound"
"""Counter: new flows that went to their first node all the same, since none of the sequence took them."""


class Choice(NamedTuple):
    node: Node
    displaced: str = ""
    """Names a counter; empty where the first node takes it."""


def choose(service: Service, loads: Loads, key_hash: int) -> Choice | None:
    """None where the service has no node that is open to new flows."""
    if service.table is None:
        return None
    first = service.nodes[service.table.lookup(key_hash)]
    if not service.load_factor or loads.admits(service.vip_index, first.address):
        return Choice(first)
    for name in node_sequence(service.table, key_hash):
        node = service.nodes[name]
        if loads.admits(service.vip_index, node.address):
            return Choice(node, BOUNDED_AWAY)
    return Choice(first, ALL_AT_BOUND)
