"""ICMP errors about packets to the client."""

import pytest
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from tests.unit.packetbridge.scene import LI, SI, Scene, add, handoff
from tests.unit.wire.packets import (
    BACKEND,
    CLIENT,
    NODE,
    Described,
    built,
    with_field,
    with_ip_checksum,
    word,
)

ROUTER = "198.51.100.1"
LOST = Described(from_client=False, seq=add(LI, 5001), payload=b"x" * 1400, ttl=3, tos=0)
"""What the router could not pass on."""
SENT = LOST._replace(server=BACKEND, server_port=8080, seq=SI + 5001)
"""The same as the backend sent it."""
TOO_BIG = ICMP(type=3, code=4, nexthopmtu=1300)


def error(
    quoted: bytes,
    *,
    about: ICMP = TOO_BIG,
    source: str = ROUTER,
    destination: str = NODE,
    tos: int = 1 << 2 | 2,
) -> bytes:
    header = IP(src=source, dst=destination, tos=tos, ttl=60, id=4242)
    return bytes(raw(header / about / Raw(quoted)))


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.settle()
    return made


@pytest.mark.parametrize(
    "about", [TOO_BIG, ICMP(type=3, code=1), ICMP(type=11, code=0), ICMP(type=12, code=0)]
)
def test_error_about_a_packet_of_the_vip_reaches_the_backend_as_its_own(scene: Scene, about: ICMP) -> None:
    received = error(built(LOST)[:28], about=about)
    expected = error(built(SENT)[:28], about=about, destination=BACKEND, tos=2)
    assert scene.balancer(received) == [expected]


def test_long_quote_is_kept_whole_and_both_checksums_are_right(scene: Scene) -> None:
    quoted = built(LOST)[:528]
    as_sent = with_field(built(SENT)[:528], 36, word(quoted, 36))
    assert scene.balancer(error(quoted)) == [error(as_sent, destination=BACKEND, tos=2)]


def test_quoted_sequence_number_wraps_around(scene: Scene) -> None:
    quoted, as_sent = LOST._replace(seq=5), SENT._replace(seq=add(5, SI - LI))
    expected = error(built(as_sent)[:28], destination=BACKEND, tos=2)
    assert scene.balancer(error(built(quoted)[:28])) == [expected]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (error(built(LOST._replace(client_port=1))), "icmp_of_unknown_flow"),
        (error(built(LOST._replace(server="192.168.33.11"))), "icmp_quotes_no_vip"),
        (error(built(LOST._replace(server_port=81))), "icmp_quotes_no_vip"),
        (error(built(LOST), about=ICMP(type=8)), "not_an_icmp_error"),
        (error(built(LOST)[:27]), "truncated"),
        (error(b"\x46" + built(LOST)[1:]), "icmp_quotes_no_tcp"),
        (error(with_field(built(LOST), 6, 0x00B9)), "icmp_quotes_no_tcp"),
        (error(built(LOST), tos=9 << 2), "unknown_dscp"),
        (error(built(LOST), destination="192.168.33.21"), "wrong_destination"),
        (with_field(error(built(LOST)), 10, 0x1234), "bad_ip_checksum"),
        (with_ip_checksum(with_field(error(built(LOST)), 6, 0x2000)), "fragment"),
        (with_ip_checksum(b"\x46" + error(built(LOST))[1:]), "ip_options"),
    ],
)
def test_error_that_concerns_no_flow_is_dropped_and_counted(scene: Scene, packet: bytes, reason: str) -> None:
    before = dict(scene.counters)
    assert scene.balancer(packet) == []
    assert scene.counters == {**before, reason: 1}


def test_error_about_a_flow_without_a_backend_yet_is_dropped() -> None:
    scene = Scene()
    scene.balancer(handoff())
    assert scene.balancer(error(built(LOST))) == []
    assert scene.counters["icmp_of_unknown_flow"] == 1


def test_error_of_the_backends_host_about_a_bridged_packet_does_not_show_it_to_the_client(
    scene: Scene,
) -> None:
    about = Described(server=BACKEND, server_port=8080, seq=5)
    refused = error(built(about), about=ICMP(type=3, code=13), source=BACKEND, destination=CLIENT, tos=0)
    assert scene.backend(refused) == []
    assert scene.counters["icmp_from_backend"] == 1
    direct = error(built(about._replace(client_port=1)), source=BACKEND, destination=CLIENT, tos=0)
    assert scene.backend(direct) == [direct]
