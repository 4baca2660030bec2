"""The eBPF data plane of the balancer: programs at the interfaces, and a core for what they pass up.

The programs answer SYNs, read ordinary request lines, hand off and forward. They pass up, through the TUN,
all packets of the connections that they leave to Python, and mark these in the map `claims`. The core that
gets them is that of the raw plane, and its tables are the programs' maps; so it does not matter for any other
packet which of both sees it.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from ipaddress import IPv4Address
from pathlib import Path

import trio

from balancer.core.engine import BalancerCore
from balancer.core.flow_table import Tables
from balancer.core.service import Limits, Service
from balancer.ebpf import abi
from balancer.ebpf.routes import NodeRoutes
from balancer.ebpf.tables import Keys, MapFlowTable, MapHalfOpenTable, MapVerifiedTable
from common import keyring
from common.bpf import keys as bpf_keys
from common.bpf import residence as residences
from common.bpf.abi import ENDPOINT, SHARED, Endpoint, PhaseNumber
from common.bpf.attach import Direction
from common.bpf.counts import read_counts
from common.bpf.maps import ArrayMap, HashMap, MapOfMaps, PerCpuArray, create_array
from common.bpf.mounting import bpf_directory
from common.bpf.residence import Place, Plan, Residence, identity
from common.bpf.upkeep import Upkeep
from common.config import EBPF
from common.daemon import loop_counters
from common.dataplane import Feed, PacketLoop, wall_clock
from common.engine import Engine, Site
from common.net.ownership import OwnedTable
from common.net.packet_socket import link_header_size
from common.net.tun import Tun
from common.net.watch import NetworkWatch
from common.wire.ipv4 import PROTOCOL_TCP, carries
from common.wire.offload import Packet
from common.wire.segment import FLOW_KEY_AT, FLOW_KEY_END, FlowKey

CLAIMS_PER_SECOND = 2000
"""Connections that Python is made to take care of; of more the node is chosen by their 4-tuple."""
_DIRECTORY = "bpf"
_PATROL_SECONDS = 1.0


class PassedUp:
    """The core with what the programs must be told after it: which connections are Python's no longer."""

    def __init__(self, core: BalancerCore, tables: Tables, claims: HashMap) -> None:
        self.next_deadline = core.next_deadline
        self._core = core
        self._tables = tables
        self._claims = claims
        self._keys = Keys(core.service)

    def receive(self, packet: Packet, now: float) -> list[Packet]:
        self._tables.verified.expire(now)
        self._tables.half_open.expire(now)
        packets = self._core.receive(packet, now)
        if carries(packet.data, PROTOCOL_TCP):
            self._release(packet.data[FLOW_KEY_AT:FLOW_KEY_END])
        return packets

    def on_timeout(self, now: float) -> list[Packet]:
        return self._core.on_timeout(now)

    async def patrol(self) -> None:
        """For ever: claims of connections that Python has forgotten, or never knew, are taken back."""
        before: set[tuple[bytes, bytes]] = set()
        while True:
            await trio.sleep(_PATROL_SECONDS)
            claimed = set(self._claims.items())
            for key, _ in claimed & before:
                self._release(self._keys.unpack(key))
            before = claimed

    def _release(self, key: FlowKey) -> None:
        if not self._core.owns(key):
            self._claims.delete(self._keys.pack(key))


def start(service: Service, node_mtu: int, limits: Limits, site: Site, owned: ExitStack) -> Engine:
    """``node_mtu`` is the smallest path MTU to any node, in bytes."""
    tun = owned.enter_context(closing(Tun()))
    owned.enter_context(closing(OwnedTable(site.intake.name, "")))  # who serves the VIP
    watch = owned.enter_context(closing(NetworkWatch()))
    directory = owned.enter_context(bpf_directory(site.state_dir / _DIRECTORY))
    residence = Residence(_plan(service, limits, directory), site.logger)
    owned.callback(residence.leave if site.keep_flows else residence.remove)
    sizes = {interface.index: link_header_size(interface) for interface in site.tapped}
    residence.load(_constants(residence.secret, tun, limits), sizes.values())
    upkeep = Upkeep(residence, site.keys)
    nodes = [IPv4Address(node.address) for node in service.nodes.values()]
    routes = NodeRoutes(HashMap(residence.map("routes")), nodes)
    publish_table(MapOfMaps(residence.map("tables")), service)
    write_service(HashMap(residence.map("services")), service, node_mtu)

    tables = _tables(residence, service)
    mac = keyring.make_mac(residence.secret)
    core = BalancerCore(service, mac, site.keys.sign, wall_clock, limits, tables)
    passed_up = PassedUp(core, tables, HashMap(residence.map("claims")))
    loop = PacketLoop(tun, [Feed(tun, lambda *_: None, passed_up.receive)], passed_up, site.logger)
    counters = PerCpuArray(residence.map("counters"))
    residence.publish([Place(index, Direction.INGRESS, "ingress", size) for index, size in sizes.items()])
    if residence.is_taken_over:
        site.logger.info("the flows of an earlier run are carried on")
    return Engine(
        name=EBPF,
        loop=loop,
        counters=lambda: {
            **(core.counters + read_counts(counters, abi.Counter)),
            **loop_counters(loop, tun, ()),
        },
        sizes=lambda: {**core.sizes, "map_bytes": residence.memory_bytes()},
        tasks=(upkeep.run, lambda: routes.follow(watch), passed_up.patrol),
        take_keys=upkeep.take_keys,
    )


def _constants(secret: bytes, tun: Tun, limits: Limits) -> Mapping[str, int]:
    """``secret`` is the key of the SYN cookies."""
    cookie_low, cookie_high = bpf_keys.halves(secret)
    return {
        "tun_ifindex": tun.index,
        "cookie_key_low": cookie_low,
        "cookie_key_high": cookie_high,
        "claims_per_second": CLAIMS_PER_SECOND,
        "resets_per_second": int(limits.resets_per_second),
    }


def _tables(residence: Residence, service: Service) -> Tables:
    return Tables(
        MapFlowTable(HashMap(residence.map("flows")), service),
        MapVerifiedTable(HashMap(residence.map("verified")), service),
        MapHalfOpenTable(HashMap(residence.map("half_open")), service),
    )


def remove_left(service: Service, site: Site) -> None:
    """What an earlier run with this plane left at work, before another plane takes its place."""
    if residences.remove_left(_pins(service, site.state_dir / _DIRECTORY)):
        site.logger.warning("programs of an earlier run are removed, its flows are lost")


def publish_table(tables: MapOfMaps, service: Service) -> None:
    """A new Maglev table in the place of the old one, at once: no packet sees half of it."""
    if service.table is None:
        return
    addresses = [service.nodes[name].address for name in service.table.names]
    slots = b"".join(addresses[slot] for slot in service.table.slots)
    inner = create_array("maglev", abi.SLOT_SIZE, len(service.table.slots))
    try:
        ArrayMap(inner).update_batch(slots)
        tables.publish(service.vip_index, inner)
    finally:
        os.close(inner)


def write_service(services: HashMap, service: Service, node_mtu: int) -> None:
    """Into map `services`, replaced as a whole."""
    endpoint = ENDPOINT.pack(Endpoint(service.vip, service.port.to_bytes(2, "big")))
    services.update(endpoint, abi.SERVICE.pack(service_row(service, node_mtu)))


def service_row(service: Service, node_mtu: int) -> abi.ServiceRow:
    return abi.ServiceRow(
        vip=service.vip,
        port=service.port.to_bytes(2, "big"),
        vip_index=service.vip_index,
        key_kind=abi.KEY_KINDS.get(service.key.kind, abi.KeyKind.UNREAD),
        hash_seed=service.hash_seed,
        key_argument=service.key.argument,
        target_limit=service.target_limit,
        max_payload=service.max_payload,
        node_mtu=node_mtu,
        promised_scale=service.promised_scale,
        non_http=abi.NonHttpNumber[service.non_http.name],
        has_table=service.table is not None,
    )


def _plan(service: Service, limits: Limits, directory: Path) -> Plan:
    entries = {
        "flows": limits.flows,
        "verified": limits.verified,
        "half_open": limits.half_open,
        "claims": limits.collecting + limits.answered,
    }
    made_for = (service.vip, service.port, service.vip_index, service.promised_scale, entries)
    return Plan(
        object_name="balancer",
        identity=identity(made_for, layouts=(*SHARED, *abi.STRUCTS), numbers=(PhaseNumber, abi.Counter)),
        pins=_pins(service, directory),
        max_entries=entries,
    )


def _pins(service: Service, directory: Path) -> Path:
    return directory / f"balancer-{service.vip.hex()}-{service.port}"
