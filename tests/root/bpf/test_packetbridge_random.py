"""Packets at random, by a seed: the packetbridge's programs and its core agree on each."""

import random

import pytest

from common.bpf.abi import FlowId
from packetbridge.ebpf.abi import StateNumber
from tests.root.bpf.packetbridge_twin import BACKENDS, Bridges, Programs, signed
from tests.unit.packetbridge.scene import (
    CI,
    LI,
    NOP,
    SI,
    SIZE,
    TS,
    WALL,
    B,
    X,
    add,
    from_backend,
    from_client,
    handoff,
    stamps,
    syn_ack,
)
from tests.unit.wire.packets import ACK, FIN, PSH, RST, SYN, Described, ScapyOption, built, with_ip_checksum

pytestmark = pytest.mark.root

RUNS, STEPS = 50, 40
PORTS = (49152, 50_000)
STAMPS = (None, (TS, X), (2**32 - 1, 2**32 - 1))
FLAGS = (ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, 0, FIN, SYN | ACK)
IP_HEADER_AND_MORE = range(76)
TTL_AT = 8
UNSIGNED = {2, 3, *range(34, 38)}
"""Length, window and checksum: what is wrong there makes a handoff's TCP checksum wrong, and nothing else."""


def options(chance: random.Random, value: int, echo: int) -> tuple[ScapyOption, ...]:
    sack: tuple[ScapyOption, ...] = (NOP, NOP, ("SAck", (add(LI, 5), add(LI, 50))))
    usual = stamps(add(value, chance.randrange(3)), add(echo, chance.randrange(-1, 3)))
    return chance.choice([usual, usual, (), (*usual, *sack), (*usual[1:], NOP), sack])


def a_handoff(chance: random.Random) -> Described:
    """One connection has one payload: of a longer one of an opening flow the core makes two segments."""
    which = chance.choice((0, 0, 0, 5000))
    made = handoff(
        timestamps=chance.choice(STAMPS) if chance.random() < 0.4 else (TS, X),
        client_isn=add(CI, which),
        balancer_isn=add(LI, which),
        time=WALL + chance.choice((-61, -1, 0, 0, 1)),
        sack=chance.random() < 0.5,
        scale=chance.choice((None, 8, 8)),
        ecn=chance.randrange(4),
        index=chance.choice((1, 1, 2, 3)),
    )
    return signed(made) if chance.random() < 0.95 else made


def a_syn_ack(chance: random.Random) -> Described:
    return syn_ack(
        client_isn=add(CI, chance.choice((0, 0, 0, 5000, 7))),
        isn=add(SI, chance.choice((0, 0, 0, 1))),
        scale=chance.choice((None, 7, 9)),
        timestamps=chance.choice((None, (B, TS), (B, TS), (B, TS))),
    )


def a_segment(chance: random.Random) -> Described:
    payload = bytes(chance.randrange(9))
    flags, window = chance.choice(FLAGS[: chance.choice((2, 5, 8))]), chance.choice((0, 502, 65_535))
    moved = chance.choice((0, SIZE, SIZE, SIZE + 1, 1 << 24))
    if chance.random() < 0.5:
        echoed = options(chance, TS, X)
        return from_client(payload, sent=moved, flags=flags, window=window, options=echoed)
    sent = chance.choice((0, 1, 100))
    return from_backend(
        payload, sent=sent, got=moved, flags=flags, window=window, options=options(chance, B, TS)
    )


def some_packets(chance: random.Random, count: int) -> list[bytes]:
    makers = (a_handoff, a_syn_ack, a_segment, a_segment, a_segment)
    return [
        built(chance.choice(makers)(chance)._replace(client_port=chance.choice(PORTS))) for _ in range(count)
    ]


def damaged(chance: random.Random, packet: bytes) -> bytes:
    """One bit is wrong, the IP header's checksum mostly right: nothing that differs between the planes."""
    is_handoff = packet[33] == SYN
    at = chance.choice([at for at in IP_HEADER_AND_MORE if at < len(packet) and at != TTL_AT])
    if is_handoff and at in UNSIGNED:
        return packet
    changed = packet[:at] + bytes([packet[at] ^ 1 << chance.randrange(8)]) + packet[at + 1 :]
    return with_ip_checksum(changed) if chance.random() < 0.8 else changed


def is_early(programs: Programs, packet: bytes) -> bool:
    """Whether Python would let it wait, and so the core and the programs differ."""
    flow = programs.flow(FlowId(packet[12:16], packet[20:22], packet[1] >> 2))
    return flow is not None and flow.state == StateNumber.OPENING and not packet[33] & SYN


@pytest.mark.parametrize("seed", range(3))
def test_programs_and_core_agree_on_any_sequence_of_packets(bridge_programs: Programs, seed: int) -> None:
    chance = random.Random(seed)
    packets = some_packets(chance, 600)
    met: set[str] = set()
    for _ in range(RUNS):
        twins = Bridges(bridge_programs)
        begun = handoff(timestamps=chance.choice(STAMPS), time=WALL - 1)
        twins.open(begun, syn_ack(scale=chance.choice((None, 7))))
        for packet in chance.choices(packets, k=STEPS):
            given = damaged(chance, packet) if chance.random() < 0.15 else packet
            if packet[12:16] in BACKENDS:
                twins.backend(given)
            elif not is_early(bridge_programs, given):
                twins.balancer(given)
        met |= {name for name, number in bridge_programs.counts().items() if number}
    assert {
        "same_handoff",
        "newer_handoff",
        "new_echo",
        "syn_ack",
        "syn_ack_again",
        "strangers_passed_up",
    } <= met
