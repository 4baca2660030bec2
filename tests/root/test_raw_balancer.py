"""The balancer's raw plane among kernels: interfaces come and go, services change, nodes are forgotten."""

import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from balancer import raw
from balancer.core.service import DEFAULT_TIMEOUTS, Limits, Service, make_nodes
from balancer.engine import BalancerEngine
from common.config import ConfigError
from common.engine import Site
from common.keyring import KeySource
from common.net import intake
from common.net.errors import HostError
from common.net.ownership import OwnedTable
from common.wire import segment as segments
from common.wire import tcp, tcp_options
from common.wire.segment import Segment
from common.wire.tcp_options import Timestamps
from tests.root.namespaces import CLIENT, CLIENT_MAC, MIDDLE, MIDDLE_MAC, SERVER, Hosts, three_hosts

pytestmark = pytest.mark.root

GET = b"GET /film/1.ts HTTP/1.1\r\nHost: v\r\n\r\n"
SECONDS = 60.0
"""In which a test must be through."""


def service(port: int, index: int, **changes: object) -> Service:
    nodes, table = make_nodes(MIDDLE.packed, port, index, {"node1": (SERVER.packed, 1)})
    return Service(MIDDLE.packed, port, index, nodes, table)._replace(**changes)  # type: ignore[arg-type]


WEB, OTHER, THIRD = service(80, 1), service(81, 2), service(82, 3)


class Running:
    """A balancer on the middle host, which is where the test itself is; clients are on the client's."""

    def __init__(self, hosts: Hosts, balancer: BalancerEngine) -> None:
        self.hosts = hosts
        self.balancer = balancer
        self.engine = balancer.engine
        with hosts.server.entered():
            self._at_node = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            self._at_node.bind(("s0", 0x0800))
            self._at_node.setblocking(False)

    async def connect(self, port: int = 80) -> trio.socket.SocketType:
        with self.hosts.client.entered():
            client = trio.socket.socket()
        try:
            await client.connect((str(MIDDLE), port))
        except OSError:
            client.close()
            raise
        return client

    async def is_served(self, port: int = 80) -> bool:
        """Whether a client's request goes to the node."""
        client = await self.connect(port)
        await client.send(GET)
        number = client.getsockname()[1].to_bytes(2, "big")
        with trio.move_on_after(15):
            while True:
                await trio.lowlevel.wait_readable(self._at_node)
                packet = self._at_node.recv(65536)
                if packet[20:22] == number and packet[1]:
                    client.close()
                    return True
        return False

    async def has_node(self, client_port: int, vip_index: int) -> None:
        """Wait until the client's connection has one."""
        while not (found := self.engine.find(CLIENT.packed, client_port, vip_index)) or not found.node:  # noqa: ASYNC110
            await trio.sleep(0.005)

    async def refuses(self, port: int) -> bool:
        try:
            (await self.connect(port)).close()
        except ConnectionRefusedError:
            return True
        return False

    def close(self) -> None:
        self._at_node.close()


Scenario = Callable[[Running], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        yield hosts


@pytest.fixture
def play(hosts: Hosts, tmp_path: Path) -> Play:
    site = Site(KeySource(tmp_path / "none", is_insecure=True), tmp_path, False, logging.getLogger("raw"))

    async def run(running: Running, scenario: Scenario) -> None:
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.engine.loop.run)
                await scenario(running)
                nursery.cancel_scope.cancel()

    def play(scenario: Scenario) -> None:
        with hosts.middle.entered(), ExitStack() as owned:
            running = Running(hosts, raw.start([WEB], Limits(), DEFAULT_TIMEOUTS, site, owned))
            owned.callback(running.close)
            trio.run(run, running, scenario)
        assert hosts.middle.run("nft list tables") == ""

    return play


def made_again(hosts: Hosts) -> None:
    """The link between client and middle, which has been deleted."""
    hosts.client.run(
        f"ip link add c0 address {CLIENT_MAC.hex(':')} type veth"
        f" peer name m0 address {MIDDLE_MAC.hex(':')} netns {hosts.middle.name}"
    )
    hosts.client.run("ip link set c0 up")
    hosts.middle.run("ip link set m0 up")
    hosts.client.run("ip address add 10.98.1.1/24 dev c0")
    hosts.middle.run("ip address add 10.98.1.2/24 dev m0")


def test_an_interface_that_is_made_again_is_served_again(hosts: Hosts, play: Play) -> None:
    async def scenario(running: Running) -> None:
        assert await running.is_served()
        hosts.middle.run("ip link delete m0")
        assert len(running.engine.tend()) == 1
        made_again(hosts)
        assert len(running.engine.tend()) == 1
        assert await running.is_served()
        assert running.engine.tend() == []

    play(scenario)


def test_an_interface_made_again_between_two_looks_is_served_again(hosts: Hosts, play: Play) -> None:
    async def scenario(running: Running) -> None:
        hosts.middle.run("ip link delete m0")
        made_again(hosts)
        assert len(running.engine.tend()) == 2
        assert await running.is_served()

    play(scenario)


def test_an_interface_that_was_down_needs_no_care(hosts: Hosts, play: Play) -> None:
    async def scenario(running: Running) -> None:
        hosts.middle.run("ip link set m0 down")
        await trio.sleep(0.05)
        assert running.engine.tend() == []
        hosts.middle.run("ip link set m0 up")
        assert await running.is_served()
        assert running.engine.counters()["tap_errors"] == 1

    play(scenario)


def test_a_new_interface_is_served(hosts: Hosts, play: Play) -> None:
    async def scenario(running: Running) -> None:
        hosts.client.run(f"ip link add c1 type veth peer name m2 netns {hosts.middle.name}")
        hosts.client.run("ip link set c1 up")
        hosts.middle.run("ip link set m2 up")
        hosts.middle.run("ip address add 10.98.3.2/24 dev m2")
        hosts.client.run("ip address add 10.98.3.1/24 dev c1")
        hosts.client.run("ip route replace 10.98.1.2/32 via 10.98.3.2")
        assert len(running.engine.tend()) == 1
        assert await running.is_served()

    play(scenario)


def test_a_tun_that_was_set_down_is_set_up(hosts: Hosts, play: Play) -> None:
    async def scenario(running: Running) -> None:
        hosts.middle.run("ip link set l3dsr0 down")
        assert len(running.engine.tend()) == 1
        assert await running.is_served()

    play(scenario)


def test_services_come_and_go_and_the_others_flows_go_on(play: Play) -> None:
    async def scenario(running: Running) -> None:
        client = await running.connect()
        await client.send(GET)
        assert await running.refuses(81)
        running.engine.apply([WEB, OTHER])
        assert await running.is_served(81)
        running.engine.apply([WEB])
        assert await running.refuses(81)
        assert [flow.vip_index for flow in running.engine.flows()] == [1]
        assert await running.is_served()
        client.close()

    play(scenario)


def test_services_that_cannot_all_be_served_leave_those_of_before(play: Play) -> None:
    async def scenario(running: Running) -> None:
        taken = OwnedTable(intake.of_balancer(MIDDLE, 82).name, "")
        with pytest.raises(HostError, match="82 is already served"):
            running.engine.apply([OTHER, THIRD])
        with pytest.raises(ConfigError, match="DSCP"):
            running.engine.apply([OTHER, service(80, 4)])
        taken.close()
        assert await running.refuses(81)
        assert await running.is_served()
        assert running.hosts.middle.run("nft list tables") == "table ip l3dsr_vip_10_98_1_2_80\n"

    play(scenario)


def test_many_changes_leave_nothing_behind(play: Play) -> None:
    async def scenario(running: Running) -> None:
        opened = len(os.listdir("/proc/self/fd"))
        for _ in range(100):
            running.engine.apply([WEB, OTHER])
            await trio.lowlevel.checkpoint()
            running.engine.apply([WEB])
        assert len(os.listdir("/proc/self/fd")) == opened
        assert await running.is_served()
        assert not any(number for name, number in running.engine.counters().items() if name.startswith("tap"))

    play(scenario)


def test_a_client_that_has_heard_nothing_is_reset_when_its_node_is_forgotten(
    play: Play,
) -> None:
    async def scenario(running: Running) -> None:
        client = await running.connect()
        await client.send(GET)
        await forget(running, client)
        await is_reset(client)
        assert running.engine.sizes()["flows"] == 0

    play(scenario)


@pytest.mark.parametrize("stamps", ["none", "in step", "ahead"])
def test_a_client_in_the_middle_of_an_answer_is_reset_when_its_node_is_forgotten(
    hosts: Hosts, play: Play, stamps: str
) -> None:
    """Also where the node's timestamps have got so far that ours are too old for the client."""
    hosts.client.run(f"sysctl -q -w net.ipv4.tcp_timestamps={int(stamps != 'none')}")

    async def scenario(running: Running) -> None:
        client = await running.connect()
        await client.send(GET)
        port = client.getsockname()[1]
        await running.has_node(port, 1)
        flow = running.engine.find(CLIENT.packed, port, 1)
        assert flow is not None
        number = (flow.details["isn"], flow.details["next_seq"])
        assert isinstance(number[0], int)
        assert isinstance(number[1], int)
        ticks = (int(time.monotonic() * 1000) + (10**6 if stamps == "ahead" else 0)) % 2**32
        answer = Segment(
            source=MIDDLE.packed,
            destination=CLIENT.packed,
            source_port=80,
            destination_port=flow.client_port,
            seq=(number[0] + 1) % 2**32,
            ack=number[1],
            flags=tcp.ACK | tcp.PSH,
            window=1000,
            options=tcp_options.emit_timestamps(None if stamps == "none" else Timestamps(ticks, 0)),
            payload=b"HTTP/1.1 200 OK\r\n",
        )
        running.engine.loop.send([segments.emit(answer)])
        assert await client.recv(100) == b"HTTP/1.1 200 OK\r\n"
        await forget(running, client)
        await is_reset(client)

    play(scenario)


async def forget(running: Running, client: trio.socket.SocketType) -> None:
    """The client's node, as soon as its flow is known."""
    await running.has_node(client.getsockname()[1], 1)
    running.engine.loop.send(running.balancer.forget_node(1, SERVER.packed))


async def is_reset(client: trio.socket.SocketType) -> None:
    with client, trio.fail_after(15), pytest.raises(ConnectionResetError):
        await client.recv(1)
