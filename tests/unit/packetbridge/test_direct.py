"""What shares the backend's address with bridged flows."""

import pytest
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, UDP

from tests.unit.packetbridge.scene import Scene, from_backend
from tests.unit.wire.packets import (
    BACKEND,
    CLIENT,
    built,
    with_field,
    with_ip_checksum,
)


def with_ip_options(packet: bytes) -> bytes:
    """The packet with four bytes of options that mean nothing."""
    longer = (len(packet) + 4).to_bytes(2, "big")
    return with_ip_checksum(b"\x46" + packet[1:2] + longer + packet[4:20] + b"\1\1\1\0" + packet[20:])


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.settle()
    return made


@pytest.mark.parametrize(
    "packet",
    [
        built(from_backend(b"direct", tos=0xB8)._replace(client_port=50_000)),
        built(from_backend(b"ssh")._replace(server_port=22)),
        with_ip_options(built(from_backend(b"direct")._replace(client_port=50_000))),
        bytes(raw(IP(src=BACKEND, dst=CLIENT) / UDP(sport=8080, dport=49152) / b"datagram")),
        bytes(raw(IP(src=BACKEND, dst=CLIENT) / ICMP(type=0))),
        bytes.fromhex("60000000 0014 0640 2a06") + bytes(50),
        b"\x45",
    ],
    ids=["direct", "other_port", "ip_options", "udp", "echo_reply", "ipv6", "stump"],
)
def test_packet_of_no_flow_leaves_untouched(scene: Scene, packet: bytes) -> None:
    assert scene.backend(packet) == [packet]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (with_ip_checksum(with_field(built(from_backend(b"x" * 8)), 6, 0x2000)), "fragment"),
        (with_ip_checksum(with_field(built(from_backend(b"x" * 8)), 6, 0x00B9)), "fragment"),
        (with_ip_options(built(from_backend())), "ip_options"),
        (with_field(built(from_backend()), 32, 0x4010), "bad_data_offset"),
    ],
    ids=["first_fragment", "later_fragment", "ip_options", "data_offset"],
)
def test_odd_packet_of_a_known_flow_never_leaves(scene: Scene, packet: bytes, reason: str) -> None:
    assert scene.backend(packet) == []
    assert scene.counters[reason] == 1
