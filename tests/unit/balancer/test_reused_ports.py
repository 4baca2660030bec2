"""Another connection on the 4-tuple of one that still stands."""

from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP

from common.wire.offload import Packet
from tests.unit.balancer.scene import (
    ACK,
    FIN,
    GET,
    RST,
    Client,
    Scene,
    connected,
    forwarded,
    handoff_packet,
)

BEHIND = len(GET)
OTHER_GET = b"GET /other HTTP/1.1\r\n\r\n"
BAD_REQUEST = b"GET\r\n\r\n"


def successor(client: Client) -> Client:
    """The same port in a later life."""
    return replace(client, isn=0x7000_0000, scale=9, mss=1300)


def has_plan(client: Client, packet: bytes) -> bool:
    core, now = client.scene.core, client.scene.now
    return core.plan(bytearray(10) + packet + bytes(64), 10, len(packet), now) is not None


@pytest.fixture
def old() -> Client:
    return connected(Scene())


def test_syn_is_answered_and_the_flow_lives_on(old: Client) -> None:
    newer = successor(old)
    (syn_ack,) = old.scene.receive(newer.syn())
    assert (IP(syn_ack)[TCP].flags, IP(syn_ack)[TCP].ack) == ("SA", newer.isn + 1)
    packet = old.segment(b"data", at=BEHIND)
    assert old.scene.receive(packet) == [forwarded(packet, old.node_address())]
    assert old.send(GET) == [handoff_packet(old, GET, window=64256)]


def test_bare_ack_of_the_new_handshake_is_swallowed(old: Client) -> None:
    newer = successor(old).greet()
    assert newer.send() == []
    packet = old.segment(at=BEHIND, ack=1)
    assert old.scene.receive(packet) == [forwarded(packet, old.node_address())]


@pytest.mark.parametrize(
    ("at", "flags", "payload"),
    [(0, FIN | ACK, b""), (-1, ACK, b""), (-1, ACK, b"\0"), (0, RST | ACK, b""), (5, RST | ACK, b"")],
    ids=["fin", "probe", "probe-of-a-byte", "rst", "rst-elsewhere"],
)
def test_what_replaces_nothing_of_the_new_handshake_does_not_reach_the_old_node(
    old: Client, at: int, flags: int, payload: bytes
) -> None:
    newer = successor(old).greet()
    assert newer.send(payload, at=at, flags=flags) == []
    old.scene.pass_time(300.0)
    packet = old.segment(b"x", at=BEHIND)
    assert old.scene.receive(packet) == [forwarded(packet, old.node_address())]


@pytest.mark.parametrize("acked", [True, False])
def test_first_payload_of_the_new_handshake_replaces_the_flow(old: Client, acked: bool) -> None:
    newer = successor(old).greet()
    if acked:
        newer.send()
    made = newer.send(OTHER_GET)
    assert made == [handoff_packet(newer, OTHER_GET, window=65535)]
    assert old.scene.core.sizes["flows"] == 1
    packet = newer.segment(b"x", at=len(OTHER_GET))
    assert has_plan(newer, packet)
    assert newer.send(OTHER_GET) == made


def test_payload_of_the_new_handshake_may_come_in_pieces_and_out_of_order(old: Client) -> None:
    newer = successor(old).greet()
    assert newer.send(OTHER_GET[6:], at=6) == []
    assert old.node is None
    handed_over, rest = newer.send(OTHER_GET[:6])
    assert handed_over == handoff_packet(newer, OTHER_GET[:6], window=65535)
    assert rest == forwarded(newer.segment(OTHER_GET[6:], at=6), newer.node_address())


def test_forged_payload_of_a_handshake_that_never_was_is_data_of_the_flow(old: Client) -> None:
    newer = successor(old).greet()
    newer.server_isn ^= 1
    packet = newer.segment(OTHER_GET)
    assert old.scene.receive(packet) == [forwarded(packet, old.node_address())]


def test_without_a_syn_no_packet_is_taken_for_another_handshake(old: Client) -> None:
    elsewhere = Client(Scene(now=old.scene.now), isn=99).greet()
    packet = elsewhere.segment(OTHER_GET)
    assert old.scene.receive_by_rule(Packet(packet)) == [Packet(forwarded(packet, old.node_address()))]


def test_contested_flow_has_no_plan_until_the_cookie_of_the_syn_has_run_out(old: Client) -> None:
    packet = old.segment(b"data", at=BEHIND)
    assert has_plan(old, packet)
    old.scene.receive(successor(old).syn())
    assert not has_plan(old, packet)
    old.scene.pass_time(59.0)
    assert old.scene.receive(packet) == [forwarded(packet, old.node_address())]
    assert not has_plan(old, packet)
    old.scene.pass_time(1.0)
    assert old.scene.receive(packet) == [forwarded(packet, old.node_address())]
    assert has_plan(old, packet)


def test_packets_of_the_new_handshake_do_not_move_what_the_old_flow_expects(old: Client) -> None:
    newer = replace(successor(old), isn=old.isn + 50_000).greet()
    newer.send()
    old.send(at=BEHIND, flags=RST)
    old.scene.pass_time(61.0)
    assert old.node is None


def test_new_handshake_replaces_bytes_that_were_held_of_the_old_one() -> None:
    old = Client(Scene()).connect()
    old.send(b"GE")
    newer = successor(old).greet()
    assert newer.send() == []
    assert newer.send(OTHER_GET) == [handoff_packet(newer, OTHER_GET, window=65535)]
    assert old.scene.core._connections.collecting_bytes == 0
    assert old.scene.pass_time(1.0) == []


def test_new_handshake_replaces_a_connection_that_was_answered() -> None:
    old = Client(Scene()).connect()
    old.send(BAD_REQUEST)
    newer = successor(old).connect()
    assert old.scene.core.sizes["answered"] == 1
    assert newer.send(OTHER_GET) == [handoff_packet(newer, OTHER_GET, window=65535)]
    assert old.scene.core.sizes["answered"] == 0


@pytest.fixture
def twins() -> tuple[Client, Client]:
    """Two handshakes of one 4-tuple, both answered; the cookie alone knows of the first."""
    scene = Scene()
    first = Client(scene, stamps=False, mss=1411).greet()
    return first, Client(scene, stamps=False, mss=1333, isn=77, scale=2).greet()


def test_later_handshake_keeps_its_options_when_the_earlier_one_completes(
    twins: tuple[Client, Client],
) -> None:
    first, second = twins
    first.send()
    assert second.send(OTHER_GET) == [handoff_packet(second, OTHER_GET, window=502 << 2)]


def test_flow_whose_4_tuple_was_greeted_anew_before_its_payload_came_can_be_replaced(
    twins: tuple[Client, Client],
) -> None:
    first, second = twins
    handed_over = first.send(GET)
    first.scale, first.sack = None, False
    assert handed_over == [handoff_packet(first, GET, mss=1400, window=502)]
    assert second.send(OTHER_GET) == [handoff_packet(second, OTHER_GET, window=502 << 2)]


def test_late_syn_of_the_flow_itself_is_answered_and_changes_nothing(old: Client) -> None:
    assert len(old.scene.receive(old.syn())) == 1
    packet = old.segment(at=BEHIND, ack=1)
    assert old.scene.receive(packet) == [forwarded(packet, old.node_address())]
    assert old.send(GET) == [handoff_packet(old, GET, window=64256)]
