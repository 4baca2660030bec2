"""The packetbridge's conversations at random."""

import random

from common.bpf.abi import PhaseNumber
from packetbridge.core.flow import Flow
from packetbridge.core.machine import State
from packetbridge.ebpf import abi
from tests.conformance.lockstep import Damage, Lockstep
from tests.conformance.oracle import PREVIOUS_TAG_KEY, START, TAG_KEY, WALL
from tests.conformance.packetbridge.planes import Core, Programs
from tests.conformance.packetbridge.words import END, SERVICES, icmp_error, signed
from tests.root.bpf.arbitrary import option_area
from tests.unit.packetbridge.scene import (
    CI,
    LI,
    OTHER_BACKEND,
    OTHER_VIP,
    REQUEST,
    SI,
    SIZE,
    TS,
    B,
    X,
    add,
    from_backend,
    from_client,
    handoff,
    stamps,
    syn_ack,
)
from tests.unit.wire.packets import ACK, CLIENT, FIN, PSH, RST, SYN, Described, built

STEPS = 40
PORTS = (49_152, 50_000)
MOVES = (0, 5000)
"""Of both ISNs: one connection of a port and another."""
WAITS = ((0.5, 1.0, 4.0, 11.0, 50.0, 64.0, 7000.0, 600.0), (4.0, 12.0, 30.0, 62.0, 130.0, 7600.0, 3.0, 12.0))
FLAGS = (ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, 0, FIN, SYN | ACK, ACK | 0xC0)


class Conversation:
    def __init__(self, seed: int, programs: Programs) -> None:
        self._chance = random.Random(seed)
        self._core = Core(SERVICES)
        self._programs = programs
        programs.begin(SERVICES)
        self._both = Lockstep(self._core, programs, _is_reset)
        self._damage = Damage(self._chance, self._chance.choice((0, 8, 30)))
        self._waits = list(self._chance.choice(WAITS))
        self._now = START
        self._finishes = self._chance.random() < 0.2
        self._replaces = self._chance.random() < 0.5
        """Whether flows take each other's place."""

    def run(self) -> None:
        """`DisagreementError`."""
        self._begin()
        for _ in range(STEPS):
            chance = self._chance.random()
            if self._waits and chance < 0.1:
                if self._programs.waiting_bytes and self._waits[0] > 20:
                    return  # `Difference.LONG_WAIT`
                self._wait(self._waits.pop(0))
            elif chance < 0.35:
                self._both.arrive(self._damage(built(self._handoff()), is_checked=True))
            elif chance < 0.65:
                self._arrive(self._damage(self._from_balancer()))
            else:
                self._both.leave(self._damage(self._leaving()))
            self._compare_flows()

    def _begin(self) -> None:
        """Often with a flow as it ought to be, that has come more or less far."""
        arrive, leave = self._both.arrive, self._both.leave
        whole = [(arrive, signed(handoff(fin=self._finishes))), (leave, syn_ack())]
        if self._chance.random() < 0.6:
            whole.append((arrive, from_client()))
        whole += [(arrive, from_client(flags=END)), (leave, from_backend(flags=END, got=SIZE + 1))]
        for give, packet in whole[: self._chance.randrange(6)]:
            give(built(packet))

    def _wait(self, seconds: float) -> None:
        asked = sorted(self._both.wait(seconds))
        self._both.answer({key: self._chance.random() < 0.5 for key in asked})
        self._now += seconds

    def _arrive(self, packet: bytes) -> None:
        key = _key_of(packet)
        flow = key and self._core.core._flows.of_backend(key)
        # Difference.SEGMENT_OF_A_REPLACED_FLOW, and .LONGER_RETRANSMISSION where a FIN is contradicted
        may_wait = not self._replaces and not self._finishes
        if may_wait or not flow or flow.state is not State.OPENING:
            self._both.arrive(packet)

    def _handoff(self) -> Described:
        """A connection has one first payload: where a longer one comes the planes are not alike."""
        chance = self._chance
        moved = chance.choice(MOVES) if self._replaces else 0
        made = handoff(
            REQUEST,
            client_isn=add(CI, moved),
            balancer_isn=add(LI, moved),
            time=WALL + int(self._now - START) + chance.choice((-62, -30, -1, 0, 0, 0, 1)),
            timestamps=chance.choice(((TS, X), (TS, X), None, (2**32 - 1, 2**32 - 1))),
            sack=chance.random() < 0.5,
            scale=(scale := chance.choice((None, 0, 8, 8))),
            promised=0 if scale is None else chance.choice((0, 7)),
            fin=self._finishes,
            ecn=chance.randrange(4),
            window=chance.choice((0, 64_240)),
            index=chance.choice((1, 1, 1, 2, 3)),
        )._replace(client_port=chance.choice(PORTS))
        if chance.random() < 0.05:
            return made
        return signed(made, TAG_KEY if chance.random() < 0.9 else PREVIOUS_TAG_KEY)

    def _from_balancer(self) -> bytes:
        if self._chance.random() < 0.08:
            return self._icmp()
        chance = self._chance
        made = from_client(
            bytes(chance.choice((0, 0, 1, 8, 700))),
            sent=chance.choice((SIZE, SIZE, SIZE + 1, SIZE + 8, SIZE + 5000, 1 << 25)),
            got=chance.choice((0, 0, 5, 1000, 5000)),
            flags=self._flags(),
            window=chance.choice((0, 502, 65_535)),
            options=stamps(TS + chance.randrange(3), X + chance.choice((-2, 0, 0, 1, 2, 60))),
            ecn=chance.randrange(4),
        )
        if chance.random() < 0.1:
            made = made._replace(tos=chance.choice((2, 9)) << 2)
        return built(self._varied(made))

    def _leaving(self) -> bytes:
        chance = self._chance
        if chance.random() < 0.35:
            made = syn_ack(
                client_isn=add(CI, chance.choice((0, 0, 5000, 7))),
                isn=add(SI, chance.choice((0, 0, 0, 1))),
                scale=chance.choice((None, 0, 7, 14)),
                timestamps=chance.choice(((B, TS), (B, TS), (B, TS), None)),
            )
        else:
            made = from_backend(
                bytes(chance.choice((0, 0, 1, 700))),
                sent=chance.choice((-1, 0, 0, 1, 700)),
                got=chance.choice((0, SIZE, SIZE, SIZE + 1, 5000)),
                flags=self._flags(),
                window=chance.choice((0, 509, 65_535)),
                options=stamps(B + chance.randrange(3), TS),
                tos=chance.choice((0, 1, 0xBB)),
            )
        if chance.random() < 0.1:
            made = made._replace(server=OTHER_BACKEND)
        return built(self._varied(made))

    def _varied(self, made: Described) -> Described:
        chance = self._chance
        made = made._replace(client_port=chance.choice(PORTS))
        if chance.random() < 0.1:
            return made._replace(options=(), raw_options=option_area(chance))
        return made._replace(options=()) if chance.random() < 0.1 else made

    def _flags(self) -> int:
        return self._chance.choice(FLAGS[: self._chance.choice((2, 3, 5, len(FLAGS)))])

    def _icmp(self) -> bytes:
        chance = self._chance
        quoted = Described(
            server=chance.choice(("192.168.33.10", "192.168.33.10", OTHER_VIP)),
            client_port=chance.choice(PORTS),
            from_client=False,
            seq=add(LI, chance.choice((1, 5001))),
            payload=b"x" * 60,
        )
        return icmp_error(built(quoted)[: chance.choice((28, 60, 20))], tos=chance.choice((4, 4, 6, 8)))

    def _compare_flows(self) -> None:
        """What both know of each flow."""
        for service in SERVICES:
            for port in PORTS:
                key = service.backend_key(bytes(map(int, CLIENT.split("."))), port)
                core, programs = self._core.core._flows.of_backend(key), self._programs.row(key)
                known = core and _known_of(core), programs and _known_of_row(programs)
                if known[0] != known[1]:
                    self._both.fail(f"flow {known[0]}", f"flow {known[1]}")


def _key_of(packet: bytes) -> bytes | None:
    """Backend to client, of a tagged packet."""
    index = packet[1] >> 2
    served = [service for service in SERVICES if service.vip_index == index]
    return served[0].backend_key(packet[12:16], int.from_bytes(packet[20:22], "big")) if served else None


def _is_reset(packet: bytes) -> bool:
    """Of the VIP: `Difference.STRANGER_OF_A_SHORT_FLOW`."""
    return len(packet) == 40 and packet[33] == RST


def _known_of(flow: Flow) -> tuple[object, ...]:
    ends = (flow.client,) if flow.to_client is None else (flow.client, flow.backend)
    activity = tuple((end.next, end.phase.name, end.fin) for end in ends)
    spliced = () if flow.to_client is None else tuple(flow.splice)
    heard = max(int(end.seen) for end in ends)
    return (flow.state.name, tuple(flow.origin), activity, heard, spliced)


def _known_of_row(row: abi.FlowRow) -> tuple[object, ...]:
    is_opening = row.state == abi.StateNumber.OPENING
    ends = (row.client,) if is_opening else (row.client, row.backend)
    activity = tuple(
        (end.next, PhaseNumber(end.phase).name, end.fin if end.has_fin else None) for end in ends
    )
    spliced = () if is_opening else (row.seq_delta, row.value_delta, row.backend_shift, row.client_shift)
    origin = (row.client_isn, row.balancer_isn, row.time)
    heard = max(end.seen for end in ends)
    return (abi.StateNumber(row.state).name, origin, activity, heard, spliced)
