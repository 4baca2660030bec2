"""How packets to each node leave: map `routes`, kept as the kernel's routes are, and their smallest MTU.

A node on this very host, and one without a route, are left to the kernel: packets enter it by the TUN.
Nodes that are not configured any more may still have flows: those in the map are looked after, too.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Address

import trio

from balancer.ebpf.abi import ROUTE, RouteRow
from common.bpf.maps import HashMap
from common.net.errors import HostError
from common.net.routes import next_hop, route_mtu
from common.net.watch import NetworkWatch
from common.tables import TableFullError

DEFAULT_MTU = 1500
_SHARE = 4
"""The pause is this many times what a refreshment takes."""
_SECONDS = 30.0
"""At the latest: path MTUs that the kernel has found, and forgotten, make no news."""


class NodeRoutes:
    def __init__(self, routes: HashMap, nodes: Iterable[IPv4Address]) -> None:
        self.mtu = DEFAULT_MTU
        """Bytes of the largest IP packet that fits on the way to every configured node that has a route."""
        self._routes = routes
        self._configured = set(nodes)
        self._known = {IPv4Address(node) for node, _ in routes.items()}
        self.refresh()

    def serve(self, nodes: Iterable[IPv4Address]) -> None:
        """These are configured from now on."""
        before, self._configured = self._configured, set(nodes)
        if self._configured != before:
            self.refresh()

    def refresh(self) -> None:
        """Nodes for which there is no room in the map are left to the kernel."""
        self._known |= self._configured
        for node in self._known:
            with suppress(TableFullError):
                self._routes.update(node.packed, ROUTE.pack(_row(node)))
        self.mtu = min(_mtus(self._configured), default=DEFAULT_MTU)

    async def follow(self, watch: NetworkWatch, then: Callable[[], None]) -> None:
        """For ever; ``then`` is called after each refreshment.

        Where routes change all the time, most of it is left to the packet loop.
        """
        while True:
            with trio.move_on_after(_SECONDS):
                await watch.changed()
            began = time.monotonic()
            self.refresh()
            then()
            await trio.sleep(_SHARE * (time.monotonic() - began))


def _mtus(nodes: Iterable[IPv4Address]) -> list[int]:
    mtus = []
    for node in nodes:
        with suppress(HostError):  # there is no route
            mtus.append(route_mtu(node))
    return mtus


def _row(node: IPv4Address) -> RouteRow:
    hop = next_hop(node)
    if hop is None or hop.is_local:
        return RouteRow(0, node.packed)
    return RouteRow(hop.ifindex, (hop.gateway or node).packed)
