"""The eBPF data plane of the packetbridge: programs at the interfaces, and what they leave to Python.

The programs open, splice and end flows by themselves. They pass up, through the TUN, segments of flows that
they do not know or whose backend has not answered; what is sent back into the TUN arrives at them again, as
the TUN has a program too. Python also asks the kernel about idle flows.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from common.bpf import residence as residences
from common.bpf.abi import ENDPOINT, SHARED, Endpoint, PhaseNumber
from common.bpf.attach import Direction
from common.bpf.counts import read_counts
from common.bpf.maps import ArrayMap, HashMap, PerCpuArray
from common.bpf.mounting import bpf_directory
from common.bpf.residence import Place, Plan, Residence, identity
from common.bpf.upkeep import Upkeep
from common.config import EBPF
from common.daemon import loop_counters
from common.dataplane import Feed, PacketLoop
from common.engine import Engine, Site
from common.net import host
from common.net.ownership import Backend, OwnedTable, backend_name
from common.net.packet_socket import link_header_size
from common.net.routes import remove_leftovers
from common.net.sock_diag import SocketQuery
from common.net.tun import Tun
from packetbridge.core.service import Limits, Service
from packetbridge.ebpf import abi, carried_over
from packetbridge.ebpf.carried_over import CarriedOver
from packetbridge.ebpf.flows import MapFlows
from packetbridge.ebpf.passed_up import PassedUp
from packetbridge.ebpf.questions import Questions
from packetbridge.journal import Journal, path_of

_DIRECTORY = "bpf"
_NO_LINK_HEADER = 0
_OBJECT, _ADOPTING = "packetbridge", "packetbridge_adopt"


def start(
    services: Sequence[Service],
    backends: Sequence[Backend],
    limits: Limits,
    site: Site,
    owned: ExitStack,
    *,
    adopt: bool,
) -> Engine:
    """With ``adopt``, listeners are given connections without a handshake where the kernel can do that."""
    tun = owned.enter_context(closing(Tun()))
    journal = _claim(backends, site, owned)
    query = owned.enter_context(closing(SocketQuery()))
    directory = owned.enter_context(bpf_directory(site.state_dir / _DIRECTORY))
    residence = _residence(_plan(services, limits, site, directory, adopt=adopt), journal, site.logger)
    owned.callback(residence.leave if site.keep_flows else residence.remove)
    sizes = {interface.index: link_header_size(interface) for interface in site.tapped}
    residence.load(
        {"tun_ifindex": tun.index, "resets_per_second": int(limits.resets_per_second)},
        {*sizes.values(), _NO_LINK_HEADER},
    )

    upkeep = Upkeep(residence, site.keys)
    write_services(services, ArrayMap(residence.map("services")), HashMap(residence.map("backends")))
    by_index = {service.vip_index: service for service in services}
    tombstones = HashMap(residence.map("tombstones"))
    flows = MapFlows(HashMap(residence.map("flows")), tombstones)
    passed_up = PassedUp(by_index, flows, limits)
    questions = Questions(HashMap(residence.map("questions")), query, by_index, flows, passed_up.counters)
    carried = CarriedOver(journal, by_index, flows, passed_up.strangers, questions.exists, passed_up.counters)
    loop = PacketLoop(tun, [Feed(tun, lambda *_: None, passed_up.receive)], passed_up, site.logger)
    counters = PerCpuArray(residence.map("counters"))
    probes = carried.restore(time.monotonic(), site.logger)
    residence.publish(_places(tun, sizes))
    if not site.keep_flows:
        owned.callback(carried_over.remove, residence, journal)
    carried.leave_to_maps()
    loop.send(probes)
    if residence.is_taken_over:
        site.logger.info("the flows of an earlier run are carried on")
    return Engine(
        name=EBPF,
        loop=loop,
        counters=lambda: {
            **(passed_up.counters + read_counts(counters, abi.Counter)),
            **loop_counters(loop, tun, ()),
        },
        sizes=lambda: {
            "flows": len(flows),
            "tombstones": tombstones.count(),
            **passed_up.sizes,
            "map_bytes": residence.memory_bytes(),
        },
        tasks=(upkeep.run, questions.run, lambda: carried.run(loop.send)),
        take_keys=upkeep.take_keys,
    )


def _claim(backends: Sequence[Backend], site: Site, owned: ExitStack) -> Journal:
    """Be the only packetbridge that serves these backends. Returns the journal, which is its alone, too."""
    for subject in (site.intake.name, *map(backend_name, backends)):
        owned.enter_context(closing(OwnedTable(subject, "")))
    remove_leftovers()  # a killed packetbridge on the raw plane may have left a rule
    return owned.enter_context(closing(Journal(path_of(site.state_dir, site.intake.address), site.logger)))


def remove_left(site: Site, journal: Journal) -> None:
    """What an earlier run with this plane left at work, before another plane takes its place."""
    pins = _pins(site, site.state_dir / _DIRECTORY)
    with closing(carried_over.maps_left(pins)) as maps:
        if residences.remove_left(pins):
            fate = "carried over" if maps.are_readable else "lost"
            site.logger.warning("programs of an earlier run are removed, its flows are %s", fate)
        maps.write_to(journal)


def write_services(services: Sequence[Service], rows: ArrayMap, backends: HashMap) -> None:
    for service in services:
        port = service.backend_port.to_bytes(2, "big")
        row = abi.ServiceRow(
            vip=service.vip,
            bridge=service.bridge,
            backend=service.backend,
            vip_port=service.vip_port.to_bytes(2, "big"),
            backend_port=port,
            in_use=1,
        )
        rows.update(service.vip_index, abi.SERVICE.pack(row))
        index = service.vip_index.to_bytes(abi.INDEX_SIZE, "little")
        backends.update(ENDPOINT.pack(Endpoint(service.backend, port)), index)


def _places(tun: Tun, sizes: Mapping[int, int]) -> list[Place]:
    """``sizes`` of link headers, by interface."""
    return [
        Place(tun.index, Direction.INGRESS, "ingress", _NO_LINK_HEADER),
        *(Place(index, Direction.INGRESS, "ingress", size) for index, size in sizes.items()),
        *(Place(index, Direction.EGRESS, "egress", size) for index, size in sizes.items()),
    ]


def _residence(plan: Plan, journal: Journal, logger: logging.Logger) -> Residence:
    """Flows of an earlier run go into the journal if its maps cannot be used as they are."""
    with closing(carried_over.maps_left(plan.pins)) as maps:
        residence = Residence(plan, logger)
        if not residence.is_taken_over:
            maps.write_to(journal)
    return residence


def _plan(services: Sequence[Service], limits: Limits, site: Site, directory: Path, *, adopt: bool) -> Plan:
    entries = {"flows": limits.flows}
    return Plan(
        object_name=_OBJECT,
        identity=identity(
            sorted(services),
            entries,
            layouts=(*SHARED, *abi.STRUCTS),
            numbers=(PhaseNumber, abi.StateNumber, abi.Counter),
        ),
        layout=carried_over.LAYOUT,
        pins=_pins(site, directory),
        max_entries=entries,
        better_object=_ADOPTING if adopt and host.has_syn_cookies() else None,
    )


def _pins(site: Site, directory: Path) -> Path:
    return directory / f"packetbridge-{site.intake.address.packed.hex()}"
