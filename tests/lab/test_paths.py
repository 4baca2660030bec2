"""Other networks: a VIP that is no address of the balancer, links without superpackets, a narrow path."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, IPerror, TCPerror
from scapy.packet import Packet
from scapy.utils import rdpcap

from lab import Host, Lab
from tests.lab.backend_leg import backend_leg
from tests.lab.conversation import VIP, VIP_ADDRESS, Client, converse, request
from tests.lab.fetch import curl, md5_of_download, md5_of_echo
from tests.lab.observed import node_of, segments

pytestmark = pytest.mark.root

CLIENT = "198.51.100.10"
VIP_INDEX = 1


@pytest.fixture(scope="module", params=[False, True], ids=["superpackets", "MTU-sized packets"])
def routed_lab(engine: str, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The VIP is routed to the balancer without being an address of it."""
    with Lab(mtu_sized=request.param, vip_local=False, engine=engine) as fresh:
        fresh.start_daemons()
        yield fresh


def test_downloads_uploads_and_affinity(routed_lab: Lab) -> None:
    assert md5_of_download(routed_lab.client, f"{VIP}/1m") == routed_lab.content.md5("1m")
    assert md5_of_echo(routed_lab.client, routed_lab.content.path("1m")) == routed_lab.content.md5("1m")
    clients = [Client((request(f"/object/{number}"),)) for number in range(45)]
    nodes = [answer.node for answer in converse(routed_lab.client, clients)]
    assert set(Counter(nodes)) == {"node1", "node2", "node3"}
    assert [answer.node for answer in converse(routed_lab.client, clients)] == nodes


def test_a_download_of_100_mib_is_complete(routed_lab: Lab) -> None:
    assert md5_of_download(routed_lab.client, f"{VIP}/100m") == routed_lab.content.md5("100m")


def test_every_packet_at_the_client_comes_from_the_vip(routed_lab: Lab) -> None:
    with routed_lab.client.capture(filter_expression="src net 192.168.33.0/24", snap_bytes=64) as path:
        curl(routed_lab.client, "-o", "/dev/null", f"{VIP}/64k", f"{VIP}/1k", "-o", "/dev/null")
    assert {segment.src for segment in segments(path)} == {VIP_ADDRESS}


@contextmanager
def narrow_path(lab: Lab, mtu: int) -> Iterator[None]:
    lab.set_path_mtu("client", mtu)
    try:
        yield
    finally:
        lab.set_path_mtu("client", 1500)


def captured(path: Path) -> list[Packet]:
    return [packet[IP] for packet in rdpcap(str(path)) if IP in packet]


def too_big(found: list[Packet]) -> list[Packet]:
    """Errors that say "fragmentation needed"."""
    return [packet for packet in found if ICMP in packet and (packet[ICMP].type, packet[ICMP].code) == (3, 4)]


def path_mtu(node: Host, backend: object) -> int:
    """To the client, as the node's kernel has learned it."""
    words = node.run(["ip", "route", "get", CLIENT, "from", str(backend)]).stdout.split()
    return int(words[words.index("mtu") + 1])


def test_a_client_behind_mtu_1400_gets_its_file(routed_lab: Lab) -> None:
    """The router's "fragmentation needed" goes to the VIP, that is to the balancer, which has never sent what
    is too big. The node's kernel must learn of it.
    """
    node = routed_lab.hosts[node_of(routed_lab, "/1m")]
    addresses = routed_lab.topology.node(node.name)
    with (
        narrow_path(routed_lab, 1400),
        routed_lab.balancer.capture(filter_expression="icmp") as at_balancer,
        node.capture(filter_expression="icmp") as at_node,
        backend_leg(routed_lab, node) as backend,
    ):
        assert md5_of_download(routed_lab.client, f"{VIP}/1m") == routed_lab.content.md5("1m")
    arrived = [packet for packet in too_big(captured(at_balancer)) if packet.dst == VIP_ADDRESS]
    assert arrived
    assert arrived[0][IPerror].src == VIP_ADDRESS
    passed_on = too_big(captured(at_node))
    assert {(packet.dst, packet.tos >> 2) for packet in passed_on} == {(str(addresses.bridge), VIP_INDEX)}
    delivered = too_big(backend)
    assert len(delivered) == len(passed_on)
    for packet in delivered:
        assert (packet.dst, packet[IPerror].src) == (str(addresses.backend), str(addresses.backend))
        assert (packet[IPerror].dst, packet[TCPerror].sport) == (CLIENT, 80)
        assert packet[ICMP].nexthopmtu == 1400
    assert path_mtu(node, addresses.backend) == 1400
