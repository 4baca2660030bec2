"""Packets of no connection, packets that are none, and packets that are not the balancer's."""

import struct
from collections.abc import Iterator

import pytest
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from balancer.core.service import Limits
from tests.root.bpf.balancer_twin import SHOT, UNSPEC, Twin
from tests.unit.balancer.scene import ACK, CLIENT, FIN, GET, PSH, RST, SYN, VIP, Client, connected, reset_of
from tests.unit.wire.packets import with_field, with_ip_checksum

pytestmark = pytest.mark.root


@pytest.fixture
def scene() -> Iterator[Twin]:
    with Twin() as twin:
        yield twin


@pytest.mark.parametrize(
    ("payload", "flags", "at"),
    [(b"", ACK, 0), (b"data", ACK | PSH, 7), (b"", ACK | FIN, 0), (b"d" * 1399, ACK, -1)],
)
@pytest.mark.parametrize("check", [None, 0x1234])
def test_stranger_gets_an_intact_rst(
    scene: Twin, payload: bytes, flags: int, at: int, check: int | None
) -> None:
    client = Client(scene)
    client.server_isn = 0xDEAD_BEEF
    packet = client.segment(payload, at=at, flags=flags)
    assert scene.receive(packet if check is None else with_field(packet, 36, check)) == [reset_of(client)]


@pytest.mark.parametrize("flags", [RST, RST | ACK])
def test_rst_of_a_stranger_is_not_answered(scene: Twin, flags: int) -> None:
    assert Client(scene).send(flags=flags) == []


def test_resets_are_limited() -> None:
    limits = Limits(flows=10, verified=10, half_open=10, resets_per_second=10.0)
    with Twin(limits=limits) as scene:
        clients = [Client(scene, port=port) for port in range(50000, 50015)]
        assert sum(len(client.send()) for client in clients) == 10
        assert scene.programs.counters["resets_suppressed"] == 5


@pytest.mark.parametrize(
    "flags",
    [
        0,
        FIN,
        PSH,
        0x20,
        FIN | PSH,
        SYN | ACK,
        SYN | FIN,
        SYN | RST,
        SYN | RST | ACK,
        RST | FIN,
        RST | FIN | ACK,
    ],
)
def test_flags_of_no_state_are_dropped(scene: Twin, flags: int) -> None:
    client = connected(scene)
    assert client.send(b"x", at=len(GET), flags=flags) == []
    assert scene.programs.counters["dropped_bad_flags"] == 1
    scene.check_tables()


@pytest.mark.parametrize(
    ("at", "word", "reason"),
    [
        (6, 0x2000, "fragment"),
        (2, 19, "truncated"),
        (2, 30, "truncated"),
        (2, 0xFFFF, "truncated"),
        (32, 0x4010, "bad_data_offset"),
        (32, 0xF010, "bad_data_offset"),
    ],
)
@pytest.mark.parametrize("is_established", [False, True])
def test_what_is_no_whole_segment_is_dropped_and_counted(
    scene: Twin, at: int, word: int, reason: str, is_established: bool
) -> None:
    client = connected(scene) if is_established else Client(scene).connect()
    packet = client.segment(at=len(GET))
    assert scene.receive(with_ip_checksum(with_field(packet, at, word))) == []
    assert scene.programs.counters[f"dropped_{reason}"] == 1
    assert scene.receive(with_field(with_field(packet, at, word), 10, 0x4711)) == []


def test_ip_options_are_dropped_and_counted(scene: Twin) -> None:
    packet = Client(scene).syn()
    total = struct.pack(">H", len(packet) + 4)
    longer = b"\x46" + packet[1:2] + total + packet[4:20] + bytes(4) + packet[20:]
    assert scene.receive(with_ip_checksum(longer)) == []
    assert scene.receive(longer) == []
    assert scene.programs.counters["dropped_ip_options"] == 1
    assert scene.programs.counters["dropped_bad_ip_checksum"] == 1


def test_wrong_ip_checksum_is_dropped(scene: Twin) -> None:
    assert scene.receive(with_field(Client(scene).syn(), 10, 0x4711)) == []
    assert scene.programs.counters["dropped_bad_ip_checksum"] == 1


TO_VIP = IP(src=CLIENT, dst=VIP)
ABOUT_VIP = IP(src=VIP, dst=CLIENT) / TCP(sport=80, dport=49152)


@pytest.mark.parametrize(
    "packet",
    [
        TO_VIP / TCP(dport=81, flags="S"),
        TO_VIP / TCP(dport=81, flags="A") / Raw(GET),
        IP(src=CLIENT, dst="192.168.33.11") / TCP(dport=80, flags="S"),
        TO_VIP / UDP(dport=80) / Raw(bytes(40)),
        IP(src=CLIENT, dst=VIP, frag=2) / TCP(dport=80, flags="S"),
        TO_VIP / ICMP(type=8) / Raw(bytes(64)),
        TO_VIP / ICMP(type=5) / ABOUT_VIP,
        TO_VIP / ICMP(type=3, code=3) / IP(src=VIP, dst=CLIENT) / UDP(sport=80, dport=49152),
        TO_VIP / ICMP(type=3) / IP(src=VIP, dst=CLIENT) / TCP(sport=81, dport=49152),
        TO_VIP / ICMP(type=3) / IP(src="192.168.33.11", dst=CLIENT) / TCP(sport=80, dport=49152),
        TO_VIP / ICMP(type=3) / IP(src=VIP, dst=CLIENT, frag=2) / TCP(sport=80, dport=49152),
        IP(src=VIP, dst=CLIENT) / TCP(sport=80, flags="A"),
        IP(src=CLIENT, dst=VIP, proto=41) / Raw(bytes(40)),
        TO_VIP / Raw(b""),
    ],
)
def test_what_is_not_the_services_is_left_alone(scene: Twin, packet: IP) -> None:
    data = bytes(raw(packet))
    done = scene.programs.run(data)
    assert (done.verdict, done.packet[14:]) == (UNSPEC, data)
    assert not any(scene.programs.counters.values())


def test_first_fragment_to_the_service_is_the_services(scene: Twin) -> None:
    packet = with_ip_checksum(with_field(Client(scene).segment(GET), 6, 0x2000))
    assert scene.programs.run(packet).verdict == SHOT
