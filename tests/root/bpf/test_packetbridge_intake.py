"""What the packetbridge's programs take, refuse, pass up and leave alone, as the core and its taps do."""

import pytest
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Raw

from common.keyring import Keyring
from tests.root.bpf.packetbridge_twin import KEYS, PASSED, REDIRECTED, Bridges, Outcome, Programs, signed
from tests.unit.packetbridge.scene import (
    LI,
    OTHER_BACKEND,
    OTHER_VIP,
    SI,
    WALL,
    add,
    at_backend,
    from_backend,
    from_client,
    handoff,
    syn,
    syn_ack,
)
from tests.unit.wire.packets import (
    ACK,
    BACKEND,
    CLIENT,
    NODE,
    RST,
    Described,
    built,
    with_field,
    with_ip_checksum,
    word,
)

pytestmark = pytest.mark.root

ROUTER = "198.51.100.1"
LOST = Described(from_client=False, seq=add(LI, 5001), payload=b"x" * 1400, ttl=3)
"""What a router could not pass on to the client."""
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


def with_ip_options(packet: bytes) -> bytes:
    """The packet with four bytes of options that mean nothing."""
    longer = (len(packet) + 4).to_bytes(2, "big")
    return with_ip_checksum(b"\x46" + packet[1:2] + longer + packet[4:20] + b"\1\1\1\0" + packet[20:])


EXPERIMENT = built(signed(handoff()))


def changed(at: int, value: int) -> bytes:
    """The handoff with another word in its TCP header."""
    return with_field(EXPERIMENT, 20 + at, value)


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (built(handoff(tag=b"evil tag")), "handoff_bad_tag"),
        (built(signed(handoff(), Keyring((bytes(16),)))), "handoff_bad_tag"),
        (built(signed(handoff(time=WALL - 61))), "handoff_too_old"),
        (built(signed(handoff(time=WALL + 61))), "handoff_too_old"),
        (built(signed(handoff(time=WALL + 32768))), "handoff_too_old"),
        (built(handoff(index=9)), "unknown_dscp"),
        (built(handoff()._replace(options=())), "not_a_handoff"),
        (built(handoff(b"")), "bad_handoff_payload"),
        (changed(18, 1), "not_a_handoff"),
        (changed(20, 0x0205), "bad_handoff_options"),
        (changed(24, 0x0403), "bad_handoff_options"),
        (changed(26, 0x0809), "bad_handoff_options"),
        (changed(38, 0x030F), "bad_handoff_options"),
        (changed(40, 0xFE10), "not_a_handoff"),
        (changed(44, 0x2100), "unknown_handoff_version"),
        (changed(44, 0x1117), "unknown_handoff_version"),
        (changed(44, 0x110F), "bad_handoff_options"),
    ],
)
def test_handoff_that_cannot_be_believed_is_dropped_and_counted(
    twins: Bridges, offered: bytes, reason: str
) -> None:
    assert twins.balancer(offered) == []
    twins.expect(**{reason: 1})


@pytest.mark.parametrize("time", [WALL - 60, WALL + 60])
@pytest.mark.parametrize("key", KEYS.keys)
def test_handoff_of_a_minute_under_either_key_is_believed(twins: Bridges, time: int, key: bytes) -> None:
    assert twins.balancer(signed(handoff(time=time), Keyring((key,)))) == [built(syn())]


def test_duplicate_is_checked_like_the_first(twins: Bridges) -> None:
    twins.settle()
    assert twins.balancer(handoff(tag=b"evil tag")) == []
    twins.pass_time(61)
    assert twins.balancer(signed(handoff())) == []
    twins.expect(handoff_bad_tag=1, handoff_too_old=1)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (with_ip_checksum(with_field(built(from_client()), 6, 0x2000)), "fragment"),
        (with_field(built(from_client()), 10, 0x1234), "bad_ip_checksum"),
        (with_field(built(from_client()._replace(tos=9 << 2)), 10, 0x1234), "bad_ip_checksum"),
        (with_ip_options(built(from_client())), "ip_options"),
        (with_field(built(from_client()), 32, 0x4010), "bad_data_offset"),
        (with_field(built(from_client()), 32, 0xF010), "bad_data_offset"),
        (built(from_client())[:30], "truncated"),
        (built(from_client()._replace(tos=9 << 2)), "unknown_dscp"),
    ],
)
def test_hostile_packet_is_dropped_and_counted(twins: Bridges, packet: bytes, reason: str) -> None:
    assert twins.balancer(packet) == []
    twins.expect(**{reason: 1})


@pytest.mark.parametrize(
    "packet",
    [
        built(from_client()._replace(tos=1)),
        built(from_client()._replace(server="192.168.33.21")),
        built(from_client()._replace(server_port=22)),
        with_ip_checksum(with_field(built(from_client()), 6, 0x00B9)),
        bytes(raw(IP(src=CLIENT, dst=NODE, tos=4) / UDP(sport=80, dport=80) / b"datagram")),
        bytes(raw(IP(src=CLIENT, dst=NODE, tos=4) / ICMP(type=8) / bytes(60))),
        bytes.fromhex("60000000 0014 0640 2a06") + bytes(50),
        b"\x45" + bytes(30),
    ],
    ids=["no_dscp", "address", "port", "later_fragment", "udp", "ping", "ipv6", "stump"],
)
def test_what_is_not_taken_is_left_alone(twins: Bridges, packet: bytes) -> None:
    twins.settle()
    assert twins.programs.run("ingress", packet) == Outcome(PASSED, packet, [])


def test_segment_of_an_unknown_flow_is_pythons_as_long_as_the_rate_allows(bridge_programs: Programs) -> None:
    Bridges(bridge_programs)
    packet = built(from_client(b"x"))
    for _ in range(10_000):
        bridge_programs.nanoseconds("ingress", packet, 1)
    assert bridge_programs.run("ingress", packet).verdict != REDIRECTED
    assert bridge_programs.counts()["strangers_passed_up"] == 10_000
    assert bridge_programs.counts()["strangers_limited"] == 1


def test_rst_of_an_unknown_flow_is_answered_by_nothing(twins: Bridges) -> None:
    assert twins.balancer(from_client(flags=RST)) == []
    twins.expect(client_rst_elsewhere=1, strangers_passed_up=0)


def test_one_client_port_talks_to_two_vips(twins: Bridges) -> None:
    twins.settle()
    twins.balancer(signed(handoff(index=2)))
    answer = syn_ack()._replace(server=OTHER_BACKEND)
    assert len(twins.backend(answer)) == 1
    reply = from_backend(b"x")._replace(server=OTHER_BACKEND)
    (sent,) = twins.backend(reply)
    assert sent[12:16] == bytes(map(int, OTHER_VIP.split(".")))
    assert len(twins.balancer(from_client(b"x")._replace(tos=2 << 2))) == 1
    assert twins.balancer(from_client(b"x")) == [built(at_backend(from_client(b"x")))]


@pytest.mark.parametrize(
    "about", [TOO_BIG, ICMP(type=3, code=1), ICMP(type=11, code=0), ICMP(type=12, code=0)]
)
def test_error_about_a_packet_of_the_vip_reaches_the_backend_as_its_own(twins: Bridges, about: ICMP) -> None:
    twins.settle()
    expected = error(built(SENT)[:28], about=about, destination=BACKEND, tos=2)
    assert twins.balancer(error(built(LOST)[:28], about=about)) == [expected]
    quoted = built(LOST)[:528]
    as_sent = with_field(built(SENT)[:528], 36, word(quoted, 36))
    assert twins.balancer(error(quoted, about=about)) == [
        error(as_sent, about=about, destination=BACKEND, tos=2)
    ]
    twins.expect(icmp_passed=2)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (error(built(LOST._replace(client_port=1))), "icmp_of_unknown_flow"),
        (error(built(LOST._replace(server="192.168.33.11"))), "icmp_quotes_no_vip"),
        (error(built(LOST)[:27]), "truncated"),
        (error(built(LOST), tos=9 << 2), "unknown_dscp"),
        (with_field(error(built(LOST)), 10, 0x1234), "bad_ip_checksum"),
        (with_ip_checksum(with_field(error(built(LOST)), 6, 0x2000)), "fragment"),
        (with_ip_options(error(built(LOST))), "ip_options"),
        (with_ip_checksum(with_field(error(built(LOST)), 2, 50)), "truncated"),
    ],
)
def test_error_that_concerns_no_flow_is_dropped_and_counted(
    twins: Bridges, packet: bytes, reason: str
) -> None:
    twins.settle()
    assert twins.balancer(packet) == []
    twins.expect(**{reason: 1})


@pytest.mark.parametrize(
    "packet",
    [
        error(built(LOST._replace(server_port=81))),
        error(built(LOST), about=ICMP(type=8)),
        error(b"\x46" + built(LOST)[1:]),
        error(with_field(built(LOST), 6, 0x00B9)),
        error(built(LOST), destination="192.168.33.21"),
        error(built(LOST._replace(server=NODE))),
        error(built(LOST)[:20]),
        error(built(LOST), tos=2),
    ],
)
def test_other_icmp_is_the_hosts(twins: Bridges, packet: bytes) -> None:
    twins.settle()
    assert twins.programs.run("ingress", packet) == Outcome(PASSED, packet, [])


def test_error_about_a_flow_without_a_backend_yet_is_dropped(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    assert twins.balancer(error(built(LOST))) == []
    twins.expect(icmp_of_unknown_flow=1)


def test_error_of_the_backends_host_about_a_bridged_packet_never_leaves(twins: Bridges) -> None:
    twins.settle()
    about = Described(server=BACKEND, server_port=8080, seq=5)
    refused = error(built(about), about=ICMP(type=3, code=13), source=BACKEND, destination=CLIENT, tos=0)
    assert twins.backend(refused) == []
    assert twins.backend(with_ip_options(refused)) == []
    twins.expect(icmp_from_backend=2)
    direct = error(built(about._replace(client_port=1)), source=BACKEND, destination=CLIENT, tos=0)
    assert twins.backend(direct) == [direct]


@pytest.mark.parametrize(
    "packet",
    [
        built(from_backend(b"direct", tos=0xB8)._replace(client_port=50_000)),
        built(from_backend(b"ssh")._replace(server_port=22)),
        with_ip_options(built(from_backend(b"direct")._replace(client_port=50_000))),
        bytes(raw(IP(src=BACKEND, dst=CLIENT) / UDP(sport=8080, dport=49152) / b"datagram")),
        bytes(raw(IP(src=BACKEND, dst=CLIENT) / ICMP(type=0))),
        bytes.fromhex("60000000 0014 0640 2a06") + bytes(50),
        b"\x45" + bytes(23),
    ],
    ids=["direct", "other_port", "ip_options", "udp", "echo_reply", "ipv6", "stump"],
)
def test_packet_of_no_flow_leaves_untouched(twins: Bridges, packet: bytes) -> None:
    twins.settle()
    assert twins.backend(packet) == [packet]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (with_ip_checksum(with_field(built(from_backend(b"x" * 8)), 6, 0x2000)), "fragment"),
        (with_ip_checksum(with_field(built(from_backend(b"x" * 8)), 6, 0x00B9)), "fragment"),
        (with_ip_options(built(from_backend())), "ip_options"),
        (with_field(built(from_backend()), 32, 0x4010), "bad_data_offset"),
        (with_field(built(from_backend(flags=ACK | RST)), 10, 0x1234), "bad_ip_checksum"),
    ],
    ids=["first_fragment", "later_fragment", "ip_options", "data_offset", "ip_checksum"],
)
def test_odd_packet_of_a_known_flow_never_leaves(twins: Bridges, packet: bytes, reason: str) -> None:
    twins.settle()
    assert twins.backend(packet) == []
    twins.expect(**{reason: 1})
