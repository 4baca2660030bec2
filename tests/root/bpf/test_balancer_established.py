"""Segments of flows and ICMP errors about them, by the programs as by the core; forgetting flows."""

from collections.abc import Iterator

import pytest
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Raw

from balancer.ebpf import abi
from tests.root.bpf.balancer_twin import LINK, REDIRECT, Twin
from tests.unit.balancer.scene import (
    ACK,
    CLIENT,
    FIN,
    GET,
    INDEX,
    PSH,
    RST,
    VIP,
    Client,
    connected,
    forwarded,
    packed,
)
from tests.unit.wire.packets import ip_checksum_error, tcp_checksum_error, with_field, with_ip_checksum

pytestmark = pytest.mark.root

BEHIND = len(GET)


@pytest.fixture
def scene() -> Iterator[Twin]:
    with Twin() as twin:
        yield twin


@pytest.mark.parametrize("tos", [0x00, 0x01, 0x02, 0x03, 0xFC, 0xB9])
@pytest.mark.parametrize("payload", [b"", b"x", b"y" * 1424])
def test_ordinary_data_goes_to_the_node_with_its_ecn_bits(scene: Twin, tos: int, payload: bytes) -> None:
    client = connected(scene)
    packet = client.segment(payload, at=BEHIND, ack=99, flags=ACK | PSH, tos=tos)
    assert scene.receive(packet) == [forwarded(packet, client.node_address())]
    (padded,) = scene.receive(packet + bytes(9))
    assert padded[: len(packet)] == forwarded(packet, client.node_address())
    assert scene.programs.counters["forward_plain"] == 2
    scene.check_tables()


@pytest.mark.parametrize("option", [("SAck", (5, 9)), (30, b"\x01\x02\x03"), ("NOP", None), (253, b"L3")])
def test_odd_options_are_left_as_they_are(scene: Twin, option: tuple[str | int, object]) -> None:
    client = connected(scene, stamps=False)
    packet = client.segment(b"data", at=BEHIND, more_options=(option,))
    assert scene.receive(packet) == [forwarded(packet, client.node_address())]


def test_wrong_checksums_stay_as_wrong(scene: Twin) -> None:
    client = connected(scene)
    packet = with_field(with_field(client.segment(b"data", at=BEHIND), 36, 0x4711), 10, 0x0815)
    (made,) = scene.receive(packet)
    assert tcp_checksum_error(made) == tcp_checksum_error(packet)
    assert ip_checksum_error(made) == ip_checksum_error(packet)


@pytest.mark.parametrize(
    ("ttl", "size", "ifindex", "decremented"),
    [(57, 100, 1, 1), (2, 100, 1, 1), (1, 100, 1, 0), (57, 1449, 1, 0), (57, 1448, 1, 1), (57, 100, 0, 0)],
)
def test_what_only_the_kernel_can_send_is_left_to_it_with_its_ttl(
    scene: Twin, ttl: int, size: int, ifindex: int, decremented: int
) -> None:
    client = connected(scene)
    address = packed(client.node_address())
    scene.programs.map("routes").update(address, abi.ROUTE.pack(abi.RouteRow(ifindex, address)))
    packet = with_ip_checksum(with_field(client.segment(b"x" * size, at=BEHIND), 8, ttl << 8 | 6))
    done = scene.programs.run(packet)
    made = done.packet[len(LINK) :]
    assert (done.verdict, made[8], ip_checksum_error(made)) == (REDIRECT, ttl - decremented, 0)
    assert scene.programs.counters["no_route"] == (not ifindex)


SIGNS = [
    [(BEHIND, b"", ACK | FIN)],
    [(BEHIND + 10, b"", ACK | FIN)],
    [(BEHIND + 10, b"", ACK | FIN), (BEHIND, b"x" * 10, ACK)],
    [(BEHIND, b"last", ACK | FIN | PSH), (BEHIND + 5, b"", ACK)],
    [(BEHIND, b"", ACK | FIN), (BEHIND, b"more", ACK)],
    [(BEHIND, b"", RST)],
    [(BEHIND, b"", RST), (BEHIND, b"", ACK)],
    [(BEHIND + 1, b"", RST | ACK)],
    [(BEHIND, b"", ACK | FIN), (BEHIND, b"", RST), (BEHIND + 1, b"", ACK)],
    [(BEHIND + (1 << 24), b"", ACK | FIN)],
    [(-5, b"late", ACK), (BEHIND + 100, b"gap", ACK)],
]


@pytest.mark.parametrize("isn", [0x1000_0000, 2**32 - 1 - BEHIND, 2**32 - 2 - BEHIND])
@pytest.mark.parametrize("segments", SIGNS)
def test_fin_and_rst_count_as_in_the_core(
    scene: Twin, segments: list[tuple[int, bytes, int]], isn: int
) -> None:
    client = connected(scene, isn=isn)
    for at, payload, flags in segments:
        packet = client.segment(payload, at=at, flags=flags)
        assert scene.receive(packet) == [forwarded(packet, client.node_address())]
        scene.check_tables()
        scene.pass_time(1.0)


@pytest.mark.parametrize(("flags", "idle"), [(ACK, 7500.0), (FIN | ACK, 60.0), (RST, 10.0)])
def test_idle_flow_is_swept_away_when_its_phase_allows(scene: Twin, flags: int, idle: float) -> None:
    client, other = connected(scene), connected(scene, port=50000)
    scene.pass_time(60.0)
    client.send(at=BEHIND, flags=flags)
    other.send(at=BEHIND)
    scene.pass_time(idle - 5.0)
    other.send(at=BEHIND)
    assert scene.programs.sweep() == abi.SweepResult(flows=2, expired=0)
    scene.now += 6.0
    scene.programs.set_time(scene.now)
    assert scene.programs.sweep() == abi.SweepResult(flows=1, expired=1)
    assert scene.programs.counters["flows_removed"] == 1


# ICMP errors


def icmp_error(
    client: Client, *, kind: int = 3, code: int = 4, tos: int = 0, cut: int = 28, source: str = VIP
) -> bytes:
    """About a packet from the VIP to the client, from a router."""
    about = IP(src=source, dst=CLIENT, len=1500, flags="DF") / TCP(
        sport=80, dport=client.port, seq=4711, flags="A"
    )
    message = ICMP(type=kind, code=code) / Raw(raw(about)[:cut])
    return bytes(raw(IP(src="198.51.100.1", dst=VIP, ttl=61, tos=tos, id=99) / message))


@pytest.mark.parametrize(("kind", "code"), [(3, 4), (3, 1), (11, 0), (12, 0)])
@pytest.mark.parametrize("tos", [0, 0xC2])
def test_icmp_error_goes_to_the_node_as_if_from_the_client(
    scene: Twin, kind: int, code: int, tos: int
) -> None:
    client = connected(scene)
    packet = icmp_error(client, kind=kind, code=code, tos=tos)
    expected = IP(packet)
    expected.src, expected.dst, expected.tos = CLIENT, client.node_address(), INDEX << 2 | tos & 3
    del expected.chksum
    assert scene.receive(packet) == [bytes(raw(expected))]
    assert scene.receive(packet + bytes(8)) == [bytes(raw(expected))]


@pytest.mark.parametrize(
    ("at", "word", "reason"),
    [(6, 0x2000, "fragment"), (2, 1500, "truncated"), (2, 50, "truncated"), (2, 19, "truncated")],
)
def test_icmp_error_that_is_not_whole_is_dropped_and_counted(
    scene: Twin, at: int, word: int, reason: str
) -> None:
    packet = with_ip_checksum(with_field(icmp_error(connected(scene)), at, word))
    assert scene.receive(packet) == []
    assert scene.programs.counters[f"dropped_{reason}"] == 1


def test_icmp_error_about_an_unknown_flow_is_dropped(scene: Twin) -> None:
    assert scene.receive(icmp_error(Client(scene))) == []
    assert scene.programs.counters["dropped_icmp_of_unknown_flow"] == 1
