"""The rules as a whole: they fit the engine, and random traffic never leaves them."""

import random
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given

from balancer.core.classify import classify
from balancer.core.engine import BalancerCore
from balancer.core.machine import RULES, Action, Event, State
from balancer.core.service import Limits, Services
from common.wire import handoff, tcp
from common.wire.offload import Packet
from common.wire.segment import Segment, emit
from common.wire.tcp_options import Timestamps, emit_timestamps
from tests.unit.balancer.scene import (
    CLIENT,
    COOKIE_KEY,
    GET,
    PORT,
    TAG_KEY,
    VIP,
    Scene,
    connected,
    make_service,
    packed,
)
from tests.unit.wire.packets import built, described_packets, mutated, quickly, siphash, with_ip_checksum

SERVICE = make_service()._replace(max_payload=100)
LIMITS = Limits(
    half_open=4,
    verified=3,
    collecting=2,
    collecting_bytes=4000,
    answered=2,
    flows=3,
    resets_per_second=5.0,
)
PORTS = range(1, 6)
STREAMS = (GET, b"GET\r\n\r\n", b"\x16\x03\x01 hello", b"HEAD /" + b"a" * 900, b"GET /x HTTP/1.1\r\n" * 60)
FLAGS = (tcp.ACK, tcp.ACK, tcp.ACK | tcp.PSH, tcp.ACK | tcp.FIN, tcp.RST, tcp.RST | tcp.ACK)
NEAR = (0, 0, 0, 0, 1, 2, 3, 4, 7, -1, -2, 30, 900, 999, 1000, -(2**30), 2**24, 2**30)


def test_every_action_but_the_one_of_the_timer_is_carried_out_by_the_engine() -> None:
    core = BalancerCore(Services([SERVICE]), partial(siphash, COOKIE_KEY), lambda message: message, lambda: 0)
    assert set(core._actions) == set(Action) - {Action.GIVE_UP_KEY}
    assert {rule_.action for rule_ in RULES.values()} == set(Action)


def test_timeouts_alone_lead_to_giving_up_a_key_and_never_to_another_timer() -> None:
    timeouts = {state: rule_.action for (state, event), rule_ in RULES.items() if event is Event.TIMEOUT}
    assert timeouts == {
        State.VERIFIED: Action.FORGET,
        State.COLLECTING: Action.GIVE_UP_KEY,
        State.ESTABLISHED: Action.FORGET,
        State.ANSWERED: Action.FORGET,
    }


def test_rules_that_change_nothing_keep_the_state() -> None:
    for (state, _), (action, outcomes) in RULES.items():
        if action in (
            Action.IGNORE,
            Action.ANSWER_PROBE,
            Action.FORWARD,
            Action.HAND_OFF_AGAIN,
            Action.CONTEST,
        ):
            assert outcomes == (state,)
        if action in (Action.FORGET, Action.RESET):
            assert outcomes == (State.UNKNOWN,)


@dataclass
class Walk:
    """Segments near the numbers of real handshakes on a few ports, in any order, the clock running on."""

    chance: random.Random
    core: BalancerCore
    now: float = 1000.0
    isns: dict[int, int] = field(default_factory=dict)
    server_isns: dict[int, list[int]] = field(default_factory=dict)
    echoes: dict[int, int] = field(default_factory=dict)
    reached: set[tuple[State, Event]] = field(default_factory=set)

    def step(self) -> None:
        choice, port = self.chance.random(), self.chance.choice(PORTS)
        if choice < 0.1 or port not in self.isns:
            self.greet(port)
        elif choice < 0.9:
            self.send(port)
        else:
            self.now += self.chance.choice((0.001, 0.001, 0.06, 5.0, 11.0, 61.0, 310.0, 7600.0))
            self.core.on_timeout(self.now)
            deadline = self.core.next_deadline()
            assert deadline is None or deadline > self.now

    def greet(self, port: int) -> None:
        isn, stamped = self.chance.choice((5, 2**32 - 2, 70_000)), self.chance.random() < 0.5
        stamps = Timestamps(1, 0) if stamped else None
        syn = self.segment(port, isn, 0, tcp.SYN)._replace(options=emit_timestamps(stamps))
        (answer,) = self.receive(syn)
        self.isns[port] = isn
        self.server_isns[port] = [int.from_bytes(answer.data[24:28], "big"), *self.server_isns.get(port, [])][
            :2
        ]
        self.echoes.pop(port, None)
        if stamped:
            self.echoes[port] = int.from_bytes(answer.data[48:52], "big")

    def send(self, port: int) -> None:
        at = self.chance.choice(NEAR)
        ack = self.chance.choice((0, 0, 0, 0, 1, -1, 40, 300))
        stream = STREAMS[port - 1]
        size = self.chance.choice((0, 0, 1, 2, 3, 30, 1000))
        payload = stream[max(at, 0) :][:size] if at >= 0 else bytes(size)
        seq = (self.isns[port] + 1 + at) % 2**32
        answered = (self.chance.choice(self.server_isns[port]) + 1 + ack) % 2**32
        self.receive(self.segment(port, seq, answered, self.chance.choice(FLAGS), payload))

    def receive(self, segment: Segment) -> list[Packet]:
        core, connections = self.core, self.core._connections
        packet = emit(segment)
        arrival = classify(connections, core._greeter, SERVICE, packet, segment, self.now)
        self.reached.add((arrival.state, arrival.event))
        made = core.receive(packet, self.now)
        assert connections.state_of(segment.key) in RULES[arrival.state, arrival.event].outcomes
        self.check_tables()
        return made

    def check_tables(self) -> None:
        connections = self.core._connections
        for port in PORTS:
            key = flow_key(port)
            held = [connections.flows.get(key), connections.verified.get(key), connections.answered.get(key)]
            assert sum(entry is not None for entry in (*held, connections.collecting.get(key))) <= 1
        collecting = [connections.collecting.get(flow_key(port)) for port in PORTS]
        assert connections.collecting_bytes == sum(entry.size for entry in collecting if entry) <= 4000
        sizes = self.core.sizes
        assert {name: size for name, size in sizes.items() if size > getattr(LIMITS, name)} == {}

    def segment(self, port: int, seq: int, ack: int, flags: int, payload: bytes = b"") -> Segment:
        echo = self.echoes.get(port)
        return Segment(
            source=packed(CLIENT),
            destination=packed(VIP),
            source_port=port,
            destination_port=PORT,
            seq=seq,
            ack=ack,
            flags=flags,
            window=500,
            options=emit_timestamps(None if echo is None else Timestamps(2, echo)),
            payload=payload,
        )


def flow_key(port: int) -> bytes:
    return packed(CLIENT) + packed(VIP) + port.to_bytes(2, "big") + PORT.to_bytes(2, "big")


def walk(seed: int, steps: int) -> set[tuple[State, Event]]:
    sign = partial(handoff.sign, mac=partial(siphash, TAG_KEY))
    core = BalancerCore(Services([SERVICE]), partial(siphash, COOKIE_KEY), sign, lambda: 0, LIMITS)
    taken = Walk(random.Random(seed), core)
    for number in range(steps):
        if number % 500 == 400:
            core.serve([SERVICE._replace(table=None)])
        elif number % 500 == 0:
            core.serve([SERVICE])
        taken.step()
    return taken.reached


def test_random_traffic_stays_within_the_rules_and_comes_by_all_of_them() -> None:
    reached = set().union(*(walk(seed, 3000) for seed in range(10)))
    assert reached == {(state, event) for state, event in RULES if event is not Event.TIMEOUT}


@given(packet=mutated(described_packets.map(built)))
@quickly
def test_hostile_bytes_are_dropped_or_answered_and_never_raise(packet: bytes) -> None:
    scene = Scene()
    connected(scene)
    scene.receive(packet)
    scene.receive(with_ip_checksum(packet))


@pytest.mark.parametrize("protocol", [1, 6])
def test_hostile_bytes_for_a_flow_are_dropped_or_answered_and_never_raise(protocol: int) -> None:
    client = connected(Scene())
    chance = random.Random(protocol)
    packet = client.segment(b"data", at=len(GET))
    for _ in range(2000):
        damaged = bytearray(packet)
        damaged[9] = protocol
        for _ in range(3):
            damaged[chance.choice((*range(12), *range(24, len(packet))))] = chance.randrange(256)
        client.scene.receive(with_ip_checksum(bytes(damaged[: chance.randint(20, len(packet))])))
    assert sum(client.scene.core.counters.values()) > 100
