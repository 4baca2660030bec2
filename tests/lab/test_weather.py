"""Loss, duplication, reordering and delay in the router, on real packets."""

import sys

import pytest
from scapy.layers.inet import IP, UDP
from scapy.utils import rdpcap

from lab import NODES, TO_NODE, Direction, Faults, Lab
from tests.lab.fetch import NODE1, curl, md5_of_download
from tests.lab.sockets import await_that

pytestmark = pytest.mark.root

CLIENT_TO_NODES = Direction(("client",), (NODES,))
NODES_TO_CLIENT = Direction((NODES,), ("client",))


@pytest.fixture(scope="module")
def lab(bare_lab: Lab) -> Lab:
    """No daemon of the project runs here."""
    return bare_lab


def test_the_router_drops_the_packets_that_were_named(lab: Lab) -> None:
    before = lab.client.counters()
    with lab.weather.drop(CLIENT_TO_NODES, "tcp flags syn") as dropped:
        curl(lab.client, f"{NODE1}/again")
        assert dropped.hits() == 1
    assert dropped.hits() == 1
    assert lab.client.counters_since(before)["TcpExtTCPSynRetrans"] == 1


def test_skipped_packets_pass_before_the_drop(lab: Lab) -> None:
    with (
        lab.hosts["node1"].capture(filter_expression="icmp[0] == 8") as path,
        lab.weather.drop(CLIENT_TO_NODES, "icmp type echo-request", skip=1, packets=2) as dropped,
    ):
        lab.client.run(["ping", "-c5", "-i0.02", "-W2", "192.168.33.30"], check=False)
    assert dropped.hits() == 2
    assert [packet["ICMP"].seq for packet in rdpcap(str(path))] == [1, 4, 5]


def test_a_drop_in_one_direction_spares_the_other_and_ends_with_its_block(lab: Lab) -> None:
    with lab.weather.drop(TO_NODE, packets=1000) as dropped:
        curl(lab.client, f"{NODE1}/direct")
    assert dropped.hits() == 0
    with lab.weather.drop(CLIENT_TO_NODES, packets=1000):
        assert lab.client.run(["ping", "-c1", "-W0.2", "192.168.33.30"], check=False).returncode == 1
    lab.client.run(["ping", "-c1", "-W10", "192.168.33.30"])


def test_tcp_survives_loss(lab: Lab) -> None:
    """A megabyte is some twenty superpackets, of which now and then none is lost."""
    with lab.weather.loss(NODES_TO_CLIENT, 0.05) as lost:
        for _ in range(50):
            assert md5_of_download(lab.client, f"{NODE1}/1m") == lab.content.md5("1m")
            if lost.hits() > 0:
                return
    pytest.fail("of fifty megabytes nothing was lost")


def test_duplicates_arrive_twice_with_the_same_bytes(lab: Lab) -> None:
    with (
        lab.hosts["node1"].capture(filter_expression="icmp[0] == 8") as path,
        lab.weather.duplicate(CLIENT_TO_NODES) as copied,
    ):
        lab.client.run(["ping", "-c2", "-i0.02", "192.168.33.30"])
    packets = rdpcap(str(path))
    assert copied.hits() == 2
    assert [packet["ICMP"].seq for packet in packets] == [1, 1, 2, 2]
    assert bytes(packets[0][IP]) == bytes(packets[1][IP])


def numbers_after_impairer(lab: Lab, faults: Faults) -> list[int]:
    """Of 200 numbered datagrams, in the order of their arrival."""
    sender = (
        "import socket\n"
        "out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for number in range(200):\n"
        "    out.sendto(number.to_bytes(2, 'big'), ('192.168.33.30', 9))"
    )
    with (
        lab.hosts["node1"].capture(filter_expression="udp port 9") as path,
        lab.weather.impairer(CLIENT_TO_NODES, faults, "udp dport 9") as passed,
    ):
        lab.client.run([sys.executable, "-c", sender])
    assert passed.hits() == 200
    return [int.from_bytes(bytes(packet[UDP].payload)[:2], "big") for packet in rdpcap(str(path))]


def test_the_impairer_reorders_under_its_seed_and_loses_nothing(lab: Lab) -> None:
    faults = Faults(seed=7, reorder=0.1, hold=5.0)
    first = numbers_after_impairer(lab, faults)
    assert first != list(range(200))
    assert sorted(first) == list(range(200))
    assert numbers_after_impairer(lab, faults) == first
    assert numbers_after_impairer(lab, Faults(seed=8, reorder=0.1, hold=5.0)) != first


def test_the_impairer_drops_and_copies_under_its_seed(lab: Lab) -> None:
    faults = Faults(seed=7, drop=0.1, duplicate=0.1)
    arrived = numbers_after_impairer(lab, faults)
    assert len(set(arrived)) < 200
    assert len(arrived) > len(set(arrived))
    assert numbers_after_impairer(lab, faults) == arrived


def test_superpackets_pass_the_impairer_whole(lab: Lab) -> None:
    with lab.weather.impairer(NODES_TO_CLIENT, Faults(seed=1)) as passed:
        assert md5_of_download(lab.client, f"{NODE1}/100m") == lab.content.md5("100m")
    assert 1600 < passed.hits() < 50000  # 72000 packets of one MSS each


def test_tcp_survives_the_impairer_and_no_checksum_breaks(lab: Lab) -> None:
    before = lab.client.counters()
    with lab.weather.impairer(NODES_TO_CLIENT, Faults(seed=1, reorder=0.2, duplicate=0.05, drop=0.01)):
        assert md5_of_download(lab.client, f"{NODE1}/1m") == lab.content.md5("1m")
    assert lab.client.counters_since(before).get("TcpInCsumErrors", 0) == 0


def test_the_impairer_delays(lab: Lab) -> None:
    with lab.weather.impairer(NODES_TO_CLIENT, Faults(seed=1, delay=0.15)):
        assert seconds_to_connect(lab) >= 0.15
    await_that(lambda: seconds_to_connect(lab) < 0.15)


def seconds_to_connect(lab: Lab) -> float:
    return float(curl(lab.client, "-o", "/dev/null", "-w", "%{time_connect}", NODE1))
