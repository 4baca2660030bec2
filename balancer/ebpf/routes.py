"""How packets to each node leave: map `routes`, kept as the kernel's routes are, and their smallest MTU.

A node on this very host, and one without a route, are left to the kernel: packets enter it by the TUN.
Nodes that are not configured any more may still have flows: they are looked after as long as they have.
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
from common.threads import in_thread

DEFAULT_MTU = 1500
_SHARE = 4
"""The pause is this many times what a refreshment takes."""
_SECONDS = 30.0
"""At the latest: path MTUs that the kernel has found, and forgotten, make no news."""


class NodeRoutes:
    def __init__(self, routes: HashMap, nodes: Iterable[IPv4Address]) -> None:
        self._routes = routes
        self._mtus: dict[IPv4Address, int | None] = {}
        """Of all nodes that are looked after; None where there is no route."""
        self._configured: set[IPv4Address] = set()
        for node, _ in list(routes.items()):
            self._look_up(IPv4Address(node))
        self.serve(nodes)

    @property
    def mtu(self) -> int:
        """Bytes of the largest IP packet that fits on the way to every configured node that has a route."""
        known = (self._mtus[node] for node in self._configured)
        return min((mtu for mtu in known if mtu is not None), default=DEFAULT_MTU)

    def serve(self, nodes: Iterable[IPv4Address]) -> None:
        """These are configured from now on."""
        configured = set(nodes)
        for node in configured - self._mtus.keys():
            self._look_up(node)
        self._configured = configured

    async def follow(self, watch: NetworkWatch, then: Callable[[], None], mark: Callable[[], object]) -> None:
        """For ever; ``then`` is called after each round. ``mark`` is the program that marks what has flows.

        With very many nodes a round takes long, so others have their turn between any two; and where routes
        change all the time, most of it is left to the packet loop.
        """
        while True:
            with trio.move_on_after(_SECONDS):
                await watch.changed()
            began = time.monotonic()
            for node in list(self._mtus):
                self._look_up(node)
                await trio.lowlevel.checkpoint()
            then()
            await self._forget_idle(mark)
            await trio.sleep(_SHARE * (time.monotonic() - began))

    async def _forget_idle(self, mark: Callable[[], object]) -> None:
        """Nodes that are configured no more and have no flows. Should one get a flow at this very moment, its
        packets are left to the kernel.
        """
        others = self._mtus.keys() - self._configured
        if not others:
            return
        await in_thread(mark)
        for node in others - self._configured:
            row = self._routes.lookup(node.packed)
            if row is None or not ROUTE.unpack(row).marked:
                self._routes.delete(node.packed)
                del self._mtus[node]

    def _look_up(self, node: IPv4Address) -> None:
        """A node for which there is no room in the map is left to the kernel."""
        with suppress(TableFullError):
            self._routes.update(node.packed, ROUTE.pack(_row(node)))
        try:
            self._mtus[node] = route_mtu(node)
        except HostError:  # there is no route
            self._mtus[node] = None


def _row(node: IPv4Address) -> RouteRow:
    hop = next_hop(node)
    if hop is None or hop.is_local:
        return RouteRow(0, node.packed)
    return RouteRow(hop.ifindex, (hop.gateway or node).packed)
