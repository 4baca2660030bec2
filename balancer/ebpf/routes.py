"""How packets to each node leave: map `routes`, kept as the kernel's routes are.

A node on this very host, and one without a route, are left to the kernel: packets enter it by the TUN.
Nodes of an earlier run may still have flows: those in the map are looked after, too.
"""

import time
from collections.abc import Iterable
from ipaddress import IPv4Address

import trio

from balancer.ebpf.abi import ROUTE, RouteRow
from common.bpf.maps import HashMap
from common.net.routes import next_hop
from common.net.watch import NetworkWatch

_SHARE = 4
"""The pause is this many times what a refreshment takes."""


class NodeRoutes:
    def __init__(self, routes: HashMap, nodes: Iterable[IPv4Address]) -> None:
        self._routes = routes
        self._nodes = {*nodes, *(IPv4Address(node) for node, _ in routes.items())}
        self.refresh()

    def refresh(self) -> None:
        for node in self._nodes:
            self._routes.update(node.packed, ROUTE.pack(_row(node)))

    async def follow(self, watch: NetworkWatch) -> None:
        """For ever. Where routes change all the time, most of it is left to the packet loop."""
        while True:
            await watch.changed()
            began = time.monotonic()
            self.refresh()
            await trio.sleep(_SHARE * (time.monotonic() - began))


def _row(node: IPv4Address) -> RouteRow:
    hop = next_hop(node)
    if hop is None or hop.is_local:
        return RouteRow(0, node.packed)
    return RouteRow(hop.ifindex, (hop.gateway or node).packed)
