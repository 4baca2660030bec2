"""Packets that nobody should send, to the VIP and to a node's bridge address: counted and dropped, and nobody
else notices.
"""

import random
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, combinations, count
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_NOP
from scapy.packet import Packet, Raw

from lab import Host, Lab, Process
from tests.lab.conversation import VIP, VIP_ADDRESS
from tests.lab.crafted import GHOST, CraftedClient, Line, internet_checksum, line_to
from tests.lab.fetch import curl, md5_of_download
from tests.lab.observed import counters_of, daemon_of
from tests.lab.sockets import ask, await_that, connection, socket_in
from tests.lab.wellbeing import assert_all_is_well

pytestmark = pytest.mark.root

PORTS = count(50000)
BRIDGE = "192.168.33.20"


@pytest.fixture(scope="module")
def to_balancer(ghost_lab: Lab) -> Iterator[Line]:
    with line_to(ghost_lab, "balancer") as line:
        yield line


def ip(**changes: Any) -> Packet:
    """To the VIP, or to a node with the VIP's DSCP."""
    return IP(**{"src": GHOST, "dst": VIP_ADDRESS, "flags": "DF", **changes})


def segment(flags: str, **changes: Any) -> Packet:
    return TCP(**{"sport": 4711, "dport": 80, "seq": 1000, "ack": 2000, "flags": flags, **changes})


SOME = Raw(b"GET / HTTP/1.1\r\n\r\n")


def _odd_headers(**address: Any) -> dict[str, Packet]:
    """What is wrong, and the packet."""
    about_nothing = IP(src=VIP_ADDRESS, dst="198.51.100.10") / TCP(sport=80, dport=4711, seq=1)
    return {
        "ip_options": ip(**address, options=[IPOption_NOP()] * 4) / segment("A") / SOME,
        "fragment": ip(**{**address, "flags": "MF"}) / segment("A") / SOME,
        "bad_ip_checksum": ip(**address, chksum=0x1234) / segment("A") / SOME,
        "bad_data_offset": ip(**address) / segment("A", dataofs=15) / SOME,
        "truncated": ip(**address, len=36) / segment("A") / SOME,
        "icmp_of_unknown_flow": ip(**address) / ICMP(type=3, code=4, nexthopmtu=1400) / about_nothing,
    }


TAGGED = {"dst": BRIDGE, "tos": 4}
ODD = {
    "balancer": {f"dropped_{name}": packet for name, packet in _odd_headers().items()},
    "node1": _odd_headers(**TAGGED),
}
BAD_FLAGS = ["", "F", "U", "PU", "SA", "SF", "SR", "RF", "SRFPAU", "FSPU"]


def assert_dropped_and_counted(lab: Lab, host: str, line: Line, packet: Packet, counter: str) -> None:
    daemon = daemon_of(lab.hosts[host])
    before = counters_of(daemon).get(counter, 0)
    for _ in range(3):
        line.send(bytes(packet))
    await_that(lambda: counters_of(daemon).get(counter, 0) == before + 3)


@pytest.mark.parametrize("counter", ODD["balancer"])
def test_the_balancer_counts_and_drops(ghost_lab: Lab, to_balancer: Line, counter: str) -> None:
    packet = ODD["balancer"][counter]
    assert_dropped_and_counted(ghost_lab, "balancer", to_balancer, packet, counter)


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_the_balancer_counts_and_drops_flags_that_make_no_sense(
    ghost_lab: Lab, to_balancer: Line, flags: str
) -> None:
    packet = ip() / segment(flags)
    assert_dropped_and_counted(ghost_lab, "balancer", to_balancer, packet, "dropped_bad_flags")


@pytest.mark.parametrize("counter", ODD["node1"])
def test_the_packetbridge_counts_and_drops(ghost_lab: Lab, to_node1: Line, counter: str) -> None:
    assert_dropped_and_counted(ghost_lab, "node1", to_node1, ODD["node1"][counter], counter)


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_the_packetbridge_counts_and_drops_flags_that_make_no_sense(
    ghost_lab: Lab, to_node1: Line, flags: str
) -> None:
    packet = ip(**TAGGED) / segment(flags)
    assert_dropped_and_counted(ghost_lab, "node1", to_node1, packet, "absurd_flags")


def test_later_fragments_are_nobodys(ghost_lab: Lab, to_balancer: Line, to_node1: Line) -> None:
    """The kernel keeps them for a while and then gives them up."""
    hosts = {"balancer": to_balancer, "node1": to_node1}
    before = {name: counters_of(daemon_of(ghost_lab.hosts[name])) for name in hosts}
    to_balancer.send(bytes(ip(flags=0, frag=3) / SOME))
    to_node1.send(bytes(ip(**{**TAGGED, "flags": 0}, frag=3) / SOME))
    assert_all_is_well(ghost_lab)
    for name, counters in before.items():
        after = counters_of(daemon_of(ghost_lab.hosts[name]))
        assert after.get("dropped_fragment", 0) == counters.get("dropped_fragment", 0)
        assert after.get("fragment", 0) == counters.get("fragment", 0)


def test_no_combination_of_flags_beside_the_expected_number_disturbs_a_connection(ghost_lab: Lab) -> None:
    every = chain.from_iterable(combinations("FSRPAUEC", size) for size in range(9))
    with CraftedClient(ghost_lab, next(PORTS)) as client:
        client.shake_hands()
        assert client.ask("/flags").endswith(b" /flags\n")
        for flags in every:
            client.send(client.segment("".join(flags), seq=client.next - 5000))
        assert client.ask("/flags").endswith(b" /flags\n")
    assert_all_is_well(ghost_lab)


# --- wrong checksums of TCP, which only the end verifies


@pytest.mark.parametrize("said_before", [0, 1], ids=["first_payload", "later_payload"])
def test_damaged_bytes_are_not_believed_and_the_right_ones_are(ghost_lab: Lab, said_before: int) -> None:
    before = checksum_errors(ghost_lab)
    with CraftedClient(ghost_lab, next(PORTS)) as client:
        client.shake_hands()
        for _ in range(said_before):
            client.ask("/damaged?before")
        said = b"GET /damaged HTTP/1.1\r\nHost: lab\r\n\r\n"
        damaged = bytes(client.segment("PA", said)).replace(b"/damaged", b"/dbmaged")
        client.send(damaged)
        await_that(lambda: checksum_errors(ghost_lab) == before + 1)
        client.say(said)
        answer = client.hear()
    assert answer.endswith(b" /damaged\n")


def test_what_is_damaged_gets_no_answer_of_the_balancers_own(ghost_lab: Lab) -> None:
    """Neither a SYN-ACK nor the 400 that the damage would deserve."""
    balancer = daemon_of(ghost_lab.balancer)
    before = counters_of(balancer).get("dropped_bad_checksum", 0)
    with CraftedClient(ghost_lab, next(PORTS)) as client:
        client.send(client.segment("S", chksum=1))
        client.shake_hands()
        said = b"GET /damaged HTTP/1.1\r\nHost: lab\r\n\r\n"
        client.send(bytes(client.segment("PA", said)).replace(b" /damaged", b"\x01/damaged"))
        client.send(bytes(client.segment("PA", said)).replace(b" /damaged", b"  damaged"))
        await_that(lambda: counters_of(balancer).get("dropped_bad_checksum", 0) == before + 3)
        assert client.receive(0.05) is None
        client.say(said)
        assert client.hear().endswith(b" /damaged\n")


def checksum_errors(lab: Lab) -> int:
    """On all nodes so far, by whoever has noticed: the kernel's TCP, or the packetbridge's programs, which
    verify what they keep for a while.
    """
    return sum(
        node.counters()["TcpInCsumErrors"] + counters_of(daemon_of(node)).get("bad_checksum", 0)
        for node in lab.nodes
    )


# --- what is the host's own business on n


OWN_SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("bound", flush=True)
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nport " + sys.argv[2].encode() + b" of the host's own")
    connection.close()
"""


def own_server(host: Host, port: int) -> Process:
    server = host.start([sys.executable, "-c", OWN_SERVER, BRIDGE, str(port)], name="own")
    server.wait_for("bound")
    return server


def test_the_bridge_address_has_its_own_port_80_for_packets_without_a_tag(ghost_lab: Lab) -> None:
    server = own_server(ghost_lab.hosts["node1"], 80)
    try:
        assert curl(ghost_lab.client, f"http://{BRIDGE}/own") == "port 80 of the host's own"
        assert_all_is_well(ghost_lab)
    finally:
        server.stop()


def test_other_ports_of_the_bridge_address_do_not_care_for_a_tag(ghost_lab: Lab) -> None:
    server = own_server(ghost_lab.hosts["node1"], 2222)
    try:
        with socket_in(ghost_lab.client, socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(20)
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 4)
            client.connect((BRIDGE, 2222))
            client.sendall(b"GET /own HTTP/1.0\r\n\r\n")
            assert client.recv(4096).endswith(b"port 2222 of the host's own")
    finally:
        server.stop()


# --- storms

STORM = 6000


def storm(chance: random.Random, bases: list[bytes]) -> Iterator[bytes]:
    """Packets with some bytes changed, some cut off or added, and mostly a right IP checksum."""
    for _ in range(STORM):
        packet = bytearray(chance.choice(bases))
        for _ in range(chance.randrange(6)):
            packet[chance.choice([*range(16), *range(20, len(packet))])] = chance.randrange(256)
        if chance.random() < 0.2:
            del packet[chance.randrange(20, len(packet)) :]
        if chance.random() < 0.1:
            packet += chance.randbytes(chance.randrange(600))
        if chance.random() < 0.5:
            packet[2:4] = len(packet).to_bytes(2, "big")
        if chance.random() < 0.9:
            packet[10:12] = bytes(2)
            packet[10:12] = internet_checksum(packet[: max(20, (packet[0] & 15) * 4)])
        yield bytes(packet)


STRANGE_OPTIONS = [
    ("MSS", 1460),
    ("SAckOK", b""),
    ("Timestamp", (1, 0)),
    ("WScale", 7),
    (253, b"L3" + bytes(12)),
]


@pytest.mark.parametrize(("host", "address"), [("balancer", {}), ("node1", TAGGED)])
def test_a_storm_of_random_packets_is_survived(ghost_lab: Lab, host: str, address: dict[str, Any]) -> None:
    quoted = IP(src=VIP_ADDRESS, dst="198.51.100.10") / segment("A", sport=80, dport=4711)
    bases = [
        ip(**address) / segment("S", options=STRANGE_OPTIONS),
        ip(**address) / segment("S", options=STRANGE_OPTIONS) / SOME,
        ip(**address) / segment("A", options=[("Timestamp", (1, 2))]) / SOME,
        ip(**address) / segment("FA"),
        ip(**address) / segment("R"),
        ip(**address) / ICMP(type=3, code=4, nexthopmtu=1400) / quoted,
    ]
    daemon = daemon_of(ghost_lab.hosts[host])
    before = sum(counters_of(daemon).values())
    with (
        connection(ghost_lab) as kept,
        closing(Line(ghost_lab.router, host, ghost_lab.hosts[host], "eth0")) as line,
    ):
        assert ask(kept, "/kept").status == 200
        for packet in storm(random.Random(f"storm at {host}"), [bytes(base) for base in bases]):
            line.send(packet)
        assert ask(kept, "/kept").status == 200
    assert sum(counters_of(daemon).values()) > before + STORM // 4
    assert_all_is_well(ghost_lab)
    assert md5_of_download(ghost_lab.client, f"{VIP}/1m") == ghost_lab.content.md5("1m")
