"""A balancer core with a clock to turn, clients that build their packets with scapy, and expected packets.

What is expected is built by scapy or packed here from the documented layouts, never by the code under test.
"""

import functools
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from scapy.compat import raw
from scapy.layers.inet import IP, TCP

from balancer.core.classify import check_flags, classify
from balancer.core.engine import BalancerCore
from balancer.core.loads import Loads
from balancer.core.machine import RULES
from balancer.core.service import DEFAULT_TIMEOUTS, Limits, Service, Services, Timeouts, make_nodes
from common.wire import handoff, offload, rewrite
from common.wire import segment as segments
from common.wire.errors import WireError
from common.wire.offload import NO_OFFLOAD, Offload, Packet
from tests.unit.wire.packets import (
    ACK,
    CLIENT,
    FIN,
    PSH,
    RST,
    SYN,
    VIP,
    Described,
    ScapyOption,
    built,
    siphash,
)

__all__ = ["ACK", "CLIENT", "FIN", "PSH", "RST", "SYN", "VIP"]

COOKIE_KEY, TAG_KEY = bytes(range(16)), bytes(range(16, 32))
WALL_SECONDS = 1_700_000_000
INDEX = 5
PORT = 80
NODES = {"node1": "192.168.33.21", "node2": "192.168.33.22", "node3": "192.168.33.23"}
WINDOW = 14240
GET = b"GET /film/1.ts HTTP/1.1\r\nHost: v\r\n\r\n"


def packed(address: str) -> bytes:
    return IPv4Address(address).packed


@functools.cache
def make_service(*names: str) -> Service:
    """All nodes are known; those named take connections, or without any name all."""
    weights = {name: int(name in (names or NODES)) for name in NODES}
    nodes, table = make_nodes(
        packed(VIP), PORT, INDEX, {name: (packed(NODES[name]), weight) for name, weight in weights.items()}
    )
    return Service(packed(VIP), PORT, INDEX, nodes, table)


class Scene:
    """A core behind an imitated shell: the plan is asked for first, then the state machine.

    Each packet is also held against the rules: they must know what it is, and where it may lead.
    """

    def __init__(
        self,
        *services: Service,
        limits: Limits | None = None,
        now: float = 1000.0,
        loads: Loads | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """Without ``services`` it is `make_service`'s."""
        self.now = now
        sign = functools.partial(handoff.sign, mac=functools.partial(siphash, TAG_KEY))
        cookie_mac = functools.partial(siphash, COOKIE_KEY)
        self.core = BalancerCore(
            Services(services or [make_service()]),
            cookie_mac,
            sign,
            lambda: WALL_SECONDS,
            limits,
            loads=loads,
            timeouts=timeouts,
        )

    def receive(self, packet: bytes, hints: Offload = NO_OFFLOAD) -> list[bytes]:
        return [made.data for made in self.receive_packet(Packet(packet, hints))]

    def receive_packet(self, packet: Packet) -> list[Packet]:
        buffer = bytearray(offload.emit(packet.offload) + packet.data + bytes(64))
        length = min(int.from_bytes(packet.data[2:4], "big"), len(packet.data))
        plan = self.core.plan(buffer, offload.SIZE, length, self.now)
        if plan is not None:
            rewrite.apply(plan, buffer, offload.SIZE)
            return [Packet(bytes(buffer[offload.SIZE : offload.SIZE + len(packet.data)]), packet.offload)]
        return self.receive_by_rule(packet)

    def receive_by_rule(self, packet: Packet) -> list[Packet]:
        try:
            segment = segments.parse_untrusted(packet)
            check_flags(segment)
        except WireError:
            return self.core.receive(packet, self.now)
        service = self.core.services.of_client(segment.key)
        if service is None:
            return self.core.receive(packet, self.now)
        connections = self.core._connections
        arrival = classify(connections, self.core._greeter, service, packet, segment, self.now)
        made = self.core.receive(packet, self.now)
        assert connections.state_of(segment.key) in RULES[arrival.state, arrival.event].outcomes
        return made

    def pass_time(self, seconds: float) -> list[bytes]:
        """Let time pass, the core being called whenever it wants to be."""
        end = self.now + seconds
        made: list[bytes] = []
        while (deadline := self.core.next_deadline() or math.inf) <= end:
            self.now = max(self.now, deadline)
            made += (packet.data for packet in self.core.on_timeout(self.now))
        self.now = end
        return made

    @property
    def counters(self) -> dict[str, int]:
        """Those above 0."""
        return {name: number for name, number in self.core.counters.items() if number}


@dataclass
class Client:
    """One TCP connection's client side. Numbers are relative: 0 is the first byte of either stream."""

    scene: Scene
    port: int = 49152
    isn: int = 0x1000_0000
    mss: int | None = 1460
    scale: int | None = 7
    sack: bool = True
    stamps: bool = True
    window: int = 502
    clock: int = 5_000
    vip: str = VIP
    service_port: int = PORT
    server_isn: int = field(default=0, init=False)
    echo: int = field(default=0, init=False)

    def syn_options(self) -> tuple[ScapyOption, ...]:
        options: list[ScapyOption] = []
        if self.mss is not None:
            options.append(("MSS", self.mss))
        if self.sack:
            options.append(("SAckOK", b""))
        if self.stamps:
            options.append(("Timestamp", (self.clock, 0)))
        if self.scale is not None:
            options += [("NOP", None), ("WScale", self.scale)]
        return tuple(options)

    def syn(self, *, flags: int = SYN, payload: bytes = b"", raw_options: bytes | None = None) -> bytes:
        return built(
            Described(
                server=self.vip,
                server_port=self.service_port,
                client_port=self.port,
                seq=self.isn,
                ack=0,
                flags=flags,
                window=64240,
                options=() if raw_options is not None else self.syn_options(),
                raw_options=raw_options,
                payload=payload,
            )
        )

    def segment(
        self,
        payload: bytes = b"",
        *,
        at: int = 0,
        ack: int = 0,
        flags: int = ACK,
        tos: int = 0,
        more_options: tuple[ScapyOption, ...] = (),
    ) -> bytes:
        stamps: list[ScapyOption] = [("NOP", None), ("NOP", None), ("Timestamp", (self.clock, self.echo))]
        return built(
            Described(
                server=self.vip,
                server_port=self.service_port,
                client_port=self.port,
                seq=(self.isn + 1 + at) % 2**32,
                ack=(self.server_isn + 1 + ack) % 2**32,
                flags=flags,
                window=self.window,
                options=(*(stamps if self.stamps else []), *more_options),
                payload=payload,
                tos=tos,
                ttl=57,
                identification=0x4D2,
            )
        )

    def greet(self) -> "Client":
        """Send the SYN and take the SYN-ACK."""
        (answer,) = self.scene.receive(self.syn())
        syn_ack = IP(answer)[TCP]
        self.server_isn = syn_ack.seq
        stamps = dict(syn_ack.options).get("Timestamp")
        self.echo = stamps[0] if stamps else 0
        return self

    def connect(self) -> "Client":
        """The whole handshake."""
        self.greet()
        assert self.scene.receive(self.segment()) == []
        return self

    def send(
        self, payload: bytes = b"", *, at: int = 0, ack: int = 0, flags: int = ACK, tos: int = 0
    ) -> list[bytes]:
        return self.scene.receive(self.segment(payload, at=at, ack=ack, flags=flags, tos=tos))

    @property
    def key(self) -> bytes:
        return packed(CLIENT) + packed(self.vip) + struct.pack(">HH", self.port, self.service_port)

    @property
    def node(self) -> str | None:
        """The name of the node that has the connection."""
        flow = self.scene.core._connections.flows.get(self.key)
        return flow and flow.node.name

    def node_address(self) -> str:
        assert self.node is not None
        return NODES[self.node]


def connected(scene: Scene, first: bytes = GET, **options: object) -> Client:
    """A client whose first payload, a whole request, has gone to a node."""
    make: Callable[..., Client] = Client
    client = make(scene, **options).connect()
    assert len(client.send(first)) == 1
    assert client.node is not None
    return client


def from_vip(
    client: Client,
    *,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: Iterable[ScapyOption] = (),
    payload: bytes = b"",
) -> bytes:
    """A packet of the balancer's own to the client, with absolute numbers."""
    return built(
        Described(
            server=client.vip,
            server_port=client.service_port,
            client_port=client.port,
            from_client=False,
            seq=seq % 2**32,
            ack=ack % 2**32,
            flags=flags,
            window=window,
            options=tuple(options),
            payload=payload,
        )
    )


def echoed(client: Client) -> tuple[ScapyOption, ...]:
    """The timestamps of an answer of ours to the client's newest segment."""
    if not client.stamps:
        return ()
    return (("NOP", None), ("NOP", None), ("Timestamp", (client.echo, client.clock)))


def reset_of(client: Client, *, ack: int = 0) -> bytes:
    """The RST that answers a segment which acknowledges ``ack``, a relative number."""
    return from_vip(client, seq=client.server_isn + 1 + ack, ack=0, flags=RST, window=0)


def forwarded(packet: bytes, node: str, index: int = INDEX) -> bytes:
    """A client's packet as the node gets it, both checksums computed anew."""
    made = IP(packet)
    made.dst = node
    made.tos = index << 2 | made.tos & 3
    del made.chksum
    del made[TCP].chksum
    return bytes(raw(made))


def handoff_packet(
    client: Client,
    payload: bytes,
    *,
    window: int,
    mss: int | None = None,
    scale: int | None = None,
    promised_scale: int = 7,
    sack: bool | None = None,
    fin: bool = False,
    ecn: int = 0,
    node: str | None = None,
    index: int = INDEX,
) -> bytes:
    """The handoff of docs/design.md section 4; what is not given is what the client offered."""
    address = node or client.node_address()
    scale = client.scale if scale is None else scale
    has_sack = client.sack if sack is None else sack
    area = struct.pack(">BBH", 2, 4, mss or client.mss or 536)
    area += b"\x04\x02" if has_sack else b"\x01\x01"
    area += struct.pack(">BBII", 8, 10, client.clock, client.echo) if client.stamps else b"\x01" * 10
    area += b"\x01" + (struct.pack(">BBB", 3, 3, scale) if scale is not None else b"\x01" * 3)
    flags = 0x80 * fin | (promised_scale if scale is not None else 0)
    area += struct.pack(">BBHBBH", 253, 16, 0x4C33, 0x11, flags, WALL_SECONDS % 2**16)
    numbers = struct.pack(">II", client.isn, client.server_isn)
    key = packed(CLIENT) + packed(address) + struct.pack(">HH", client.port, client.service_port)
    area += siphash(TAG_KEY, key + bytes((index,)) + numbers + area)
    return built(
        Described(
            server=address,
            server_port=client.service_port,
            client_port=client.port,
            seq=client.isn,
            ack=client.server_isn,
            flags=SYN,
            window=window,
            raw_options=area,
            payload=payload,
            tos=index << 2 | ecn,
        )
    )
