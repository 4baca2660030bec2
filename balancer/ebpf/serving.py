"""What the balancer's programs serve, and how that changes while they are at work."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from ipaddress import IPv4Address

from balancer.core.engine import BalancerCore
from balancer.core.farewell import farewells
from balancer.core.reload import refuse_changes
from balancer.core.service import Endpoint, Service
from balancer.ebpf.abi import MAX_NODES
from balancer.ebpf.routes import NodeRoutes
from balancer.ebpf.services import PublishedServices
from balancer.ebpf.tables import MapFlowTable
from common.config import ConfigError
from common.net.intake import of_balancer
from common.net.ownership import OwnedTable, drop_rules
from common.wire.offload import Packet


class Serving:
    def __init__(
        self,
        core: BalancerCore,
        published: PublishedServices,
        routes: NodeRoutes,
        forget: Callable[[Iterable[int]], int],
        logger: logging.Logger,
    ) -> None:
        """``core`` serves nothing yet. ``forget`` has all forgotten that is known of the connections of VIP
        indexes, and says how many flows there were.
        """
        self._core = core
        self._published = published
        self._routes = routes
        self._forget = forget
        self._logger = logger
        self._services: list[Service] = []
        self._tables: dict[Endpoint, OwnedTable] = {}
        """Of nftables: who has a VIP's serves it, and its programs alone answer there."""
        self._mtu = 0

    def apply(self, services: Sequence[Service]) -> None:
        """Serve these and no others. `ConfigError` or `HostError`; then all is as before. All that can be
        refused is made before anything is changed; the changes themselves want a few bytes of kernel memory
        each, without which they stay half done.

        Programs learn of a service last when it is new, and first when it is gone.
        """
        refuse_changes(self._services, services)
        _require_room(services)
        wanted = {service.endpoint for service in services}
        with ExitStack() as failing, ExitStack() as drafting:
            claimed = {
                endpoint: failing.enter_context(closing(_claim(endpoint)))
                for endpoint in wanted - self._tables.keys()
            }
            drafts = self._published.draft(services, drafting)
            failing.pop_all()
            self._tables |= claimed
            self._withdraw_strangers(services)
            self._routes.serve(_addresses(services))
            self._mtu = self._routes.mtu
            self._services = list(services)
            self._core.serve(services)
            for draft in drafts:
                self._published.publish(draft, self._mtu)
        for endpoint in self._tables.keys() - wanted:
            self._tables.pop(endpoint).close()

    def follow_mtu(self) -> None:
        """The path MTU to a node may have changed: larger packets go by the kernel, which tells their client.

        What clients are offered is `Service.max_payload`. Where that is lowered, those who were offered more
        go on: of a first payload that is too large for a handoff, Python makes a handoff and ordinary data.
        """
        if self._routes.mtu != self._mtu:
            self.apply(self._services)

    def forget_node(self, flows: MapFlowTable, vip_index: int, node: bytes) -> Iterator[Packet]:
        """As `BalancerCore.forget_node`, without a look at the flows of other nodes."""
        now = time.monotonic()
        return farewells(flows.take_of_node(vip_index, node), lambda key: flows.get(key) is not None, now)

    def close(self) -> None:
        """Others may serve the VIPs."""
        for table in self._tables.values():
            table.close()
        self._tables.clear()
        self._published.close()

    def _withdraw_strangers(self, services: Iterable[Service]) -> None:
        """What the programs serve, perhaps since an earlier run, and shall not, or not with this DSCP or
        window scale.
        """
        promised = {service.endpoint: (service.vip_index, service.promised_scale) for service in services}
        strangers = {
            endpoint: row.vip_index
            for endpoint, row in self._published.rows.items()
            if promised.get(endpoint) != (row.vip_index, row.promised_scale)
        }
        if not strangers:
            return
        for endpoint in strangers:
            self._published.withdraw(endpoint)
        gone = set(strangers.values())
        flows = self._forget(gone)
        if flows:
            self._logger.warning("%d flows are forgotten: their services are gone, or others now", flows)


def _claim(endpoint: Endpoint) -> OwnedTable:
    vip, port = endpoint
    taken = of_balancer(IPv4Address(vip), port)
    return OwnedTable(taken.name, drop_rules(taken))


def _addresses(services: Iterable[Service]) -> set[IPv4Address]:
    return {IPv4Address(node.address) for service in services for node in service.nodes.values()}


def _require_room(services: Iterable[Service]) -> None:
    number = sum(len(service.nodes) for service in services)
    if number > MAX_NODES:
        raise ConfigError(f"there are {number} nodes in all services: engine ebpf takes {MAX_NODES} at most")
