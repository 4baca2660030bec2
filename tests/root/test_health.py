"""Health checks from end to end: prober, channel, a packetbridge on either plane, a server of the kernel."""

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio

from balancer.channel import Channels, Peer
from balancer.core.channel import State
from balancer.core.hearsay import Failure
from balancer.core.probe import Check, CheckResult, make_request
from balancer.core.service import Service as BalancerService
from balancer.inquiry import inquiry
from balancer.prober import Prober, Target
from common.counters import Counters
from common.engine import Site
from common.keyring import KeySource
from common.wire.channel import NodeFacts, ServedVip
from packetbridge import raw
from packetbridge.channel import Server
from packetbridge.core.service import Limits, Service, Timeouts
from packetbridge.ebpf import plane
from packetbridge.engine import PacketbridgeEngine
from tests.root.namespaces import SERVER, Hosts, three_hosts

pytestmark = pytest.mark.root

VIP = IPv4Address("10.98.3.3")
BACKEND = IPv4Address("10.98.4.4")
LOGGER = logging.getLogger("health")
CHECK = Check(VIP.packed, 80, 1, SERVER.packed, make_request("/", "v", "1.0"), (range(200, 500),), 5.0)
SILENCE = 0.5
"""The timeout where nothing is expected to come."""


class Backend:
    """Answers each connection's first bytes with ``status`` and a body, and closes."""

    def __init__(self, hosts: Hosts) -> None:
        self.status = 200
        self.served = 0
        with hosts.server.entered():
            self._listener = socket.create_server((str(BACKEND), 8080))
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):  # a check that was given up resets its connection
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        connection.recv(4096)
        self.served += 1
        body = b"x" * 3000
        connection.sendall(
            f"HTTP/1.1 {self.status} Said\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )


class Checked:
    """What runs: in the client's namespace prober and channel, in the server's packetbridge and backend."""

    def __init__(
        self, hosts: Hosts, keys: KeySource, node_keys: KeySource, node: PacketbridgeEngine, index: int
    ) -> None:
        """``index`` is the VIP's at the node."""
        self.results: list[CheckResult] = []
        self._news = trio.Event()
        self._hosts = hosts
        self._node = node
        self._index = index
        counters = Counters[str]()
        with hosts.server.entered():
            self._server = Server(SERVER, node_keys, self._facts, node.engine.find, counters, LOGGER)
        self.channels = Channels(keys, lambda _: self._news.set(), counters, LOGGER, period=0.1)
        services = [BalancerService(VIP.packed, 80, 1, {}, None)]
        self.prober = Prober(
            keys.sign,
            self._note,
            inquiry(self.channels, lambda: services),
            counters,
            LOGGER,
        )

    def _facts(self) -> NodeFacts:
        return NodeFacts("1.0", "raw", 1.0, 0, (ServedVip(self._index, VIP.packed, 80, 0),))

    def first(self, count: int = 1, timeout: float = CHECK.timeout) -> list[CheckResult]:
        """Verdicts, once the channel knows what it will know."""

        async def check() -> None:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for task in (self._node.engine.loop.run, *self._node.engine.tasks):
                        nursery.start_soon(task)
                    nursery.start_soon(self._server.run)
                    nursery.start_soon(self.channels.run)
                    self.channels.set_nodes([Peer("n1", SERVER.packed, (1,))])
                    await self._until(lambda: self.channels.word("n1").state is not State.UNKNOWN)
                    nursery.start_soon(self.prober.run)
                    self.prober.set_targets([Target("n1", CHECK._replace(timeout=timeout), 0.1)])
                    await self._until(lambda: len(self.results) >= count)
                    self.prober.set_targets([])
                    await trio.sleep(0.3)
                    nursery.cancel_scope.cancel()

        with self._hosts.client.entered():
            trio.run(check)
        return self.results[:count]

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._news.wait()
            self._news = trio.Event()

    def _note(self, _vip_index: int, _node: bytes, result: CheckResult) -> None:
        self.results.append(result)
        self._news.set()

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        for host in (hosts.client, hosts.middle, hosts.server):
            host.run("sysctl -q -w net.ipv4.conf.all.rp_filter=0")
        for interface in ("m0", "m1"):
            hosts.middle.run(f"sysctl -q -w net.ipv4.conf.{interface}.rp_filter=0")
        hosts.server.run(f"ip address add {BACKEND}/32 dev lo")
        hosts.server.run("sysctl -q -w net.ipv4.conf.s0.forwarding=1")
        hosts.middle.run("nft add table ip way")
        hosts.middle.run("nft add chain ip way passing { type filter hook forward priority 0 ; }")
        yield hosts


@pytest.fixture
def keys(tmp_path: Path) -> KeySource:
    return KeySource(tmp_path, is_insecure=True)


Starter = Callable[[Sequence[Service], Limits, Timeouts, Site, ExitStack], PacketbridgeEngine]
PLANES: dict[str, Starter] = {
    "raw": raw.start,
    "ebpf": partial(plane.start, adopt=False),
    "adopting": partial(plane.start, adopt=True),
}
on_one_plane = pytest.mark.parametrize("start", ["raw"], indirect=True)


@pytest.fixture(params=PLANES)
def start(
    request: pytest.FixtureRequest, hosts: Hosts, keys: KeySource, tmp_path: Path
) -> Iterator[Callable[..., Checked]]:
    start_plane = PLANES[request.param]
    with ExitStack() as owned:

        def begin(node_keys: KeySource = keys, index: int = 1) -> Checked:
            served = Service(index, VIP.packed, 80, SERVER.packed, BACKEND.packed, 8080)
            with hosts.server.entered():
                node = start_plane(
                    [served], Limits(), Timeouts(), Site(node_keys, tmp_path, False, LOGGER), owned
                )
            site = Checked(hosts, keys, node_keys, node, index)
            owned.callback(site.close)
            return site

        yield begin


@pytest.fixture
def backend(hosts: Hosts) -> Iterator[Backend]:
    backend = Backend(hosts)
    backend.start()
    yield backend
    backend.close()


def test_checks_of_a_healthy_node_pass_and_leave_no_socket_behind(
    hosts: Hosts, start: Callable[..., Checked], backend: Backend
) -> None:
    results = start().first(10)
    assert [result.text for result in results] == ["status 200"] * 10
    assert backend.served >= 10
    end = time.monotonic() + 20
    while sockets_at_backend(hosts) != ["LISTEN"]:
        assert time.monotonic() < end


def sockets_at_backend(hosts: Hosts) -> list[str]:
    """Their states."""
    return [line.split()[0] for line in hosts.server.run("ss -Htan sport = :8080").splitlines()]


@on_one_plane
def test_status_of_the_backend_counts(start: Callable[..., Checked], backend: Backend) -> None:
    backend.status = 503
    (result,) = start().first()
    assert (result.failure, result.text) == (
        Failure.WRONG_STATUS,
        "the backend answers with status 503, not 200-499",
    )


def test_backend_that_does_not_run_is_a_refusal(start: Callable[..., Checked]) -> None:
    (result,) = start().first()
    assert result.failure is Failure.BACKEND_REFUSED
    assert result.seconds < CHECK.timeout / 2


@on_one_plane
def test_node_with_another_key_refuses_the_tag(
    start: Callable[..., Checked], backend: Backend, tmp_path: Path
) -> None:
    other = tmp_path / "other.key"
    other.touch(0o600)
    other.write_text("00112233445566778899aabbccddee00\n")
    (result,) = start(KeySource(other, is_insecure=False)).first(timeout=SILENCE)
    assert result.failure is Failure.TAG_REFUSED
    assert "key file" in result.text
    assert backend.served == 0


def test_filter_that_drops_the_vip_as_a_source_is_told_from_a_silent_node(
    hosts: Hosts, start: Callable[..., Checked], backend: Backend
) -> None:
    hosts.middle.run(f"nft add rule ip way passing ip saddr {VIP} drop")
    (result,) = start().first(timeout=SILENCE)
    assert result.failure is Failure.ANSWER_LOST
    lost = rf"the node answered with 30\d\d bytes, but not one packet came from {VIP}:80: .*uRPF"
    assert re.match(lost, result.text)
    assert backend.served >= 1


@on_one_plane
def test_router_that_clears_the_dscp_is_named(hosts: Hosts, start: Callable[..., Checked]) -> None:
    hosts.middle.run("nft add rule ip way passing ip daddr 10.98.2.2 ip dscp set 0")
    hosts.server.run("nft add table ip quiet")
    hosts.server.run("nft add chain ip quiet in { type filter hook input priority 0 ; }")
    hosts.server.run("nft add rule ip quiet in tcp dport 80 drop")
    (result,) = start().first(timeout=SILENCE)
    assert result.failure is Failure.BRIDGE_SILENT
    assert result.text == "DSCP 1 arrives at node n1 as DSCP 0: a router on the way remarks it"


@on_one_plane
def test_filter_that_drops_handoffs_is_told_from_a_node_that_is_down(
    hosts: Hosts, start: Callable[..., Checked], backend: Backend
) -> None:
    hosts.middle.run("nft add rule ip way passing tcp dport 80 drop")
    (result,) = start().first(timeout=SILENCE)
    assert result.failure is Failure.BRIDGE_SILENT
    assert "a filter on the way drops the handoff" in result.text
    assert backend.served == 0


@on_one_plane
def test_node_that_has_the_vip_under_another_dscp_is_told(start: Callable[..., Checked]) -> None:
    (result,) = start(index=2).first(timeout=SILENCE)
    assert result.failure is Failure.BRIDGE_SILENT
    assert result.text == f"node n1 maps VIP {VIP}:80 to DSCP 2, here it is DSCP 1"
