"""The eBPF data plane of the packetbridge: programs at the interfaces, and what they leave to Python.

The programs open, splice and end flows by themselves. They pass up, through the TUN, segments of flows that
they do not know or whose backend has not answered; what is sent back into the TUN arrives at them again, as
the TUN has a program too. Python also asks the kernel about idle flows.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from common.bpf import residence as residences
from common.bpf.abi import FLOW_ID, SHARED, FlowId, PhaseNumber
from common.bpf.attach import Direction
from common.bpf.counts import read_counts
from common.bpf.forget import forget
from common.bpf.maps import ArrayMap, HashMap, PerCpuArray
from common.bpf.mounting import bpf_directory
from common.bpf.residence import Place, Plan, Residence, identity
from common.bpf.upkeep import Upkeep
from common.config import EBPF
from common.daemon import loop_counters
from common.dataplane import Feed, PacketLoop, wall_clock
from common.engine import Counts, Engine, Site
from common.net import host
from common.net.backends import BackendTables
from common.net.intake import of_packetbridge
from common.net.interfaces import Interface, interfaces, open_interfaces, tap_interfaces
from common.net.ownership import OwnedTable
from common.net.packet_socket import by_link_type, link_header_size
from common.net.routes import remove_leftovers
from common.net.sock_diag import SocketQuery
from common.net.tun import Tun
from common.reports import FlowReport
from common.wire.offload import Packet
from packetbridge.addresses import Addresses
from packetbridge.core.service import Limits, Service, Timeouts
from packetbridge.ebpf import abi, carried_over
from packetbridge.ebpf.carried_over import CarriedOver
from packetbridge.ebpf.flows import MapFlows, report_of, reports
from packetbridge.ebpf.passed_up import PassedUp
from packetbridge.ebpf.questions import Questions
from packetbridge.ebpf.served import ServedMaps
from packetbridge.engine import PacketbridgeEngine
from packetbridge.journal import Journal, path_of
from packetbridge.reload import backends_of, refuse_changes, require_consistent

_DIRECTORY = "bpf"
_NO_LINK_HEADER = 0
_OBJECT, _ADOPTING = "packetbridge", "packetbridge_adopt"


def start(
    services: Sequence[Service],
    limits: Limits,
    timeouts: Timeouts,
    site: Site,
    owned: ExitStack,
    *,
    adopt: bool,
) -> PacketbridgeEngine:
    """With ``adopt``, listeners are given connections without a handshake where the kernel can do that."""
    require_consistent(services)
    started = _EbpfPlane(services, limits, timeouts, site, owned, adopt=adopt)
    return PacketbridgeEngine(
        engine=Engine(
            name=EBPF,
            loop=started.loop,
            counters=started.counters,
            sizes=started.sizes,
            apply=started.apply,
            flows=started.reports,
            find=started.find,
            tend=started.tend,
            tasks=started.tasks,
            take_keys=started.upkeep.take_keys,
        ),
        flows_of_vips=started.flows_of_vips,
    )


class _EbpfPlane:
    def __init__(
        self,
        services: Sequence[Service],
        limits: Limits,
        timeouts: Timeouts,
        site: Site,
        owned: ExitStack,
        *,
        adopt: bool,
    ) -> None:
        """What it takes from the host is left in ``owned``."""
        found = interfaces()
        bridge = IPv4Address(services[0].bridge)
        self._addresses = Addresses()
        self._addresses.take(services, found)
        self._services = {served.vip_index: served for served in services}
        self._logger = site.logger
        self._unknown_links: set[str] = set()
        tapped = tap_interfaces(found)
        self._tun = owned.enter_context(closing(Tun()))
        self._backends = owned.enter_context(closing(BackendTables()))
        journal = self._claim(services, bridge, site, owned)
        query = owned.enter_context(closing(SocketQuery()))
        directory = owned.enter_context(bpf_directory(site.state_dir / _DIRECTORY))
        self._residence = _residence(_plan(limits, bridge, directory, adopt=adopt), journal, site.logger)
        owned.callback(self._residence.leave if site.keep_flows else self._residence.remove)
        places = list(_places(self._tun, tapped))
        self._residence.load(
            {
                "tun_ifindex": self._tun.index,
                "resets_per_second": int(limits.resets_per_second),
                "open_idle_seconds": int(timeouts.idle),
            },
            {place.link_header_size for place in places},
        )
        self._use_maps(limits, query, journal, site)
        probes = self._publish(places)
        if not site.keep_flows:
            owned.callback(carried_over.remove, self._residence, journal)
        self._carried.leave_to_maps()
        self.loop.send(probes)

    def _claim(
        self, services: Sequence[Service], bridge: IPv4Address, site: Site, owned: ExitStack
    ) -> Journal:
        """Be the only packetbridge of these backends. Returns the journal, which is its alone, too."""
        name = of_packetbridge(bridge, ()).name
        owned.enter_context(closing(OwnedTable(name, "")))
        self._backends.add(backends_of(services))
        remove_leftovers()  # a killed packetbridge on the raw plane may have left a rule
        return owned.enter_context(closing(Journal(path_of(site.state_dir, bridge), site.logger)))

    def _use_maps(self, limits: Limits, query: SocketQuery, journal: Journal, site: Site) -> None:
        residence, services = self._residence, self._services
        self.upkeep = Upkeep(residence, site.keys)
        self._tombstones = HashMap(residence.map("tombstones"))
        self._flows = MapFlows(HashMap(residence.map("flows")), self._tombstones)
        self._open_flows = ArrayMap(residence.map("open_flows"))
        self._counters = PerCpuArray(residence.map("counters"))
        rows, backends = ArrayMap(residence.map("services")), HashMap(residence.map("backends"))
        self._served = ServedMaps(rows, backends, partial(forget, residence.program("forget_services")))
        self._passed_up = passed_up = PassedUp(services, self._flows, limits)
        questions = HashMap(residence.map("questions"))
        asking = Questions(questions, query, services, self._flows, passed_up.counters)
        self._carried = CarriedOver(
            journal, services, self._flows, passed_up.strangers, asking.existing, passed_up.counters
        )
        from_tun = Feed(self._tun, lambda *_: None, passed_up.receive)
        self.loop = PacketLoop(self._tun, [from_tun], passed_up, site.logger)
        self.tasks = (self.upkeep.run, asking.run, lambda: self._carried.run(self.loop.send))

    def _publish(self, places: Sequence[Place]) -> list[Packet]:
        """Put the programs to work. Returns what is to be sent then.

        What an earlier run serves goes on until its programs are replaced.
        """
        is_taken_over = self._residence.is_taken_over
        if not is_taken_over:
            self._serve()
        probes = self._carried.restore(time.monotonic(), self._logger)
        self._residence.publish(places)
        if is_taken_over:
            self._logger.info("the flows of an earlier run are carried on")
            self._serve()
        return probes

    def _serve(self) -> None:
        ended = self._served.serve(self._services.values())
        if ended:
            self._logger.warning("flows of VIPs that are gone are forgotten: %d", ended)

    def counters(self) -> Counts:
        counts = read_counts(self._counters, abi.Counter)
        counts.update(self._passed_up.counters)
        return {**counts, **loop_counters(self.loop, self._tun, ())}

    def sizes(self) -> Counts:
        return {
            "flows": len(self._flows),
            "tombstones": self._tombstones.count(),
            **self._passed_up.sizes,
            "map_bytes": self._residence.memory_bytes(),
        }

    def flows_of_vips(self) -> dict[int, int]:
        """As the programs count."""
        return {index: self._open_of_vip(index) for index in self._services}

    def reports(self) -> Iterator[FlowReport]:
        return reports(self._flows, self._services, time.monotonic(), wall_clock())

    def find(self, client: bytes, client_port: int, vip_index: int) -> FlowReport | None:
        served = self._services.get(vip_index)
        key = FLOW_ID.pack(FlowId(client, client_port.to_bytes(2, "big"), vip_index))
        row = self._flows.row(key)
        if served is None or row is None:
            return None
        return report_of(served, key, row, time.monotonic(), wall_clock())

    def apply(self, services: Sequence[Service]) -> None:
        """As `Engine.apply`."""
        refuse_changes(self._services.values(), services, self._open_of_vip)
        with ExitStack() as failing:
            failing.callback(self._backends.remove, self._backends.add(backends_of(services)))
            self._addresses.take(services, interfaces())
            failing.pop_all()
        self._services.clear()
        self._services.update({served.vip_index: served for served in services})
        self._serve()
        self._backends.keep(backends_of(services))

    def _open_of_vip(self, vip_index: int) -> int:
        return max(0, abi.OPEN_FLOWS.unpack(self._open_flows.lookup(vip_index)).open)

    def tend(self) -> list[str]:
        """As `Engine.tend`. Owner tables cannot be changed by others."""
        found = interfaces()
        said = self._addresses.look(found)
        if self._tun.restore():
            said.append(f"device {self._tun.name} had been changed: it is set up again")
        others = [each for each in open_interfaces(found) if each.index != self._tun.index]
        known, unknown = by_link_type(others)
        said += [text for text in unknown if text not in self._unknown_links]
        self._unknown_links = set(unknown)
        repaired = self._residence.tend(list(_places(self._tun, known)))
        return said + repaired if self._tun.exists else said  # without it, the daemon is about to end


def remove_left(site: Site, bridge: IPv4Address, journal: Journal) -> None:
    """What an earlier run with this plane left at work, before another plane takes its place."""
    pins = _pins(bridge, site.state_dir / _DIRECTORY)
    with closing(carried_over.maps_left(pins)) as maps:
        if residences.remove_left(pins):
            fate = "carried over" if maps.are_readable else "lost"
            site.logger.warning("programs of an earlier run are removed, its flows are %s", fate)
        maps.write_to(journal)


def _places(tun: Tun, tapped: Iterable[Interface]) -> Iterator[Place]:
    yield Place(tun.index, Direction.INGRESS, "ingress", _NO_LINK_HEADER)
    for interface in tapped:
        size = link_header_size(interface)
        yield Place(interface.index, Direction.INGRESS, "ingress", size)
        yield Place(interface.index, Direction.EGRESS, "egress", size)


def _residence(plan: Plan, journal: Journal, logger: logging.Logger) -> Residence:
    """Flows of an earlier run go into the journal if its maps cannot be used as they are."""
    with closing(carried_over.maps_left(plan.pins)) as maps:
        residence = Residence(plan, logger)
        if not residence.is_taken_over:
            maps.write_to(journal)
    return residence


def _plan(limits: Limits, bridge: IPv4Address, directory: Path, *, adopt: bool) -> Plan:
    entries = {"flows": limits.flows, "tombstones": limits.tombstones}
    return Plan(
        object_name=_OBJECT,
        identity=identity(
            entries,
            layouts=(*SHARED, *abi.STRUCTS),
            numbers=(PhaseNumber, abi.StateNumber, abi.StandingNumber, abi.Counter),
        ),
        layout=carried_over.LAYOUT,
        pins=_pins(bridge, directory),
        max_entries=entries,
        better_object=_ADOPTING if adopt and host.has_syn_cookies() else None,
    )


def _pins(bridge: IPv4Address, directory: Path) -> Path:
    return directory / f"packetbridge-{bridge.packed.hex()}"
