"""The whole topology in one process: client, balancer, nodes with packetbridge and server, and their lines.

    client ──▶ balancer ──▶ packetbridge ──▶ server      all by destination address, as the kernels route
      ▲                          │   ▲          │
      └──────────────────────────┘   └──────────┘

Everything that is chance comes from one seed, so that a run can be had again.
"""

import functools
import random
from collections.abc import Sequence
from typing import NamedTuple

import siphash24

from balancer.core.engine import BalancerCore
from balancer.core.service import Limits as BalancerLimits
from balancer.core.service import Node as BalancerNode
from balancer.core.service import Service as BalancerService
from balancer.core.service import Services as BalancerServices
from balancer.core.service import make_nodes
from common.hashing.maglev import LookupTable
from common.wire import handoff
from common.wire.handoff import Handoff
from common.wire.offload import Packet
from packetbridge.core.engine import PacketbridgeCore
from packetbridge.core.service import Service as BridgeService
from tests.sim.daemons import Balancer, Packetbridge
from tests.sim.endpoint import Profile
from tests.sim.host import Host, Listener
from tests.sim.http import Fetch, Served, Server, request
from tests.sim.link import Line
from tests.sim.segment import Segment, Socket, emit
from tests.sim.timeline import Timeline

CLIENT = bytes((203, 0, 113, 7))
ROUTER = bytes((203, 0, 113, 1))
VIPS = (bytes((192, 168, 33, 10)), bytes((192, 168, 33, 11)))
HTTP = 80
START = 5000.0
"""When the fake clock begins, and with it the balancer's clock of timestamps."""
EPOCH = 1_800_000_000 - int(START)

KEY = bytes(range(16))
PLAIN = Profile()
PROMISED = Profile(promised_window=10 * handoff.MAX_PAYLOAD, promised_mss=handoff.MAX_PAYLOAD + 12)
"""A server's profile: clients were promised this before they met it."""


class Latencies(NamedTuple):
    """Seconds one way."""

    client_to_balancer: float = 0.010
    balancer_to_node: float = 0.001
    node_to_client: float = 0.012
    backend: float = 0.0


USUAL = Latencies()


class Node:
    """A packetbridge and the server behind it, which listens at one address for each VIP."""

    def __init__(self, number: int) -> None:
        self.name = f"node{number + 1}"
        self.bridge = bytes((192, 168, 33, 20 + number))
        self.backends = tuple(bytes((192, 168, 33, 30 + 10 * index + number)) for index in range(len(VIPS)))
        self.served: list[Served] = []
        self.host: Host
        self.listeners: list[Listener] = []
        self.packetbridge: Packetbridge

    def take_from_server(self, packet: Packet) -> None:
        """Everything that leaves a backend address passes the packetbridge."""
        self.packetbridge.receive_from_backend(packet)

    def services(self) -> Sequence[BridgeService]:
        return [
            BridgeService(index + 1, vip, HTTP, self.bridge, backend, HTTP)
            for index, (vip, backend) in enumerate(zip(VIPS, self.backends, strict=True))
        ]


class Network:
    def __init__(
        self,
        seed: int = 1,
        nodes: int = 1,
        server: Profile = PROMISED,
        latencies: Latencies = USUAL,
        server_tick: int = 77_000_000,
        client_tick: int = 5_000_000,
        promised_scale: int = 7,
        limits: BalancerLimits | None = None,
        answer_delay: float = 0.0,
        skew: int = 0,
    ) -> None:
        """``skew``: seconds by which the nodes' wall clocks are ahead of the balancer's."""
        self.chance = random.Random(seed)
        self.timeline = timeline = Timeline(START)
        self.nodes = [Node(number) for number in range(nodes)]
        self.promised_scale, self.limits, self.skew = promised_scale, limits, skew
        self._next_port = 40_000

        self.client_to_balancer = Line(timeline, self.chance, latencies.client_to_balancer, self._to_vip)
        self.balancer_to_client = Line(timeline, self.chance, latencies.client_to_balancer, self._to_client)
        self.balancer_to_node = Line(timeline, self.chance, latencies.balancer_to_node, self._to_bridge)
        self.node_to_client = Line(timeline, self.chance, latencies.node_to_client, self._to_client)
        self.client_to_node = Line(timeline, self.chance, latencies.node_to_client, self._to_server)
        self.to_server = Line(timeline, self.chance, latencies.backend, self._to_server)

        self.client = Host(timeline, self.chance, "client", self._from_client, client_tick)
        self.client.expected_sources = set(VIPS)
        for node in self.nodes:
            node.host = Host(timeline, self.chance, node.name, node.take_from_server, server_tick)
            for backend in node.backends:
                application = functools.partial(Server, node.served, answer_delay)
                node.listeners.append(node.host.listen((backend, HTTP), application, server))
            self.start_packetbridge(node)
        self.balancers: dict[bytes, Balancer] = {}
        for index in range(len(VIPS)):
            self.start_balancer(index)

    # Daemons

    def start_balancer(self, index: int = 0, available: bool = True) -> None:
        """A new one, whose cookies have a new secret, in the place of the one there was."""
        vip = VIPS[index]
        if (old := self.balancers.get(vip)) is not None:
            old.stop()
        services = BalancerServices([self._balanced(index, self.nodes if available else [])])
        secret = self.chance.randbytes(16)
        core = BalancerCore(
            services, lambda data: _siphash(secret, data), _sign, self.wall_clock, self.limits
        )
        self.balancers[vip] = Balancer(self.timeline, self._from_balancer, core)

    def reload_balancer(self, nodes: Sequence[Node]) -> None:
        """New connections go to these nodes only."""
        self.balancer.core.serve([self._balanced(0, nodes)])

    def forget_node(self, node: Node) -> None:
        for packet in self.balancer.core.forget_node(1, node.bridge, self.timeline.now):
            self._from_balancer(packet)

    def _balanced(self, index: int, open_nodes: Sequence[Node]) -> BalancerService:
        weights = tuple((node.name, node.bridge, int(node in open_nodes)) for node in self.nodes)
        made, table = _nodes(index, weights)
        return BalancerService(VIPS[index], HTTP, index + 1, made, table, promised_scale=self.promised_scale)

    def start_packetbridge(self, node: Node) -> None:
        """One that knows nothing yet."""
        core = PacketbridgeCore(node.services(), _verify, lambda: self.wall_clock() + self.skew)
        node.packetbridge = Packetbridge(self.timeline, self._from_packetbridge, core, node.host.has_socket)

    def restart_packetbridge(self, node: Node) -> None:
        """Killed and started again, with the journal that it had kept."""
        node.packetbridge.stop()
        journal = node.packetbridge.journal
        self.start_packetbridge(node)
        node.packetbridge.restore(journal)

    def wall_clock(self) -> int:
        return EPOCH + int(self.timeline.now)

    @property
    def balancer(self) -> Balancer:
        return self.balancers[VIPS[0]]

    @property
    def node(self) -> Node:
        return self.nodes[0]

    @property
    def served(self) -> list[Served]:
        return [served for node in self.nodes for served in node.served]

    # Clients

    def fetch(
        self,
        path: str = "/object/5000",
        method: str = "GET",
        body: bytes = b"",
        *,
        writes: list[tuple[float, bytes]] | None = None,
        profile: Profile = PLAIN,
        vip: bytes = VIPS[0],
        port: int | None = None,
        isn: int | None = None,
        close: bool = True,
        half_closes: bool = False,
    ) -> Fetch:
        """Begin a connection: one request, or whatever is to be written."""
        if port is None:
            port = self._next_port
            self._next_port += 1
        whole = [(0.0, request(method, path, body, close))]
        heads = frozenset((0,)) if method == "HEAD" else frozenset[int]()
        fetch = Fetch(whole if writes is None else writes, half_closes, heads)
        fetch.connection = self.client.connect((CLIENT, port), (vip, HTTP), fetch, profile, isn)
        return fetch

    def finish(self, fetch: Fetch, seconds: float = 120.0) -> None:
        """Let time pass until the connection is over."""
        self.timeline.run(seconds, lambda: fetch.is_over)

    def run(self, seconds: float) -> None:
        self.timeline.run(seconds)

    def inject(self, segment: Segment) -> None:
        """Send from the client's host what none of its connections would send."""
        self._from_client(emit(segment))

    # What is to be seen afterwards

    @property
    def hosts(self) -> list[Host]:
        return [self.client, *(node.host for node in self.nodes)]

    def violations(self) -> list[str]:
        """Of all that the endpoints demand, damaged packets included."""
        found = [violation for host in self.hosts for violation in host.violations]
        return found + [f"{host.name}: {host.damaged} damaged" for host in self.hosts if host.damaged]

    def retransmissions(self) -> int:
        """Of data, FIN, SYN and SYN-ACK, on any side."""
        total = sum(host.syn_ack_retransmissions for host in self.hosts)
        for host in self.hosts:
            every_connection = [*host.connections.values(), *host.closed]
            total += sum(connection.sender.retransmissions for connection in every_connection)
        return total

    def keep_no_order(self) -> None:
        """Tell the endpoints that packets may overtake each other."""
        for host in self.hosts:
            host.keeps_order = False

    def handoffs(self) -> list[Packet]:
        """That the balancers have sent so far."""
        return [packet for _, packet in self.balancer_to_node.carried if is_handoff(packet)]

    # Routes

    def _from_client(self, packet: Packet) -> None:
        if destination_of(packet) in VIPS:
            self.client_to_balancer.send(packet)
        else:
            self.client_to_node.send(packet)

    def _from_balancer(self, packet: Packet) -> None:
        if destination_of(packet) == CLIENT:
            self.balancer_to_client.send(packet)
        else:
            self.balancer_to_node.send(packet)

    def _from_packetbridge(self, packet: Packet) -> None:
        if destination_of(packet) == CLIENT:
            self.node_to_client.send(packet)
        else:
            self.to_server.send(packet)

    def _to_vip(self, packet: Packet) -> None:
        self.balancers[destination_of(packet)].receive(packet)

    def _to_client(self, packet: Packet) -> None:
        self.client.receive(packet)

    def _to_bridge(self, packet: Packet) -> None:
        for node in self.nodes:
            if destination_of(packet) == node.bridge:
                node.packetbridge.receive_from_balancer(packet)

    def _to_server(self, packet: Packet) -> None:
        for node in self.nodes:
            if destination_of(packet) in node.backends:
                node.host.receive(packet)


def destination_of(packet: Packet) -> bytes:
    return packet.data[16:20]


def source_of(packet: Packet) -> bytes:
    return packet.data[12:16]


def flags_of(packet: Packet) -> int:
    return packet.data[33]


def has_payload(packet: Packet) -> bool:
    return len(packet.data) > 20 + (packet.data[32] >> 4) * 4


def is_handoff(packet: Packet) -> bool:
    """On the line from balancer to node."""
    return packet.data[9] == 6 and flags_of(packet) == 2


def backend_of(node: Node, index: int = 0) -> Socket:
    return (node.backends[index], HTTP)


@functools.cache
def _nodes(
    index: int, weights: tuple[tuple[str, bytes, int], ...]
) -> tuple[dict[str, BalancerNode], LookupTable | None]:
    """Made once for all simulations: building a lookup table takes longer than most of them."""
    addresses = {name: (bridge, weight) for name, bridge, weight in weights}
    return make_nodes(VIPS[index], HTTP, index + 1, addresses)


def _siphash(key: bytes, data: bytes) -> bytes:
    return bytes(siphash24.siphash24(data, key=key).digest())


def _sign(message: Handoff) -> Handoff:
    return handoff.sign(message, lambda data: _siphash(KEY, data))


def _verify(message: Handoff) -> bool:
    return handoff.sign(message, lambda data: _siphash(KEY, data)).tag == message.tag
