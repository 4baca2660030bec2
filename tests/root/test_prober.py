"""Health checks over real interfaces, from one namespace through a router to a node that the test plays."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest
import trio
from scapy.compat import raw
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from balancer.core.hearsay import Failure, Hearsay, Knowledge
from balancer.core.probe import Check, CheckResult, make_request
from balancer.prober import Prober, Target
from common.counters import Counters
from common.wire.handoff import Handoff
from tests.root.namespaces import CLIENT, SERVER, Hosts, three_hosts

pytestmark = pytest.mark.root

VIP = IPv4Address("10.98.3.3")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LOGGER = logging.getLogger("prober")
FIRST_PORT = 61_000
"""The kernel's range for connections ends before it."""
Play = Callable[[IP], list[IP]]


class Node:
    """Answers what is sent to the server's port 80 as ``play`` says; the kernel sees nothing of it."""

    def __init__(self, hosts: Hosts, play: Play) -> None:
        self.heard: list[IP] = []
        self._play = play
        with hosts.server.entered():
            self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            self._tap.bind(("s0", 0x0800))
            self._tap.settimeout(0.1)
            self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._is_over = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Node":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()
        self._tap.close()
        self._raw.close()

    def await_ends(self, count: int) -> None:
        """Until so many checks have ended their connections."""
        end = time.monotonic() + 20
        while sum(packet[TCP].flags == "RA" for packet in self.heard) < count:
            assert time.monotonic() < end
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._is_over:
            try:
                data, origin = self._tap.recvfrom(65536)
            except TimeoutError:
                continue
            packet = IP(data)
            if origin[2] == socket.PACKET_OUTGOING or TCP not in packet or packet[TCP].dport != 80:
                continue
            self.heard.append(packet)
            for answer in self._play(packet):
                self._raw.sendto(raw(answer), (answer.dst, 0))


def spliced(source: IPv4Address = VIP) -> Play:
    """What a packetbridge makes of a backend that answers and closes, first in two pieces."""

    def play(packet: IP) -> list[IP]:
        came = packet[TCP]
        if came.flags != "S":
            return []
        number, ack = came.ack + 1, came.seq + 1 + len(came.payload)
        ends = IP(src=str(source), dst=packet.src), {"sport": 80, "dport": came.sport, "ack": ack}
        begin = ends[0] / TCP(**ends[1], seq=number, flags="PA") / Raw(ANSWER[:5])
        rest = ends[0] / TCP(**ends[1], seq=number + 5, flags="FPA") / Raw(ANSWER[5:])
        return [begin, rest]

    return play


def silent(_packet: IP) -> list[IP]:
    return []


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        hosts.middle.run("sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.m0.rp_filter=0")
        hosts.middle.run("sysctl -q -w net.ipv4.conf.m1.rp_filter=0")
        yield hosts


@contextmanager
def node(hosts: Hosts, play: Play) -> Iterator[Node]:
    hosts.server.run("nft add table ip quiet")
    hosts.server.run("nft add chain ip quiet in { type filter hook input priority 0 ; }")
    hosts.server.run("nft add rule ip quiet in tcp dport 80 drop")
    with Node(hosts, play) as playing:
        yield playing


def target(address: IPv4Address = SERVER, source: IPv4Address | None = None, timeout: float = 3.0) -> Target:
    request = make_request("/health", str(VIP), "1.0")
    check = Check(VIP.packed, 80, 1, address.packed, request, (range(200, 400),), timeout)
    return Target("n1", check, 0.1, source)


def sign(message: Handoff) -> Handoff:
    return message


class Checking:
    """A prober in the client's namespace, and its verdicts."""

    def __init__(self, hosts: Hosts, hearsay: Hearsay = Hearsay()) -> None:  # noqa: B008
        self.results: list[tuple[int, bytes, CheckResult]] = []
        self.counters = Counters[str]()
        self.asked: list[tuple[str, bytes, int]] = []
        self._hosts = hosts
        self._hearsay = hearsay
        self._seen = trio.Event()
        self.prober = Prober(sign, self._note, self._inquire, self.counters, LOGGER)

    def verdicts(self, *targets: Target, count: int = 1) -> list[CheckResult]:
        """The first ones."""

        async def check() -> None:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.prober.run)
                    self.prober.set_targets(targets)
                    await self.more(count)
                    nursery.cancel_scope.cancel()

        with self._hosts.client.entered():
            trio.run(check)
        return [result for _, _, result in self.results]

    async def more(self, count: int) -> None:
        wanted = len(self.results) + count
        while len(self.results) < wanted:
            await self._seen.wait()
            self._seen = trio.Event()

    def _note(self, vip_index: int, address: bytes, result: CheckResult) -> None:
        self.results.append((vip_index, address, result))
        self._seen.set()

    async def _inquire(self, asked: Target, client: bytes, port: int) -> Hearsay:
        self.asked.append((asked.node, client, port))
        return self._hearsay


def test_healthy_node_passes_and_the_kernel_says_nothing_of_its_own(hosts: Hosts) -> None:
    with node(hosts, spliced()) as playing:
        checking = Checking(hosts)
        results = checking.verdicts(target(timeout=8.0), count=5)
        playing.await_ends(5)
    assert [(result.ok, result.text) for result in results] == [(True, "status 200")] * 5
    assert {(index, address) for index, address, _ in checking.results} == {(1, SERVER.packed)}
    heard = [(packet.src, packet.tos, str(packet[TCP].flags)) for packet in playing.heard]
    assert {(source, tos) for source, tos, _ in heard} == {(str(CLIENT), 4)}
    per_check = [flags for _, _, flags in heard]
    assert per_check[:3] == ["S", "A", "RA"]
    ports = [packet[TCP].sport for packet in playing.heard if packet[TCP].flags == "S"]
    assert len(set(ports)) == len(ports)
    assert min(ports) >= FIRST_PORT
    assert per_check.count("RA") == len(ports)
    assert "l3dsr" not in hosts.client.run("nft list tables")


def test_first_check_comes_soon_however_long_the_interval(hosts: Hosts) -> None:
    with node(hosts, spliced()):
        (result,) = Checking(hosts).verdicts(target(timeout=8.0)._replace(interval=3600.0))
    assert result.ok


def test_node_without_packetbridge_is_told_from_a_silent_one(hosts: Hosts) -> None:
    (result, *_) = Checking(hosts).verdicts(target())
    assert result.failure is Failure.BRIDGE_SILENT
    assert result.text.startswith(f"the host {SERVER}:80 refuses by itself")


def test_answer_from_another_address_is_named(hosts: Hosts) -> None:
    with node(hosts, spliced(IPv4Address("10.98.2.9"))):
        (result, *_) = Checking(hosts).verdicts(target())
    assert result.failure is Failure.NOT_FROM_VIP
    assert result.text == f"the answer came from 10.98.2.9:80, not from {VIP}:80"


def test_router_that_knows_no_way_makes_the_node_unreachable_at_once(hosts: Hosts) -> None:
    hosts.client.run("ip route add 10.98.7.0/24 via 10.98.1.2")
    hosts.middle.run("ip route add unreachable 10.98.7.0/24")
    (result, *_) = Checking(hosts).verdicts(target(IPv4Address("10.98.7.7"), timeout=5.0))
    assert result.failure is Failure.NODE_UNREACHABLE
    assert result.text == "there is no such host, says 10.98.1.2 (ICMP type 3 code 1)"
    assert result.seconds < 2.5


def test_neighbour_that_does_not_answer_is_unreachable_by_the_kernels_own_word(hosts: Hosts) -> None:
    hosts.client.run("sysctl -q -w net.ipv4.neigh.c0.mcast_solicit=1 net.ipv4.neigh.c0.retrans_time_ms=100")
    (result, *_) = Checking(hosts).verdicts(target(IPv4Address("10.98.1.77"), timeout=5.0))
    assert result.failure is Failure.NODE_UNREACHABLE
    assert result.text == f"there is no such host, says {CLIENT} (ICMP type 3 code 1)"


def test_host_without_a_route_says_so(hosts: Hosts) -> None:
    (result, *_) = Checking(hosts).verdicts(target(IPv4Address("198.51.100.1")))
    assert result.failure is Failure.NODE_UNREACHABLE
    assert result.text == "this host cannot send to it: Network is unreachable"


def test_own_firewall_that_drops_checks_is_named(hosts: Hosts) -> None:
    hosts.client.run("nft add table ip wall")
    hosts.client.run("nft add chain ip wall out { type filter hook output priority 0 ; }")
    hosts.client.run("nft add rule ip wall out tcp dport 80 drop")
    (result, *_) = Checking(hosts).verdicts(target())
    assert result.failure is Failure.NODE_UNREACHABLE
    assert "does a rule of its firewall drop it?" in result.text


def test_silence_is_explained_by_what_the_channel_says_of_this_very_flow(hosts: Hosts) -> None:
    with node(hosts, silent) as playing:
        checking = Checking(hosts, Hearsay(flow=Knowledge.SPLICED, bytes_to_client=300))
        (result, *_) = checking.verdicts(target(timeout=0.4))
        playing.await_ends(1)
    assert result.failure is Failure.ANSWER_LOST
    first = playing.heard[0]
    assert checking.asked[0] == ("n1", CLIENT.packed, first[TCP].sport)
    flags = [str(packet[TCP].flags) for packet in playing.heard if packet[TCP].sport == first[TCP].sport]
    assert set(flags[:-1]) == {"S"}
    assert flags[-1] == "RA"


def test_check_may_be_made_from_the_vip_itself(hosts: Hosts) -> None:
    hosts.middle.run(f"ip route add {VIP} via {CLIENT}")
    hosts.server.run(f"ip route add {VIP} via 10.98.2.1")
    with node(hosts, spliced()) as playing:
        (result, *_) = Checking(hosts).verdicts(target(source=VIP))
    assert result.ok
    assert playing.heard[0].src == str(VIP)


def test_node_at_an_address_of_this_host_is_not_checked_and_that_is_said(hosts: Hosts) -> None:
    checking = Checking(hosts)

    async def check() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                checking.prober.set_targets([target(CLIENT)])
                nursery.start_soon(checking.prober.run)
                while not checking.prober.problems():  # noqa: ASYNC110
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    with hosts.client.entered():
        trio.run(check)
    assert checking.results == []
    assert checking.prober.problems() == ["node n1 is an address of this host: it is not checked"]


def test_a_node_that_is_checked_from_two_addresses_is_told_of_once_each(
    hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    """One of its services asks from the host's address, another from a second one."""
    hosts.client.run("ip address add 10.98.1.9/24 dev c0")
    checking, asked = Checking(hosts), target()
    other = asked._replace(check=asked.check._replace(vip_index=2), source=IPv4Address("10.98.1.9"))
    with node(hosts, spliced()), caplog.at_level(logging.INFO):
        checking.verdicts(asked, other, count=8)
    said = [record.message for record in caplog.records if "is checked from" in record.message]
    assert sorted(said) == [f"node n1 is checked from {source}" for source in (CLIENT, "10.98.1.9")]


def test_answers_that_come_by_a_new_interface_are_taken_once_it_is_followed(hosts: Hosts) -> None:
    checking = Checking(hosts)

    async def check() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(checking.prober.run)
                checking.prober.set_targets([target()])
                await checking.more(2)
                hosts.client.run(f"ip link add c9 type veth peer name s9 netns {hosts.server.name}")
                hosts.client.run("ip address add 10.98.9.1/24 dev c9")
                hosts.client.run("ip link set c9 up")
                hosts.server.run("ip address add 10.98.9.2/24 dev s9")
                hosts.server.run("ip link set s9 up")
                hosts.server.run("ip route replace 10.98.1.0/24 via 10.98.9.1")
                await trio.sleep(0.2)
                said = checking.prober.tend()
                assert said == [f"health checks from {CLIENT}: interface c9 is there: it is tapped"]
                await checking.more(4)
                nursery.cancel_scope.cancel()

    with node(hosts, spliced()), hosts.client.entered():
        trio.run(check)
    assert [result.ok for _, _, result in checking.results[-2:]] == [True, True]


def test_checks_go_on_after_an_interface_was_down(hosts: Hosts) -> None:
    checking = Checking(hosts)

    async def check() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(checking.prober.run)
                checking.prober.set_targets([target()])
                await checking.more(2)
                hosts.client.run("ip link set c0 down")
                await checking.more(2)
                assert checking.results[-1][2].failure is Failure.NODE_UNREACHABLE
                assert checking.prober.tend() == []
                hosts.client.run("ip link set c0 up")
                hosts.client.run("ip route add 10.98.2.0/24 via 10.98.1.2")
                await checking.more(4)
                nursery.cancel_scope.cancel()

    with node(hosts, spliced()), hosts.client.entered():
        trio.run(check)
    assert [result.ok for _, _, result in checking.results[-2:]] == [True, True]


def test_second_prober_with_the_same_address_is_refused_and_says_why(hosts: Hosts) -> None:
    first, second = Checking(hosts), Checking(hosts)

    async def check() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for checking in (first, second):
                    checking.prober.set_targets([target()])
                nursery.start_soon(first.prober.run)
                await first.more(2)
                nursery.start_soon(second.prober.run)
                while not second.prober.problems():  # noqa: ASYNC110
                    await trio.sleep(0.01)
                await first.more(2)
                nursery.cancel_scope.cancel()

    with node(hosts, spliced()), hosts.client.entered():
        trio.run(check)
    assert first.results
    assert second.results == []
    expected = f"node n1 is not checked: health check source {CLIENT} is already served by another process"
    assert second.prober.problems() == [expected]


def test_targets_may_change_while_checks_are_under_way(hosts: Hosts) -> None:
    checking = Checking(hosts)

    async def check() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(checking.prober.run)
                for _ in range(200):
                    checking.prober.set_targets([target(), target(IPv4Address("10.98.2.3"))])
                    await trio.sleep(0.001)
                    checking.prober.set_targets([target(timeout=2.9)])
                    await trio.sleep(0.001)
                checking.prober.set_targets([])
                await trio.sleep(0.1)
                checking.results.clear()
                await trio.sleep(0.5)
                assert checking.results == []
                checking.prober.set_targets([target()])
                await checking.more(2)
                nursery.cancel_scope.cancel()

    with node(hosts, spliced()), hosts.client.entered():
        trio.run(check)
    assert all(result.ok for _, _, result in checking.results)
    assert "l3dsr" not in hosts.client.run("nft list tables")
