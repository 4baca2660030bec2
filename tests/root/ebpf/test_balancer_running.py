"""The balancer's eBPF plane among kernels: services and interfaces come and go, and what is taken away."""

import fcntl
import logging
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from balancer.core.service import Limits, Service, Timeouts, make_nodes
from balancer.ebpf import plane
from balancer.ebpf.abi import SERVICE
from balancer.engine import BalancerEngine
from common.bpf import libbpf
from common.bpf.maps import HashMap
from common.bpf.pins import PinDirectory
from common.config import ConfigError
from common.engine import Site
from common.keyring import KeySource
from common.net import intake, privileges
from common.net.errors import HostError
from common.net.ownership import OwnedTable
from tests.root.ebpf.residing import attached
from tests.root.namespaces import CLIENT, MIDDLE, SERVER, Hosts
from tests.root.test_raw_balancer import OTHER, THIRD, WEB, Running, forget, is_reset, made_again, service

pytestmark = pytest.mark.root

GET = b"GET /film/1.ts HTTP/1.1\r\nHost: v\r\n\r\n"
SECONDS = 60.0
LIMITS = Limits(flows=1000, verified=1000, half_open=1000)
CLIENTS_NODE = SERVER.packed
TUNSETIFF, TUNSETLINK, IFF_TAP = 0x400454CA, 0x400454CD, 0x0002
Scenario = Callable[[Running], Awaitable[None]]


class Stage:
    def __init__(self, hosts: Hosts, site: Site) -> None:
        self.hosts = hosts
        self.site = site

    def start(self, owned: ExitStack, services: Sequence[Service] = (WEB,)) -> BalancerEngine:
        return plane.start(services, LIMITS, Timeouts(), self.site, owned)

    def keeping(self) -> "Stage":
        """What a balancer leaves that is to keep its flows stays."""
        return Stage(self.hosts, self.site._replace(keep_flows=True))

    def play(self, scenario: Scenario, services: Sequence[Service] = (WEB,)) -> None:
        async def run(running: Running) -> None:
            with trio.fail_after(SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(running.engine.loop.run)
                    for task in running.engine.tasks:
                        nursery.start_soon(task)
                    await scenario(running)
                    nursery.cancel_scope.cancel()

        with ExitStack() as owned:
            running = Running(self.hosts, self.start(owned, services))
            owned.callback(running.close)
            trio.run(run, running)


@pytest.fixture
def stage(hosts: Hosts, tmp_path: Path) -> Iterator[Stage]:
    keys = KeySource(tmp_path / "none", is_insecure=True)
    yield Stage(hosts, Site(keys, tmp_path, keep_flows=False, logger=logging.getLogger("plane")))
    if (tmp_path / "bpf").is_mount():
        subprocess.run(["umount", tmp_path / "bpf"], check=True, timeout=20)


def detach(hosts: Hosts, stage: Stage, way: str) -> None:
    """As `tc filter del` and `bpftool link detach` do."""
    if way == "clsact":
        hosts.middle.run("tc filter del dev m0 ingress")
        return
    index = socket.if_nametoindex("m0")
    link = PinDirectory(stage.site.state_dir / "bpf" / "balancer").get_link(f"link_ingress_{index}")
    assert link is not None
    libbpf.check(libbpf.library().bpf_link_detach(link))
    os.close(link)


async def leave_flow(running: Running, port: int, vip_index: int) -> None:
    """Its client is silent from then on, and does not send its request again."""
    with await running.connect(port) as client:
        await client.send(GET)
        own_port = client.getsockname()[1]
        await running.has_node(own_port, vip_index)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))


def node_mtus(rows: HashMap) -> list[int]:
    return [SERVICE.unpack(row).node_mtu for _, row in rows.items()]


def test_services_come_and_go_and_the_others_flows_go_on(stage: Stage) -> None:
    async def scenario(running: Running) -> None:
        assert await running.is_served()
        assert await running.refuses(81)
        running.engine.apply([WEB, OTHER])
        assert await running.is_served(81)
        running.engine.apply([WEB])
        assert await running.refuses(81)
        assert [flow.vip_index for flow in running.engine.flows()] == [1]
        running.engine.apply([OTHER])
        assert list(running.engine.flows()) == []
        assert await running.is_served(81)
        assert await running.refuses(80)

    stage.play(scenario)


def test_services_that_cannot_all_be_served_leave_those_of_before(stage: Stage) -> None:
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

    stage.play(scenario)


def test_many_changes_leave_nothing_behind(stage: Stage) -> None:
    async def scenario(running: Running) -> None:
        running.engine.apply([WEB, OTHER])
        running.engine.apply([WEB])
        opened, maps = len(os.listdir("/proc/self/fd")), running.engine.sizes()["map_bytes"]
        for _ in range(50):
            running.engine.apply([WEB, OTHER])
            running.engine.apply([WEB])
        assert len(os.listdir("/proc/self/fd")) == opened
        assert running.engine.sizes()["map_bytes"] == maps
        assert await running.is_served()

    stage.play(scenario)


def test_no_client_notices_that_services_change(stage: Stage) -> None:
    members = {"node1": (SERVER.packed, 1), "node2": (CLIENT.packed, 1)}
    nodes, table = make_nodes(MIDDLE.packed, 80, 1, members)
    versions = ([WEB], [WEB._replace(nodes=nodes, table=table), OTHER], [WEB._replace(target_limit=500)])
    served = 0

    async def visit(running: Running) -> None:
        nonlocal served
        while True:
            with await running.connect() as client:
                await client.send(GET)
                served += 1

    async def scenario(running: Running) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, running)
            changes = 0
            while changes < 30 or served <= 20:
                running.engine.apply(versions[changes % 3])
                changes += 1
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        while running.engine.counters()["handoffs"] < served:  # noqa: ASYNC110
            await trio.sleep(0.01)

    stage.play(scenario)


def test_a_flow_stays_with_its_node_when_others_take_the_new_ones(stage: Stage) -> None:
    members = {"node1": (SERVER.packed, 0), "node2": (CLIENT.packed, 1)}
    nodes, table = make_nodes(MIDDLE.packed, 80, 1, members)
    moved = WEB._replace(nodes=nodes, table=table)

    async def scenario(running: Running) -> None:
        clients = []
        for services in ([WEB], [moved], [moved._replace(table=None)]):
            running.engine.apply(services)
            clients.append(await running.connect())
            await clients[-1].send(GET)
            if services[0].table is not None:
                await running.has_node(clients[-1].getsockname()[1], 1)
        assert (await clients[2].recv(100)).startswith(b"HTTP/1.1 503 ")
        ports = [client.getsockname()[1] for client in clients]
        found = [running.engine.find(CLIENT.packed, port, 1) for port in ports]
        assert [flow and flow.node for flow in found] == [str(SERVER), str(CLIENT), ""]
        for client in clients:
            client.close()

    stage.play(scenario)


def test_the_clients_of_a_node_that_is_forgotten_are_reset(stage: Stage) -> None:
    async def scenario(running: Running) -> None:
        client = await running.connect()
        await client.send(GET)
        await forget(running, client)
        await is_reset(client)
        assert running.engine.sizes()["flows"] == 0

    stage.play(scenario)


def test_what_is_handed_to_a_node_is_counted_as_its_load(stage: Stage) -> None:
    async def scenario(running: Running) -> None:
        loads = running.balancer.loads
        loads.correct(1, CLIENTS_NODE, 5)
        assert await running.is_served()
        assert loads.of(1, CLIENTS_NODE) == (6, 1)
        assert running.engine.counters()["bytes_to_nodes"] > len(GET)

    stage.play(scenario)


@pytest.mark.parametrize("changed", [service(80, 7), service(80, 1, promised_scale=3)], ids=["DSCP", "scale"])
def test_a_take_over_forgets_flows_of_services_that_are_others_now(
    stage: Stage, changed: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def leave_flows(running: Running) -> None:
        for port, index in ((80, 1), (81, 2), (82, 3)):
            await leave_flow(running, port, index)

    async def see(running: Running) -> None:
        assert [flow.details["service"] for flow in running.engine.flows()] == [f"{MIDDLE}:81"]
        assert await running.is_served(80)
        assert await running.is_served(81)
        assert await running.refuses(82)

    stage.keeping().play(leave_flows, [WEB, OTHER, THIRD])
    stage.play(see, [changed, OTHER])
    assert caplog.messages == [
        "2 flows are forgotten: their services are gone, or others now",
        "the flows of an earlier run are carried on",
    ]


def test_a_start_that_is_refused_takes_no_flows_from_an_earlier_run(stage: Stage) -> None:
    async def serve(running: Running) -> None:
        await leave_flow(running, 80, 1)

    async def see(running: Running) -> None:
        assert [flow.vip_index for flow in running.engine.flows()] == [1]

    stage.keeping().play(serve)
    taken = OwnedTable(intake.of_balancer(MIDDLE, 82).name, "")
    with ExitStack() as owned, pytest.raises(HostError, match="82 is already served"):
        stage.keeping().start(owned, [THIRD])
    taken.close()
    stage.play(see)


@pytest.mark.usefixtures("way")
def test_nothing_is_put_back_where_nothing_is_missing(hosts: Hosts, stage: Stage) -> None:
    async def scenario(running: Running) -> None:
        hosts.middle.run("ip link set m0 down")
        assert running.engine.tend() == []
        hosts.middle.run("ip link set m0 up")
        assert await running.is_served()
        assert running.engine.tend() == []

    stage.play(scenario)


def test_a_program_that_was_taken_away_is_back(hosts: Hosts, stage: Stage, way: str) -> None:
    async def scenario(running: Running) -> None:
        detach(hosts, stage, way)
        with trio.move_on_after(0.3) as waiting:
            await running.refuses(80)
        assert waiting.cancelled_caught, "the kernel is kept from refusing"
        assert running.engine.tend() == ["somebody has removed our program at ingress of m0: it is back"]
        assert await running.is_served()

    stage.play(scenario)
    assert attached(hosts) == []


@pytest.mark.usefixtures("way")
def test_an_interface_that_is_made_again_is_served_again(hosts: Hosts, stage: Stage) -> None:
    async def scenario(running: Running) -> None:
        hosts.middle.run("ip link delete m0")
        made_again(hosts)
        gone, new = running.engine.tend()
        assert gone.endswith("has gone")
        assert new == "programs are at ingress of m0 from now on"
        assert await running.is_served()
        assert running.engine.tend() == []

    stage.play(scenario)


def test_a_tun_that_was_set_down_is_set_up(hosts: Hosts, stage: Stage) -> None:
    async def scenario(running: Running) -> None:
        hosts.middle.run("ip link set l3dsr0 down")
        assert running.engine.tend() == ["somebody has changed the device l3dsr0: it is as it was"]
        with await running.connect() as client:
            await client.send(b"GET /\x01 HTTP/1.1\r\n\r\n")
            assert (await client.recv(100)).startswith(b"HTTP/1.1 400 ")

    stage.play(scenario)


def test_an_interface_of_an_unknown_link_type_is_named_once_and_all_else_is_tended(
    hosts: Hosts, stage: Stage, way: str
) -> None:
    async def scenario(running: Running) -> None:
        with strange_interface(hosts):
            (said,) = running.engine.tend()
            assert said.startswith("interface ib0 has link type 32, which cannot be tapped")
            assert running.engine.tend() == []
            detach(hosts, stage, way)
            assert running.engine.tend() == ["somebody has removed our program at ingress of m0: it is back"]

    stage.play(scenario)


@contextmanager
def strange_interface(hosts: Hosts) -> Iterator[None]:
    """One of InfiniBand, as far as its link type goes."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        with hosts.middle.entered():
            fcntl.ioctl(device, TUNSETIFF, struct.pack("=16sH22x", b"ib0", IFF_TAP))
        fcntl.ioctl(device, TUNSETLINK, 32)
        hosts.middle.run("ip address add 10.99.1.1/24 dev ib0")
        hosts.middle.run("ip link set ib0 up")
        yield
    finally:
        os.close(device)


def test_the_programs_know_the_smallest_mtu_on_the_way_to_a_node(hosts: Hosts, stage: Stage) -> None:
    async def scenario(running: Running) -> None:
        pinned = PinDirectory(stage.site.state_dir / "bpf" / "balancer").get_map("services")
        assert pinned is not None
        rows = HashMap(pinned)
        for mtu in (1500, 1000, 1400):
            hosts.middle.run(f"ip link set m1 mtu {mtu}")
            while node_mtus(rows) != [mtu]:  # noqa: ASYNC110 - the kernel has no event for it
                await trio.sleep(0.02)
        assert await running.is_served()
        os.close(pinned)

    stage.play(scenario)


@pytest.mark.parametrize("lost", ["a pin", "file system"])
def test_what_is_put_back_and_applied_needs_few_capabilities(
    hosts: Hosts, stage: Stage, way: str, lost: str
) -> None:
    """Those that a daemon keeps. They are a thread's."""
    said: list[str] = []

    def run(balancer: BalancerEngine) -> None:
        hosts.middle.entered().__enter__()  # it ends with the thread
        privileges.drop(in_reserve=[privileges.Capability.SYS_ADMIN])
        said.extend(balancer.engine.tend())
        balancer.engine.apply([WEB, OTHER])
        balancer.engine.apply([OTHER])

    with ExitStack() as owned:
        balancer = stage.start(owned)
        detach(hosts, stage, way)
        if lost == "a pin":
            (stage.site.state_dir / "bpf" / "balancer" / "flows").unlink()
        else:
            subprocess.run(["umount", stage.site.state_dir / "bpf"], check=True, timeout=20)
        hosts.middle.run("ip link add name new0 type veth peer name new1")
        hosts.middle.run("ip address add 10.99.0.1/24 dev new0")
        hosts.middle.run("ip link set new0 up")
        hosts.middle.run("ip link set l3dsr0 down")
        thread = threading.Thread(target=run, args=(balancer,))
        thread.start()
        thread.join()
        assert len(said) == 4
        assert list(balancer.engine.flows()) == []
        assert balancer.engine.tend() == []
        assert hosts.middle.run("nft list tables") == "table ip l3dsr_vip_10_98_1_2_81\n"
