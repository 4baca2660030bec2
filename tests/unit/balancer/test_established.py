"""Ordinary data of a flow, by its plan and by the rules; ICMP errors; when a flow is forgotten."""

import pytest
from hypothesis import given
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Raw

from balancer.core.engine import BalancerCore
from common.wire import offload, rewrite
from common.wire.offload import Offload, Packet
from tests.unit.balancer.scene import (
    ACK,
    CLIENT,
    FIN,
    GET,
    INDEX,
    PSH,
    RST,
    SYN,
    VIP,
    Client,
    Scene,
    connected,
    forwarded,
    reset_of,
)
from tests.unit.wire.packets import (
    ScapyOption,
    ip_checksum_error,
    quickly,
    scapy_options,
    tcp_checksum_error,
    u8,
    with_field,
    with_ip_checksum,
    with_partial_checksum,
)

BEHIND = len(GET)


def plan_of(core: BalancerCore, packet: bytes, now: float) -> rewrite.Rewrite | None:
    return core.plan(bytearray(10) + packet + bytes(64), 10, len(packet), now)


def by_plan(scene: Scene, packet: Packet) -> bytes:
    buffer = bytearray(offload.emit(packet.offload) + packet.data + bytes(64))
    plan = scene.core.plan(buffer, 10, len(packet.data), scene.now)
    assert plan is not None
    rewrite.apply(plan, buffer, 10)
    return bytes(buffer[10 : 10 + len(packet.data)])


@given(options=scapy_options, tos=u8)
@quickly
def test_plan_and_rules_give_the_bytes_that_scapy_gives(options: tuple[ScapyOption, ...], tos: int) -> None:
    client = connected(Scene(), stamps=False)
    packet = client.segment(b"data", at=BEHIND, ack=9, flags=ACK | PSH, tos=tos, more_options=options)
    expected = forwarded(packet, client.node_address())
    assert by_plan(client.scene, Packet(packet)) == expected
    assert client.scene.receive_by_rule(Packet(packet)) == [Packet(expected)]


@pytest.mark.parametrize("error", [1, 0x8000, 0xFFFE])
def test_wrong_checksum_stays_exactly_as_wrong_by_plan_and_by_rule(error: int) -> None:
    client = connected(Scene())
    packet = client.segment(b"data", at=BEHIND)
    damaged = with_field(packet, 36, (int.from_bytes(packet[36:38], "big") + error) % 0xFFFF)
    made = by_plan(client.scene, Packet(damaged))
    assert client.scene.receive_by_rule(Packet(damaged)) == [Packet(made)]
    assert tcp_checksum_error(made) == tcp_checksum_error(damaged) != 0
    assert ip_checksum_error(made) == 0


def test_partial_checksum_of_a_superpacket_is_moved_and_its_segmentation_kept() -> None:
    client = connected(Scene())
    payload = bytes(5000)
    hints = Offload(1, 1, 52, 1448, 20, 16)
    packet = Packet(with_partial_checksum(client.segment(payload, at=BEHIND)), hints)
    expected = with_partial_checksum(forwarded(client.segment(payload, at=BEHIND), client.node_address()))
    assert by_plan(client.scene, packet) == expected
    assert client.scene.receive_by_rule(packet) == [Packet(expected, hints)]


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | 0x20, ACK | 0x40 | 0x80, ACK | 0x100])
def test_plan_is_given_for_data_and_acknowledgments(flags: int) -> None:
    client = connected(Scene())
    assert plan_of(client.scene.core, client.segment(b"x", at=BEHIND, flags=flags), 1000.0) is not None
    assert plan_of(client.scene.core, client.segment(at=BEHIND, flags=flags), 1000.0) is not None


@pytest.mark.parametrize("flags", [SYN, ACK | SYN, ACK | FIN, ACK | RST, RST, FIN, 0, PSH])
def test_no_plan_is_given_where_flags_need_the_rules(flags: int) -> None:
    client = connected(Scene())
    assert plan_of(client.scene.core, client.segment(b"x", at=BEHIND, flags=flags), 1000.0) is None


def test_no_plan_is_given_for_the_first_payload_again_nor_for_unknown_flows() -> None:
    client = connected(Scene())
    assert plan_of(client.scene.core, client.segment(GET), 1000.0) is None
    assert plan_of(client.scene.core, client.segment(), 1000.0) is not None
    stranger = Client(client.scene, port=50000)
    assert plan_of(client.scene.core, stranger.segment(b"x"), 1000.0) is None


@pytest.mark.parametrize(
    ("at", "word"),
    [
        (0, 0x4600),
        (0, 0x6500),
        (6, 0x2000),
        (6, 0x0001),
        (8, 0x4011),
        (2, 39),
        (2, 1500),
        (32, 0x4010),
        (32, 0xF010),
    ],
    ids=["options", "version", "fragment", "last-fragment", "udp", "short", "long", "offset-4", "offset-15"],
)
def test_no_plan_is_given_for_odd_or_damaged_headers(at: int, word: int) -> None:
    client = connected(Scene())
    packet = with_ip_checksum(with_field(client.segment(at=BEHIND), at, word))
    assert plan_of(client.scene.core, packet, 1000.0) is None
    assert client.scene.core.receive(Packet(packet), 1000.0) == []
    assert sum(count for name, count in client.scene.counters.items() if name.startswith("dropped_")) == 1


def test_link_padding_is_not_sent_on() -> None:
    client = connected(Scene())
    packet = client.segment(at=BEHIND)
    assert client.scene.receive_by_rule(Packet(packet + bytes(6))) == [
        Packet(forwarded(packet, client.node_address()))
    ]


@pytest.mark.parametrize("flags", [FIN | ACK, RST, RST | ACK])
def test_fin_and_rst_are_forwarded_like_data(flags: int) -> None:
    client = connected(Scene())
    packet = client.segment(at=BEHIND, flags=flags)
    assert client.scene.receive(packet) == [forwarded(packet, client.node_address())]


# Idle times


def is_known_after(client: Client, seconds: float) -> bool:
    client.scene.pass_time(seconds)
    return client.node is not None


@pytest.mark.parametrize(
    ("flags", "idle"), [(ACK, 7500.0), (FIN | ACK, 60.0), (RST, 10.0), (RST | ACK, 10.0)]
)
def test_flow_is_forgotten_when_it_has_been_idle_for_its_time(flags: int, idle: float) -> None:
    client = connected(Scene())
    client.scene.pass_time(60.0)
    client.send(at=BEHIND, flags=flags)
    assert is_known_after(client, idle - 1.0)
    assert not is_known_after(client, 2.5)
    assert client.send(at=BEHIND) == [reset_of(client)]


def test_flow_that_was_reset_is_remembered_while_its_cookie_is_good() -> None:
    client = connected(Scene())
    client.send(at=BEHIND, flags=RST)
    assert is_known_after(client, 59.0)
    assert not is_known_after(client, 2.5)


def test_fin_on_the_first_payload_shortens_the_idle_time_too() -> None:
    client = Client(Scene()).connect()
    client.send(GET, flags=FIN | ACK)
    assert is_known_after(client, 59.0)
    assert not is_known_after(client, 3.0)


def test_fin_on_the_retransmitted_first_payload_shortens_the_idle_time_too() -> None:
    client = connected(Scene())
    client.send(GET, flags=FIN | ACK)
    assert not is_known_after(client, 62.0)


def test_half_closed_flow_lives_as_long_as_it_acknowledges() -> None:
    client = connected(Scene())
    client.send(at=BEHIND, flags=FIN | ACK)
    for _ in range(5):
        client.scene.pass_time(50.0)
        packet = client.segment(at=BEHIND + 1, ack=1)
        assert client.scene.receive(packet) == [forwarded(packet, client.node_address())]
    assert not is_known_after(client, 62.0)


@pytest.mark.parametrize("flags", [FIN | ACK, RST])
@pytest.mark.parametrize("at", [BEHIND - 2, 1 << 30, -(1 << 30), (1 << 31) - 1, BEHIND + (1 << 24)])
def test_forged_fin_or_rst_elsewhere_leaves_the_idle_time_alone(flags: int, at: int) -> None:
    client = connected(Scene())
    client.send(at=at, flags=flags)
    client.send(at=at + 1)
    assert is_known_after(client, 7400.0)


@pytest.mark.parametrize(("flags", "proof"), [(FIN | ACK, b"more"), (RST, b"more"), (RST, b"")])
def test_forged_fin_or_rst_at_the_right_number_is_undone_by_the_next_packet(flags: int, proof: bytes) -> None:
    client = connected(Scene())
    client.send(at=BEHIND, flags=flags)
    client.send(proof, at=BEHIND)
    assert is_known_after(client, 7400.0)
    packet = client.segment(b"!", at=BEHIND + len(proof))
    assert plan_of(client.scene.core, packet, client.scene.now) is not None


def test_forged_segment_far_ahead_does_not_move_what_is_expected() -> None:
    client = connected(Scene())
    client.send(b"x", at=1 << 30)
    client.send(at=(1 << 30) + 1, flags=RST)
    assert is_known_after(client, 7400.0)
    client.send(at=BEHIND, flags=RST)
    assert not is_known_after(client, 12.0)


def test_fin_that_overtook_data_counts_when_its_end_is_acknowledged_from() -> None:
    client = connected(Scene())
    client.send(at=BEHIND + 100, flags=FIN | ACK)
    assert is_known_after(client, 100.0)
    client.send(at=BEHIND + 101)
    assert not is_known_after(client, 62.0)


def test_fin_that_came_before_the_start_counts_once_the_bytes_before_it_are_there() -> None:
    client = Client(Scene()).connect()
    client.send(at=len(GET), flags=FIN | ACK)
    client.send(GET[10:], at=10)
    client.send(GET[:10])
    assert not is_known_after(client, 62.0)


def test_expected_number_wraps_with_the_stream() -> None:
    client = connected(Scene(), isn=2**32 - 1 - BEHIND)
    client.send(b"x", at=BEHIND)
    client.scene.pass_time(60.0)
    client.send(at=BEHIND + 1, flags=RST)
    assert not is_known_after(client, 12.0)


# ICMP errors


def icmp_error(
    client: Client, *, kind: int = 3, code: int = 4, quoted: bytes | None = None, tos: int = 0
) -> bytes:
    """About a packet from the VIP to the client, from a router."""
    about = IP(src=VIP, dst=CLIENT, len=1500, flags="DF") / TCP(
        sport=80, dport=client.port, seq=4711, flags="A"
    )
    body = raw(about)[:28] if quoted is None else quoted
    message = (
        ICMP(type=kind, code=code, nexthopmtu=1400) if (kind, code) == (3, 4) else ICMP(type=kind, code=code)
    )
    return bytes(raw(IP(src="198.51.100.1", dst=VIP, ttl=61, tos=tos, id=99) / message / Raw(body)))


@pytest.mark.parametrize(("kind", "code"), [(3, 4), (3, 1), (3, 13), (11, 0), (12, 0)])
@pytest.mark.parametrize("tos", [0, 0xC2])
def test_icmp_error_about_a_flow_goes_to_its_node_as_if_from_the_client(
    kind: int, code: int, tos: int
) -> None:
    client = connected(Scene())
    packet = icmp_error(client, kind=kind, code=code, tos=tos)
    expected = IP(packet)
    expected.src, expected.dst, expected.tos = CLIENT, client.node_address(), INDEX << 2 | tos & 3
    del expected.chksum
    assert client.scene.receive(packet) == [bytes(raw(expected))]
    assert client.scene.receive(packet + bytes(8)) == [bytes(raw(expected))]
    assert client.scene.counters["forward_icmp"] == 2


def test_icmp_error_about_an_unknown_flow_is_dropped() -> None:
    scene = Scene()
    assert scene.receive(icmp_error(Client(scene))) == []
    assert scene.counters == {"dropped_icmp_of_unknown_flow": 1}


def test_icmp_that_is_no_error_or_quotes_no_tcp_is_dropped() -> None:
    client = connected(Scene())
    echo = bytes(raw(IP(src=CLIENT, dst=VIP) / ICMP(type=8) / Raw(bytes(64))))
    udp = bytearray(icmp_error(client))
    udp[28 + 9] = 17
    cut = icmp_error(client, quoted=bytes(20))
    for packet in (echo, bytes(udp), cut):
        assert client.scene.receive(packet) == []
    dropped = {name: count for name, count in client.scene.counters.items() if name.startswith("dropped_")}
    assert dropped == {
        "dropped_not_an_icmp_error": 1,
        "dropped_icmp_quotes_no_tcp": 1,
        "dropped_truncated": 1,
    }


@pytest.mark.parametrize(("at", "word", "reason"), [(6, 0x2000, "fragment"), (0, 0x4600, "ip_options")])
def test_icmp_error_in_fragments_or_with_ip_options_is_dropped(at: int, word: int, reason: str) -> None:
    client = connected(Scene())
    packet = with_ip_checksum(with_field(icmp_error(client), at, word))
    assert client.scene.receive(packet) == []
    assert client.scene.counters[f"dropped_{reason}"] == 1
