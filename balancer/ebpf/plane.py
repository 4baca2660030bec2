"""The eBPF data plane of the balancer: programs at the interfaces, and a core for what they pass up.

The programs answer SYNs, read ordinary request lines, hand off and forward. They pass up, through the TUN,
all packets of the connections that they leave to Python, and mark these in the map `claims`. The core that
gets them is that of the raw plane, and its tables are the programs' maps; so it does not matter for any other
packet which of both sees it.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from balancer.core.engine import BalancerCore
from balancer.core.flow_table import HALF_OPEN_SECONDS, Tables
from balancer.core.service import Limits, Service, Services, Timeouts
from balancer.ebpf import abi
from balancer.ebpf.claim import only_balancer
from balancer.ebpf.loads import MapLoads
from balancer.ebpf.passed_up import PassedUp
from balancer.ebpf.routes import NodeRoutes
from balancer.ebpf.services import PublishedServices
from balancer.ebpf.serving import Serving
from balancer.ebpf.tables import MapFlowTable, MapHalfOpenTable, MapVerifiedTable
from balancer.engine import BalancerEngine
from common import keyring
from common.bpf import keys as bpf_keys
from common.bpf import residence as residences
from common.bpf.abi import SHARED, PhaseNumber
from common.bpf.attach import Direction
from common.bpf.counts import add_counts
from common.bpf.forget import forget
from common.bpf.maps import ArrayMap, HashMap, MapOfMaps, PerCpuArray
from common.bpf.mounting import bpf_directory
from common.bpf.residence import Place, Plan, Residence, identity
from common.bpf.run import run_syscall
from common.bpf.upkeep import Upkeep
from common.config import EBPF
from common.daemon import loop_counters
from common.dataplane import Feed, PacketLoop, wall_clock
from common.engine import Engine, Site
from common.net.interfaces import Interface, interfaces, open_interfaces, tap_interfaces
from common.net.packet_socket import by_link_type, link_header_size
from common.net.tun import Tun
from common.net.watch import NetworkWatch

CLAIMS_PER_SECOND = 2000
"""Connections that Python is made to take care of; of more the node is chosen by their 4-tuple."""
_DIRECTORY = "bpf"


def start(
    services: Sequence[Service], limits: Limits, timeouts: Timeouts, site: Site, owned: ExitStack
) -> BalancerEngine:
    owned.enter_context(only_balancer(site.state_dir))
    tapped = tap_interfaces(interfaces())
    tun = owned.enter_context(closing(Tun()))
    watch = owned.enter_context(closing(NetworkWatch()))
    directory = owned.enter_context(bpf_directory(site.state_dir / _DIRECTORY))
    residence = Residence(_plan(limits, directory), site.logger)
    owned.callback(residence.leave if site.keep_flows else residence.remove)
    places = _places(tapped)
    constants = _constants(residence.secret, tun, limits, timeouts)
    residence.load(constants, {place.link_header_size for place in places})
    upkeep = Upkeep(residence, site.keys)
    known, routes = Services(), NodeRoutes(HashMap(residence.map("routes")), ())
    flows = MapFlowTable(HashMap(residence.map("flows")), known)
    tables = _tables(residence, flows, known, timeouts)
    core = _core(residence, known, limits, timeouts, tables, site)
    serving = owned.enter_context(closing(_serving(residence, core, routes, site)))
    serving.apply(services)
    mark = partial(run_syscall, residence.program("mark_routes"))
    passed_up = PassedUp(core, tables, HashMap(residence.map("claims")))
    loop = PacketLoop(tun, [Feed(tun, lambda *_: None, passed_up.receive)], passed_up, site.logger)
    counters = PerCpuArray(residence.map("counters"))
    residence.publish(places)
    if residence.is_taken_over:
        site.logger.info("the flows of an earlier run are carried on")
    engine = Engine[Service](
        name=EBPF,
        loop=loop,
        counters=lambda: {
            **add_counts(core.counters, counters, abi.Counter),
            **loop_counters(loop, tun, ()),
        },
        sizes=lambda: {**core.sizes, "map_bytes": residence.memory_bytes()},
        apply=serving.apply,
        flows=lambda: core.flows(time.monotonic()),
        find=lambda client, port, vip_index: core.find(client, port, vip_index, time.monotonic()),
        tend=_Tending(residence, tun).tend,
        tasks=(upkeep.run, lambda: routes.follow(watch, serving.follow_mtu, mark), passed_up.patrol),
        take_keys=upkeep.take_keys,
    )
    return BalancerEngine(
        engine,
        core.loads,
        lambda vip_index, node: serving.forget_node(flows, vip_index, node),
    )


def remove_left(site: Site) -> None:
    """What an earlier run with this plane left at work, before another plane takes its place.

    `HostError` where that run has not ended.
    """
    with only_balancer(site.state_dir):
        if residences.remove_left(_pins(site.state_dir / _DIRECTORY)):
            site.logger.warning("programs of an earlier run are removed, its flows are lost")


class _Tending:
    def __init__(self, residence: Residence, tun: Tun) -> None:
        self._residence = residence
        self._tun = tun
        self._unknown: set[str] = set()
        """What has been said of interfaces on which no program can run."""

    def tend(self) -> list[str]:
        """As `Engine.tend`."""
        others = [each for each in open_interfaces(interfaces()) if each.index != self._tun.index]
        known, unknown = by_link_type(others)
        said = [text for text in unknown if text not in self._unknown]
        self._unknown = set(unknown)
        said += self._residence.tend(_places(known))
        if self._tun.restore():
            said.append(f"somebody has changed the device {self._tun.name}: it is as it was")
        return said


def _places(tapped: Sequence[Interface]) -> list[Place]:
    return [Place(each.index, Direction.INGRESS, "ingress", link_header_size(each)) for each in tapped]


def _constants(secret: bytes, tun: Tun, limits: Limits, timeouts: Timeouts) -> Mapping[str, int]:
    """``secret`` is the key of the SYN cookies."""
    cookie_low, cookie_high = bpf_keys.halves(secret)
    return {
        "tun_ifindex": tun.index,
        "cookie_key_low": cookie_low,
        "cookie_key_high": cookie_high,
        "claims_per_second": CLAIMS_PER_SECOND,
        "resets_per_second": int(limits.resets_per_second),
        "open_idle_seconds": int(timeouts.idle),
        "verified_seconds": int(timeouts.verified),
    }


def _tables(residence: Residence, flows: MapFlowTable, services: Services, timeouts: Timeouts) -> Tables:
    verified, half_open = HashMap(residence.map("verified")), HashMap(residence.map("half_open"))
    return Tables(
        flows,
        MapVerifiedTable(verified, services, timeouts.verified),
        MapHalfOpenTable(half_open, services, HALF_OPEN_SECONDS),
    )


def _core(
    residence: Residence,
    services: Services,
    limits: Limits,
    timeouts: Timeouts,
    tables: Tables,
    site: Site,
) -> BalancerCore:
    loads = MapLoads(
        HashMap(residence.map("nodes")),
        HashMap(residence.map("handed")),
        ArrayMap(residence.map("loads")),
        ArrayMap(residence.map("handed_total")),
    )
    mac = keyring.make_mac(residence.secret)
    return BalancerCore(services, mac, site.keys.sign, wall_clock, limits, tables, loads, timeouts)


def _serving(residence: Residence, core: BalancerCore, routes: NodeRoutes, site: Site) -> Serving:
    published = PublishedServices(HashMap(residence.map("services")), MapOfMaps(residence.map("tables")))
    forgetting = partial(forget, residence.program("forget_services"))
    return Serving(core, published, routes, forgetting, site.logger)


def _plan(limits: Limits, directory: Path) -> Plan:
    entries = {
        "flows": limits.flows,
        "verified": limits.verified,
        "half_open": limits.half_open,
        "claims": limits.collecting + limits.answered,
    }
    return Plan(
        object_name="balancer",
        identity=identity(
            entries, layouts=(*SHARED, *abi.STRUCTS), numbers=(PhaseNumber, abi.Counter, abi.ChoiceNumber)
        ),
        pins=_pins(directory),
        max_entries=entries,
    )


def _pins(directory: Path) -> Path:
    return directory / "balancer"
