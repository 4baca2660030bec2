"""Packets of no connection, and packets that are none."""

import pytest

from balancer.core.service import Limits
from tests.unit.balancer.scene import (
    ACK,
    FIN,
    GET,
    PSH,
    RST,
    SYN,
    Client,
    Scene,
    connected,
    reset_of,
)
from tests.unit.wire.packets import with_field, with_ip_checksum


@pytest.mark.parametrize(
    ("payload", "flags", "at"),
    [(b"", ACK, 0), (b"data", ACK | PSH, 7), (b"", ACK | FIN, 0), (b"data", ACK, -1)],
)
def test_segment_of_an_unknown_flow_is_reset_as_the_vip(payload: bytes, flags: int, at: int) -> None:
    client = Client(Scene())
    client.server_isn = 0xDEAD_BEEF
    assert client.send(payload, at=at, flags=flags) == [reset_of(client)]
    assert client.scene.counters["resets_sent"] == 1


@pytest.mark.parametrize("flags", [RST, RST | ACK])
def test_rst_of_an_unknown_flow_is_not_answered(flags: int) -> None:
    client = Client(Scene())
    assert client.send(flags=flags) == []
    assert client.greet().send(flags=flags) == []
    assert client.send(at=5, flags=flags) == []
    assert "resets_sent" not in client.scene.counters


def test_resets_are_limited_and_what_is_suppressed_is_counted() -> None:
    scene = Scene(limits=Limits(resets_per_second=10.0))
    clients = [Client(scene, port=port) for port in range(50000, 50015)]
    assert sum(len(client.send()) for client in clients) == 10
    assert scene.counters["resets_suppressed"] == 5
    scene.pass_time(0.21)
    assert sum(len(client.send()) for client in clients) == 2


@pytest.mark.parametrize(
    "flags",
    [
        0,
        FIN,
        PSH,
        0x20,
        FIN | PSH | 0x20,
        SYN | ACK,
        SYN | FIN,
        SYN | RST,
        SYN | RST | ACK,
        RST | FIN,
        RST | FIN | ACK,
    ],
)
@pytest.mark.parametrize("established", [True, False])
def test_flags_of_no_state_are_dropped_and_counted(flags: int, established: bool) -> None:
    scene = Scene()
    client = connected(scene) if established else Client(scene)
    before = scene.core.sizes
    assert client.send(b"x", at=len(GET), flags=flags) == []
    assert scene.counters["dropped_bad_flags"] == 1
    assert scene.core.sizes == before


@pytest.mark.parametrize(
    ("at", "word", "reason"),
    [
        (0, 0x4600, "ip_options"),
        (0, 0x6500, "not_ipv4"),
        (0, 0x4400, "not_ipv4"),
        (6, 0x2000, "fragment"),
        (6, 0x0010, "fragment"),
        (8, 0x4011, "not_tcp"),
        (2, 19, "truncated"),
        (2, 30, "truncated"),
        (2, 0xFFFF, "truncated"),
        (32, 0x4010, "bad_data_offset"),
        (32, 0xF010, "bad_data_offset"),
    ],
)
def test_packet_that_is_no_whole_tcp_segment_is_dropped_and_counted(at: int, word: int, reason: str) -> None:
    client = Client(Scene()).connect()
    packet = with_ip_checksum(with_field(client.segment(), at, word))
    assert client.scene.receive(packet) == []
    assert client.scene.counters[f"dropped_{reason}"] == 1


@pytest.mark.parametrize("size", [0, 1, 19])
def test_packet_without_a_whole_ip_header_is_dropped_and_counted(size: int) -> None:
    scene = Scene()
    assert scene.receive(Client(scene).segment()[:size]) == []
    assert scene.counters == {"dropped_truncated": 1}


def test_wrong_ip_checksum_is_dropped_and_counted() -> None:
    client = Client(Scene())
    packet = client.syn()
    assert client.scene.receive(with_field(packet, 10, int.from_bytes(packet[10:12], "big") ^ 1)) == []
    assert client.scene.counters == {"dropped_bad_ip_checksum": 1}
