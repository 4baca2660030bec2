"""The raw data plane of the balancer: taps, rules that keep the kernel from answering, a TUN to send by."""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from ipaddress import IPv4Address

from balancer.core.engine import BalancerCore
from balancer.core.reload import refuse_changes
from balancer.core.service import Endpoint, Limits, Service, Services, Timeouts
from balancer.ebpf import plane
from balancer.engine import BalancerEngine
from common import keyring
from common.config import RAW
from common.counters import Counters
from common.daemon import loop_counters
from common.dataplane import Feed, PacketLoop, wall_clock
from common.engine import Counts, Engine, Site
from common.net.intake import of_balancer
from common.net.interfaces import interfaces, tap_interfaces
from common.net.ownership import OwnedTable, drop_rules
from common.net.taps import Taps, wanted
from common.net.tun import Tun


def start(
    services: Sequence[Service], limits: Limits, timeouts: Timeouts, site: Site, owned: ExitStack
) -> BalancerEngine:
    started = _RawPlane(services, limits, timeouts, site, owned)
    core = started.core
    return BalancerEngine(
        engine=Engine(
            name=RAW,
            loop=started.loop,
            counters=started.counters,
            sizes=lambda: core.sizes,
            apply=started.apply,
            flows=lambda: core.flows(time.monotonic()),
            find=lambda client, port, index: core.find(client, port, index, time.monotonic()),
            tend=started.tend,
        ),
        loads=core.loads,
        forget_node=lambda index, node: core.forget_node(index, node, time.monotonic()),
    )


class _RawPlane:
    def __init__(
        self, services: Sequence[Service], limits: Limits, timeouts: Timeouts, site: Site, owned: ExitStack
    ) -> None:
        """What it takes from the host it leaves in ``owned``."""
        self._logger = site.logger
        self._tapped = tap_interfaces(interfaces())
        mac = keyring.make_mac(os.urandom(keyring.KEY_SIZE))
        self.core = BalancerCore(
            Services(services), mac, site.keys.sign, wall_clock, limits, timeouts=timeouts
        )
        self._tun = owned.enter_context(closing(Tun()))
        # Nothing is routed to this TUN; it is read to notice when somebody deletes it.
        from_tun = Feed(self._tun, lambda *_: None, lambda *_: [], answers_at_once=False)
        self.loop = PacketLoop(self._tun, [from_tun], self.core, site.logger)
        self._taken: dict[Endpoint, _TakenEndpoint] = {}
        self._given_back: Counters[str] = Counters()
        owned.callback(self._give_back_all)
        for service in services:
            self._taken[service.endpoint] = _TakenEndpoint(service.endpoint, self.loop, self.core)
        plane.remove_left(site)
        for taken in self._taken.values():
            taken.taps.open(self._tapped)

    def counters(self) -> Counts:
        taps = [taken.taps for taken in self._taken.values()]
        now = Counters(loop_counters(self.loop, self._tun, taps))
        now.update(self._given_back)
        return {**self.core.counters, **now}

    def apply(self, services: Sequence[Service]) -> None:
        """As `Engine.apply`. The core, which cannot fail, comes after all that may."""
        refuse_changes(self.core.services, services)
        with ExitStack() as failing:
            new = {}
            for endpoint in (service.endpoint for service in services):
                if endpoint not in self._taken:
                    new[endpoint] = taken = _TakenEndpoint(endpoint, self.loop, self.core)
                    failing.callback(taken.close)
                    taken.taps.open(self._tapped)
            failing.pop_all()
        self._taken |= new
        forgotten = self.core.serve(services)
        if forgotten:
            self._logger.warning("%d flows are forgotten: their services are gone", forgotten)
        for endpoint in self._taken.keys() - {service.endpoint for service in services}:
            self._give_back(endpoint)

    def tend(self) -> list[str]:
        """As `Engine.tend`. Owner tables cannot be changed by others."""
        said = []
        if self._tun.restore():
            said.append(f"device {self._tun.name} had been changed: it is set up again")
        present = wanted(interfaces(), self._tapped, self._tun.index)
        for taken in self._taken.values():
            said += taken.taps.follow(present)
            self._tapped = taken.taps.interfaces
        return list(dict.fromkeys(said))

    def _give_back(self, endpoint: Endpoint) -> None:
        taken = self._taken.pop(endpoint)
        taken.close()
        self._given_back.update(
            tap_errors=taken.taps.errors,
            tap_kernel_drops=taken.taps.kernel_drops(),
            tap_malformed=taken.taps.malformed,
        )

    def _give_back_all(self) -> None:
        with ExitStack() as steps:
            for endpoint in list(self._taken):
                steps.callback(self._give_back, endpoint)


class _TakenEndpoint:
    """What the packets to a VIP and port are kept from the kernel with, and taken to the core."""

    def __init__(self, endpoint: Endpoint, loop: PacketLoop, core: BalancerCore) -> None:
        """Drops them from now on; they reach the core once ``taps`` are opened. `HostError`."""
        vip, port = endpoint
        taken = of_balancer(IPv4Address(vip), port)
        self._table = OwnedTable(taken.name, drop_rules(taken))
        self.taps = Taps(
            taken,
            lambda tap: loop.add(Feed(tap, core.plan, core.receive, answers_at_once=False)),
            loop.remove,
        )

    def close(self) -> None:
        """The taps first: what they take, the kernel must not answer."""
        self.taps.close()
        self._table.close()
