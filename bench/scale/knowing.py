"""The programs, loaded apart from any daemon, with maps filled as the daemon fills them."""

from collections.abc import Callable

from balancer.ebpf import abi as balancer_abi
from bench.contestants import PORT
from bench.scale import population
from common.bpf.abi import ENDPOINT, Endpoint
from common.bpf.maps import ArrayMap, HashMap
from common.bpf.objects import BpfObject, object_path
from common.wire import handoff
from lab import Topology
from packetbridge.ebpf import abi as packetbridge_abi

LOOPBACK = 1
"""The interface in whose name the kernel runs programs, and by which the balancer's packets are to leave."""
MTU = 1500
TARGET_LIMIT = 8192
PORT_BYTES = PORT.to_bytes(2, "big")

Load = Callable[[Topology, int, int], BpfObject]
"""By topology, number of flows that are known, and for how many there is room. `BpfError`."""


def balancer(topology: Topology, flows: int, room: int) -> BpfObject:
    service, node = topology.service, topology.nodes[0].bridge
    loaded = BpfObject(
        object_path("balancer"), constants={"tun_ifindex": LOOPBACK}, max_entries={"flows": room}
    )
    row = balancer_abi.ServiceRow(
        vip=service.vip.packed,
        port=PORT_BYTES,
        vip_index=service.dscp,
        key_kind=balancer_abi.KeyKind.PATH,
        hash_seed=0,
        key_argument=0,
        target_limit=TARGET_LIMIT,
        max_payload=handoff.MAX_PAYLOAD,
        node_mtu=MTU,
        promised_scale=0,
        non_http=balancer_abi.NonHttpNumber.RESET,
        table=0,
    )
    endpoint = ENDPOINT.pack(Endpoint(service.vip.packed, PORT_BYTES))
    HashMap(loaded.map("services")).update(endpoint, balancer_abi.SERVICE.pack(row))
    route = balancer_abi.RouteRow(LOOPBACK, node.packed)
    HashMap(loaded.map("routes")).update(node.packed, balancer_abi.ROUTE.pack(route))
    population.fill(HashMap(loaded.map("flows")), population.balancer_row(node), service.dscp, flows)
    return loaded


def packetbridge(topology: Topology, flows: int, room: int) -> BpfObject:
    service, node = topology.service, topology.nodes[0]
    loaded = BpfObject(
        object_path("packetbridge"), constants={"tun_ifindex": LOOPBACK}, max_entries={"flows": room}
    )
    row = packetbridge_abi.ServiceRow(
        vip=service.vip.packed,
        bridge=node.bridge.packed,
        backend=node.backend.packed,
        vip_port=PORT_BYTES,
        backend_port=PORT_BYTES,
        in_use=1,
    )
    ArrayMap(loaded.map("services")).update(service.dscp, packetbridge_abi.SERVICE.pack(row))
    endpoint = ENDPOINT.pack(Endpoint(node.backend.packed, PORT_BYTES))
    index = service.dscp.to_bytes(packetbridge_abi.INDEX_SIZE, "little")
    HashMap(loaded.map("backends")).update(endpoint, index)
    population.fill(HashMap(loaded.map("flows")), population.packetbridge_row(), service.dscp, flows)
    return loaded
