"""The packetbridge's programs with flows that the backend's listener adopts, as soon as they are adopted.

A program that is run for a test cannot give a packet to a listener, so here the flows are put into the map.
"""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from common.bpf.abi import FLOW_ID, ActivityCell, FlowId, PhaseNumber
from packetbridge.ebpf.abi import FLOW, FlowRow, StateNumber
from tests.root.bpf.packetbridge_twin import (
    DROPPED,
    NOW,
    PASSED,
    REDIRECTED,
    SERVICES,
    Outcome,
    Programs,
    signed,
)
from tests.unit.packetbridge.scene import (
    CI,
    LI,
    NOP,
    REQUEST,
    SERVICE,
    TS,
    WALL,
    X,
    add,
    from_client,
    handoff,
    stamps,
)
from tests.unit.wire.packets import ACK, BACKEND, FIN, PSH, RST, SYN, VIP, Described, ScapyOption, built

pytestmark = pytest.mark.root

KEY = FlowId(bytes([203, 0, 113, 7]), (49152).to_bytes(2, "big"), 1)
SACK: tuple[ScapyOption, ...] = (NOP, NOP, ("SAck", (add(LI, 100), add(LI, 200))))
FRESH_SECONDS = 60


@pytest.fixture
def programs(bridge_programs: Programs) -> Programs:
    bridge_programs.begin(SERVICES)
    bridge_programs.set_time(NOW, WALL)
    return bridge_programs


@pytest.fixture
def listener() -> Iterator[None]:
    """At the backend's address, in the programs' namespace."""
    subprocess.run(["ip", "address", "add", f"{BACKEND}/32", "dev", "lo"], check=True, timeout=20)
    with closing(socket.create_server((BACKEND, SERVICE.backend_port))):
        yield
    subprocess.run(["ip", "address", "delete", f"{BACKEND}/32", "dev", "lo"], check=True, timeout=20)


def put(programs: Programs, state: StateNumber, client_phase: PhaseNumber = PhaseNumber.OPEN) -> None:
    """A flow whose first payload was REQUEST."""
    client = ActivityCell(add(CI, 1 + len(REQUEST)), 0, int(NOW), client_phase, 0)
    backend = ActivityCell(add(LI, 1), 0, int(NOW), PhaseNumber.OPEN, 0)
    programs.flows.update(
        FLOW_ID.pack(KEY), FLOW.pack(FlowRow(client, backend, CI, LI, WALL, 0, 0, 0, 0, 0, state))
    )


def state_of(programs: Programs) -> int | None:
    row = programs.flow(KEY)
    return None if row is None else row.state


def of_backend(payload: bytes = b"", flags: int = ACK, options: tuple[ScapyOption, ...] = ()) -> Described:
    """As the adopted socket says it."""
    return Described(
        server=BACKEND,
        server_port=SERVICE.backend_port,
        from_client=False,
        seq=add(LI, 1),
        ack=add(CI, 1 + len(REQUEST)),
        flags=flags,
        options=options or stamps(X + 1, TS),
        payload=payload,
    )


def at_backend(described: Described) -> Described:
    return described._replace(server=BACKEND, server_port=SERVICE.backend_port, tos=described.tos % 4)


def at_client(described: Described) -> Described:
    return described._replace(server=VIP, server_port=80)


@pytest.mark.parametrize("options", [stamps(TS + 1, X + 1), (), SACK, (*stamps(TS + 1, X + 1), *SACK)])
@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | FIN, RST])
def test_only_addresses_ports_and_dscp_of_the_clients_segments_change(
    programs: Programs, options: tuple[ScapyOption, ...], flags: int
) -> None:
    put(programs, StateNumber.ADOPTED)
    segment = from_client(b"more", options=options, flags=flags, ecn=2)
    assert programs.run("ingress", built(segment)) == Outcome(REDIRECTED, built(at_backend(segment)), [])


@pytest.mark.parametrize("options", [stamps(X + 1, TS), SACK])
@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | FIN, ACK | RST])
def test_only_source_and_dscp_of_the_backends_segments_change(
    programs: Programs, options: tuple[ScapyOption, ...], flags: int
) -> None:
    put(programs, StateNumber.ADOPTED)
    segment = of_backend(b"HTTP/1.1 200 OK\r\n", flags, options)
    marked = segment._replace(tos=0xB9)
    assert programs.run("egress", built(marked)) == Outcome(
        PASSED, built(at_client(segment._replace(tos=1))), []
    )


def test_a_service_that_has_its_backends_port_differs_in_addresses_alone(programs: Programs) -> None:
    programs.begin([SERVICE._replace(backend_port=80)])
    put(programs, StateNumber.ADOPTED)
    segment, answer = from_client(b"more"), of_backend(b"answer")._replace(server_port=80)
    expected = built(at_backend(segment)._replace(server_port=80))
    assert programs.run("ingress", built(segment)).packet == expected
    assert programs.run("egress", built(answer)).packet == built(at_client(answer))


def test_a_wrong_checksum_stays_as_wrong(programs: Programs) -> None:
    programs.begin([SERVICE._replace(backend_port=80)])
    put(programs, StateNumber.ADOPTED)
    right, wrong = (built(from_client(payload)) for payload in (b"right", b"wrong"))
    mixed = wrong[:36] + right[36:38] + wrong[38:]
    done = programs.run("ingress", mixed).packet
    expected = (
        built(at_backend(from_client(payload))._replace(server_port=80)) for payload in (b"right", b"wrong")
    )
    right_then, wrong_then = expected
    assert done == wrong_then[:36] + right_then[36:38] + wrong_then[38:]


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | FIN])
def test_a_flow_is_adopted_when_its_backend_has_said_something(programs: Programs, flags: int) -> None:
    put(programs, StateNumber.ADOPTING)
    said = of_backend(b"hello", flags)
    assert programs.run("egress", built(said)) == Outcome(PASSED, built(at_client(said)), [])
    assert state_of(programs) == StateNumber.ADOPTED


def test_the_handoff_again_is_plain_data_of_an_adopted_flow(programs: Programs) -> None:
    put(programs, StateNumber.ADOPTED)
    segment = from_client(REQUEST, sent=0, options=stamps(TS, X), flags=ACK | PSH, window=64240 >> 8)
    done = programs.run("ingress", built(signed(handoff())))
    identified = built(at_backend(segment))
    assert (done.verdict, done.packet[20:]) == (PASSED, identified[20:])
    assert done.packet[12:20] == identified[12:20]


# --- while nothing has come from the listener


@pytest.mark.usefixtures("listener")
def test_what_meets_the_listener_without_the_first_payload_waits_with_python(programs: Programs) -> None:
    put(programs, StateNumber.ADOPTING)
    segment = built(from_client(b"more"))
    assert programs.run("ingress", segment) == Outcome(REDIRECTED, segment, [])
    assert programs.run("ingress", segment, from_tun=True).verdict == DROPPED
    assert {name: programs.counts()[name] for name in ("early", "unadopted")} == {"early": 1, "unadopted": 1}


def test_what_does_not_meet_the_listener_goes_on(programs: Programs) -> None:
    put(programs, StateNumber.ADOPTING)
    segment = from_client(b"more")
    assert programs.run("ingress", built(segment)) == Outcome(REDIRECTED, built(at_backend(segment)), [])


@pytest.mark.usefixtures("listener")
def test_a_first_payload_that_cannot_be_given_again_gets_a_handshake(programs: Programs) -> None:
    put(programs, StateNumber.ADOPTING)
    done = programs.run("ingress", built(signed(handoff())))
    assert (done.verdict, done.packet[33]) == (PASSED, SYN)
    assert state_of(programs) == StateNumber.OPENING
    assert programs.counts()["adoption_in_vain"] == 1


@pytest.mark.usefixtures("listener")
def test_a_handoff_behind_the_clients_reset_is_a_replay(programs: Programs) -> None:
    put(programs, StateNumber.ADOPTING, PhaseNumber.RESET)
    assert programs.run("ingress", built(signed(handoff()))).verdict == DROPPED
    assert programs.counts()["replayed_handoff"] == 1


def test_a_handoff_that_nobody_adopts_is_forgotten_and_may_come_again(programs: Programs) -> None:
    put(programs, StateNumber.ADOPTING)
    programs.set_time(NOW + FRESH_SECONDS - 1, WALL + FRESH_SECONDS - 1)
    programs.sweep()
    assert state_of(programs) == StateNumber.ADOPTING
    programs.set_time(NOW + FRESH_SECONDS, WALL + FRESH_SECONDS)
    programs.sweep()
    assert state_of(programs) is None
    assert programs.run("ingress", built(signed(handoff()))).verdict == PASSED
    assert state_of(programs) == StateNumber.OPENING


# --- other connections


def test_a_later_handoff_replaces_an_adopted_flow(programs: Programs) -> None:
    put(programs, StateNumber.ADOPTED)
    done = programs.run("ingress", built(signed(handoff(client_isn=CI + 7777, balancer_isn=LI + 7777))))
    assert (done.verdict, done.packet[33]) == (PASSED, SYN)
    assert state_of(programs) == StateNumber.OPENING
    assert programs.run("ingress", built(signed(handoff()))).verdict == DROPPED
    assert programs.counts()["replayed_handoff"] == 1


def test_a_direct_connection_on_the_same_ports_ends_the_adopted_flow(programs: Programs) -> None:
    put(programs, StateNumber.ADOPTED)
    syn_ack = built(of_backend(flags=SYN | ACK)._replace(ack=42))
    assert programs.run("egress", syn_ack) == Outcome(PASSED, syn_ack, [])
    assert state_of(programs) is None
