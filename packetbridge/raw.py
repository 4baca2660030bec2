"""The raw data plane of the packetbridge: taps, rules and routes that bring replies to the TUN, a journal."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from ipaddress import IPv4Address

from common.config import RAW
from common.daemon import loop_counters
from common.dataplane import Feed, PacketLoop, wall_clock
from common.engine import Counts, Engine, Site
from common.net.intake import Intake, of_packetbridge
from common.net.interfaces import Interface, interfaces, tap_interfaces
from common.net.ownership import OwnedTable, drop_rules
from common.net.packet_socket import Tap
from common.net.routes import ReplyRoutes
from common.net.sock_diag import SocketQuery
from common.net.taps import Taps, wanted
from common.net.tun import Tun
from packetbridge.addresses import Addresses
from packetbridge.core.engine import PacketbridgeCore
from packetbridge.core.service import Limits, Service, Timeouts
from packetbridge.ebpf import plane
from packetbridge.engine import PacketbridgeEngine
from packetbridge.journal import Journal, path_of
from packetbridge.kept_core import KeptCore
from packetbridge.reload import backends_of, refuse_changes, require_consistent


def start(
    services: Sequence[Service], limits: Limits, timeouts: Timeouts, site: Site, owned: ExitStack
) -> PacketbridgeEngine:
    require_consistent(services)
    started = _RawPlane(services, limits, timeouts, site, owned)
    return PacketbridgeEngine(
        engine=Engine(
            name=RAW,
            loop=started.loop,
            counters=started.counters,
            sizes=lambda: started.core.sizes,
            apply=started.apply,
            flows=lambda: started.core.flows(time.monotonic()),
            find=lambda client, port, index: started.core.find(client, port, index, time.monotonic()),
            tend=started.tend,
        ),
        flows_of_vips=started.core.flows_of_vips,
    )


class _RawPlane:
    def __init__(
        self,
        services: Sequence[Service],
        limits: Limits,
        timeouts: Timeouts,
        site: Site,
        owned: ExitStack,
    ) -> None:
        """What it takes from the host is left in ``owned``."""
        found = interfaces()
        self._addresses = Addresses()
        self._addresses.take(services, found)
        self._services = services
        self._logger = site.logger
        self._intake = _intake_of(services)
        tapped = tap_interfaces(found)
        self.core = PacketbridgeCore(services, site.keys.verify, wall_clock, limits, timeouts)
        self._tun = owned.enter_context(closing(Tun()))
        self._rules = _rules(self._intake, tapped)
        self._table = owned.enter_context(closing(OwnedTable(self._intake.name, self._rules)))
        path = path_of(site.state_dir, self._intake.address)
        self._journal = owned.enter_context(closing(Journal(path, site.logger)))
        plane.remove_left(site, self._intake.address, self._journal)
        self._taps = owned.enter_context(closing(Taps(self._intake, self._open, self._close)))
        self._routes = owned.enter_context(closing(ReplyRoutes(backends_of(services), self._tun.index)))
        query = owned.enter_context(closing(SocketQuery()))
        self._kept = KeptCore(self.core, self._journal, query)
        from_tun = Feed(self._tun, self.core.plan_from_backend, self._kept.from_backend)
        self.loop = PacketLoop(self._tun, [from_tun], self._kept, site.logger)
        self._taps.open(tapped)
        self.loop.send(self._kept.restore(time.monotonic(), site.logger))

    def counters(self) -> Counts:
        return {
            **self.core.counts,
            **loop_counters(self.loop, self._tun, [self._taps]),
            "journal_failures": self._journal.failures,
        }

    def apply(self, services: Sequence[Service]) -> None:
        """As `Engine.apply`. The core, which cannot fail, comes last."""
        flows = self.core.flows_of_vips()
        refuse_changes(self._services, services, lambda index: flows.get(index, 0))
        backends = backends_of(services)
        with ExitStack() as failing:
            failing.callback(self._routes.backends.remove, self._routes.backends.add(backends))
            self._take(_intake_of(services))
            failing.callback(self._take, self._intake)
            self._addresses.take(services, interfaces())
            failing.pop_all()
        self._intake = _intake_of(services)
        ended = self._kept.serve(services, time.monotonic())
        self._routes.backends.keep(backends)
        self._services = services
        if ended:
            self._logger.warning("flows of VIPs that are gone are forgotten: %d", ended)

    def tend(self) -> list[str]:
        """As `Engine.tend`. Owner tables cannot be changed by others."""
        found = interfaces()
        said = self._addresses.look(found)
        if self._tun.restore():
            said.append(f"device {self._tun.name} had been changed: it is set up again")
        said += self._routes.restore()
        before = self._taps.interfaces
        present = wanted(found, before, self._tun.index)
        self._enforce(_rules(self._intake, {each.index: each for each in (*before, *present)}.values()))
        said += self._taps.follow(present)
        self._enforce(_rules(self._intake, self._taps.interfaces))
        return said

    def _open(self, tap: Tap) -> None:
        self.loop.add(Feed(tap, self.core.plan_from_balancer, self._kept.from_balancer))

    def _close(self, tap: Tap) -> None:
        self.loop.remove(tap)

    def _take(self, intake: Intake) -> None:
        """Tap other ports. `HostError`: then all is as it was.

        At no time do taps take what the rules let pass: the kernel would answer that, too.
        """
        before = self._intake
        tapped = self._taps.interfaces
        both = of_packetbridge(intake.address, (*before.ports, *intake.ports))
        with ExitStack() as failing:
            failing.callback(self._enforce, _rules(before, tapped))
            self._enforce(_rules(both, tapped))
            failing.callback(self._taps.take, before)
            self._taps.take(intake)
            self._enforce(_rules(intake, tapped))
            failing.pop_all()

    def _enforce(self, rules: str) -> None:
        if rules != self._rules:
            self._table.replace(rules)
            self._rules = rules


def _intake_of(services: Sequence[Service]) -> Intake:
    return of_packetbridge(IPv4Address(services[0].bridge), [served.vip_port for served in services])


def _rules(intake: Intake, tapped: Iterable[Interface]) -> str:
    """Where nothing is tapped nothing is dropped."""
    tapped = sorted(tapped, key=lambda interface: interface.index)
    return drop_rules(intake, tapped) if tapped else ""
