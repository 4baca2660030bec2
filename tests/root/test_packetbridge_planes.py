"""Both data planes of the packetbridge, running: services that change, and a host that changes under them."""

import logging
import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio

from common.bpf.attach import supports_tcx
from common.config import ConfigError
from common.engine import Site
from common.keyring import KeySource
from common.net.errors import HostError
from packetbridge import raw
from packetbridge.core.service import Limits, Service, Timeouts
from packetbridge.ebpf import plane
from packetbridge.engine import PacketbridgeEngine
from tests.root.namespaces import CLIENT, MIDDLE, Hosts, three_hosts
from tests.root.tagged_client import Connection, TaggedClient

pytestmark = pytest.mark.root

VIP, OTHER_VIP = IPv4Address("10.99.0.1"), IPv4Address("10.99.0.2")
PORT, OTHER_PORT = 8080, 8081
LIMITS = Limits(flows=64)
SERVICE = Service(1, VIP.packed, 80, MIDDLE.packed, MIDDLE.packed, PORT)
OTHER = Service(2, OTHER_VIP.packed, 81, MIDDLE.packed, MIDDLE.packed, OTHER_PORT)
SOON = 1.0
"""Seconds in which what is not answered would have been."""

Start = Callable[[list[Service], Site, ExitStack], PacketbridgeEngine]


def start_raw(services: list[Service], site: Site, owned: ExitStack) -> PacketbridgeEngine:
    return raw.start(services, LIMITS, Timeouts(), site, owned)


def start_ebpf(services: list[Service], site: Site, owned: ExitStack) -> PacketbridgeEngine:
    return plane.start(services, LIMITS, Timeouts(), site, owned, adopt=True)


@pytest.fixture(params=[start_raw, start_ebpf], ids=["raw", "ebpf"])
def start(request: pytest.FixtureRequest) -> Start:
    made: Start = request.param
    return made


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """The test's thread is in the middle one."""
    with three_hosts() as hosts, hosts.middle.entered():
        yield hosts


@pytest.fixture
def site(hosts: Hosts, tmp_path: Path) -> Iterator[Site]:  # noqa: ARG001 - its state is theirs
    yield Site(
        keys=KeySource(tmp_path / "none", is_insecure=True),
        state_dir=tmp_path,
        keep_flows=False,
        logger=logging.getLogger("planes"),
    )
    if (tmp_path / "bpf").is_mount():
        subprocess.run(["umount", tmp_path / "bpf"], check=True, timeout=20)


@pytest.fixture(autouse=True)
def servers(hosts: Hosts) -> Iterator[None]:  # noqa: ARG001 - they are in the middle one
    """Each says its port in front of what it was sent."""
    with _server(PORT), _server(OTHER_PORT):
        yield


@pytest.fixture
def client(hosts: Hosts) -> Iterator[TaggedClient]:
    with hosts.client.entered():
        made = TaggedClient("c0", CLIENT, MIDDLE)
    with closing(made):
        yield made


@contextmanager
def _server(port: int) -> Iterator[None]:
    listening = socket.create_server((str(MIDDLE), port))
    threading.Thread(target=_accept, args=(listening, port), daemon=True).start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def _accept(listening: socket.socket, port: int) -> None:
    while True:
        try:
            accepted, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(accepted, port), daemon=True).start()


def _answer(accepted: socket.socket, port: int) -> None:
    with accepted:
        try:
            while asked := accepted.recv(1000):
                accepted.sendall(b"%d %s" % (port, asked))
        except OSError:
            return


@asynccontextmanager
async def running(started: PacketbridgeEngine) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(started.engine.loop.run)
        for task in started.engine.tasks:
            nursery.start_soon(task)
        yield
        nursery.cancel_scope.cancel()


async def comes_about(is_so: Callable[[], bool]) -> None:
    """Within the time that a conversation may take."""
    while not is_so():  # noqa: ASYNC110 - whatever a test waits for
        await trio.sleep(0.01)


async def ask(connection: Connection, payload: bytes, patience: float = 20.0) -> bytes:
    return await trio.to_thread.run_sync(connection.ask, payload, patience)


async def acknowledged(connection: Connection) -> None:
    """The server's kernel has nothing left to send."""

    def unacknowledged() -> bool:
        shown = subprocess.run(
            ["ss", "-Htn", f"( sport = :{PORT} )"], capture_output=True, text=True, check=True, timeout=20
        )
        return any(line.split()[2] != "0" for line in shown.stdout.splitlines())

    connection.acknowledge()
    await comes_about(lambda: not unacknowledged())


def run(
    start: Start,
    site: Site,
    services: list[Service],
    conversation: Callable[[PacketbridgeEngine], Awaitable[None]],
) -> None:
    with ExitStack() as owned:
        started = start(services, site, owned)

        async def main() -> None:
            with trio.fail_after(60):
                async with running(started):
                    await conversation(started)

        trio.run(main)


def test_service_that_is_added_is_served_and_flows_of_others_go_on(
    start: Start, site: Site, client: TaggedClient
) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        first = client.connection(VIP, 4001)
        assert await ask(first, b"one") == b"8080 one"
        started.engine.apply([SERVICE, OTHER])
        assert await ask(first, b"two") == b"8080 two"
        second = client.connection(OTHER_VIP, 4001, vip_port=81, index=2)
        assert await ask(second, b"three") == b"8081 three"
        assert await ask(first, b"four") == b"8080 four"

    run(start, site, [SERVICE], conversation)


def test_service_that_is_removed_takes_its_flows_with_it_and_no_others(
    start: Start, site: Site, client: TaggedClient
) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        stays = client.connection(VIP, 4001)
        goes = client.connection(OTHER_VIP, 4002, vip_port=81, index=2)
        assert await ask(stays, b"one") == b"8080 one"
        assert await ask(goes, b"one") == b"8081 one"
        assert started.flows_of_vips() == {1: 1, 2: 1}
        started.engine.apply([SERVICE])
        assert [flow.vip_index for flow in started.engine.flows()] == [1]
        assert started.flows_of_vips() == {1: 1}
        assert await ask(stays, b"two") == b"8080 two"
        with pytest.raises(TimeoutError):
            await ask(goes, b"two", SOON)

    run(start, site, [SERVICE, OTHER], conversation)


def test_many_changes_disturb_no_flow_and_leave_nothing_behind(
    start: Start, site: Site, hosts: Hosts, client: TaggedClient
) -> None:
    def taken() -> tuple[str, int]:
        return hosts.middle.run("nft list ruleset"), len(os.listdir("/proc/self/fd"))

    async def change(started: PacketbridgeEngine) -> None:
        for _ in range(50):
            started.engine.apply([SERVICE, OTHER])
            await trio.sleep(0.005)
            started.engine.apply([SERVICE])
            assert started.engine.tend() == []
            await trio.sleep(0.005)

    async def talk(flow: Connection) -> None:
        for number in range(100):
            assert await ask(flow, b"%d" % number) == b"8080 %d" % number

    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, b"one") == b"8080 one"
        before = taken()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, started)
            nursery.start_soon(talk, flow)
        assert taken() == before
        assert await ask(flow, b"two") == b"8080 two"
        assert started.flows_of_vips() == {1: 1}

    run(start, site, [SERVICE], conversation)


def test_backend_is_not_changed_under_a_flow(start: Start, site: Site, client: TaggedClient) -> None:
    elsewhere = SERVICE._replace(backend_port=OTHER_PORT)

    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, b"one") == b"8080 one"
        refusal = r"DSCP 1 has 1 flow of VIP 10\.99\.0\.1:80 to 10\.98\.1\.2:8080: drain it first"
        with pytest.raises(ConfigError, match=refusal):
            started.engine.apply([elsewhere])
        assert await ask(flow, b"two") == b"8080 two"
        await trio.to_thread.run_sync(flow.close)
        started.engine.apply([elsewhere])
        assert await ask(client.connection(VIP, 4002), b"one") == b"8081 one"

    run(start, site, [SERVICE], conversation)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        ([SERVICE, OTHER._replace(backend=bytes([10, 98, 7, 7]))], "no interface has the address"),
        ([SERVICE, OTHER._replace(bridge=bytes([10, 98, 2, 1]))], "all at one bridge address"),
        ([OTHER._replace(vip_index=1, backend_port=OTHER_PORT, bridge=bytes([10, 98, 2, 1]))], "restart it"),
        ([SERVICE, SERVICE._replace(vip_index=2)], "share the backend"),
        ([], "at least one VIP"),
    ],
)
def test_change_that_is_refused_changes_nothing(
    start: Start, site: Site, hosts: Hosts, client: TaggedClient, refused: list[Service], reason: str
) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, b"one") == b"8080 one"
        before = hosts.middle.run("nft list ruleset")
        with pytest.raises((ConfigError, HostError), match=reason):
            started.engine.apply(refused)
        assert hosts.middle.run("nft list ruleset") == before
        assert await ask(flow, b"two") == b"8080 two"
        assert started.flows_of_vips() == {1: 1}
        assert started.engine.tend() == []

    run(start, site, [SERVICE], conversation)


def test_backend_of_another_packetbridge_is_refused(start: Start, site: Site, client: TaggedClient) -> None:
    others = OTHER._replace(bridge=bytes([10, 98, 2, 1]))
    elsewhere = site._replace(state_dir=site.state_dir / "other")

    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, b"one") == b"8080 one"
        with pytest.raises(HostError, match=r"backend 10\.98\.1\.2:8081 is already served"):
            started.engine.apply([SERVICE, OTHER])
        assert await ask(flow, b"two") == b"8080 two"

    with ExitStack() as owned:
        start_raw([others], elsewhere, owned)
        run(start, site, [SERVICE], conversation)


def test_flows_that_have_closed_are_not_counted(start: Start, site: Site, client: TaggedClient) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        flows = [client.connection(VIP, port) for port in (4001, 4002, 4003)]
        for flow in flows:
            assert await ask(flow, b"one") == b"8080 one"
        assert started.flows_of_vips() == {1: 3}
        await trio.to_thread.run_sync(flows[0].close)
        await comes_about(lambda: started.flows_of_vips() == {1: 2})
        assert started.engine.sizes()["flows"] == 3

    run(start, site, [SERVICE], conversation)


def test_flow_that_its_client_has_reset_is_not_counted(
    start: Start, site: Site, client: TaggedClient
) -> None:
    """As a health check is ended."""

    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, b"one") == b"8080 one"
        flow.reset()
        await comes_about(lambda: started.flows_of_vips() == {1: 0})

    run(start, site, [SERVICE], conversation)


def test_flow_is_reported(start: Start, site: Site, client: TaggedClient) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        assert await ask(client.connection(VIP, 4001), b"one") == b"8080 one"
        assert await ask(client.connection(VIP, 4002), b"one") == b"8080 one"
        found = started.engine.find(CLIENT.packed, 4001, 1)
        assert found is not None
        assert (found.client, found.client_port, found.vip_index) == ("10.98.1.1", 4001, 1)
        assert found.node == "10.98.1.2"
        assert found.state in ("established", "adopted")
        assert found.age is not None
        assert found.age < 60
        assert found.idle is not None
        assert found.idle < 60
        expected = {
            "vip": "10.99.0.1:80",
            "backend": "10.98.1.2:8080",
            "client_isn": 1_000_000,
            "client_next_seq": 1_000_004,
            "client_phase": "open",
        }
        assert expected.items() <= found.details.items()
        assert {flow.client_port for flow in started.engine.flows()} == {4001, 4002}
        assert started.engine.find(CLIENT.packed, 4003, 1) is None
        assert started.engine.find(CLIENT.packed, 4001, 2) is None

    run(start, site, [SERVICE], conversation)


def test_bytes_are_counted(start: Start, site: Site, client: TaggedClient) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        counted = started.engine.counters()
        assert (counted["bytes_to_backends"], counted["bytes_to_clients"]) == (0, 0)
        flow = client.connection(VIP, 4001)
        await ask(flow, bytes(100))
        counted = started.engine.counters()
        assert counted["bytes_to_backends"] >= 40 + 100
        assert counted["bytes_to_clients"] >= 40 + 105
        await ask(flow, bytes(1000))
        assert started.engine.counters()["bytes_to_clients"] >= counted["bytes_to_clients"] + 40 + 1005

    run(start, site, [SERVICE], conversation)


def test_host_that_nobody_has_touched_needs_no_tending(start: Start, site: Site) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        for _ in range(3):
            assert started.engine.tend() == []
            await trio.sleep(0.01)

    run(start, site, [SERVICE, OTHER], conversation)


def tun_of(hosts: Hosts) -> str:
    return hosts.middle.run("ip -o link show type tun").split()[1].rstrip(":")


DAMAGES: dict[str, Callable[[Hosts], object]] = {
    "TUN down": lambda hosts: hosts.middle.run(f"ip link set {tun_of(hosts)} down"),
    "TUN down and up": lambda hosts: [
        hosts.middle.run(f"ip link set {tun_of(hosts)} {state}") for state in ("down", "up")
    ],
    "no forwarding": lambda hosts: hosts.middle.run(
        f"sysctl -q -w net.ipv4.conf.{tun_of(hosts)}.forwarding=0"
    ),
    "rule deleted": lambda hosts: hosts.middle.run("ip rule del pref 100"),
    "all rules deleted": lambda hosts: hosts.middle.run("ip rule flush"),
    "all routes through the TUN deleted": lambda hosts: hosts.middle.run(
        f"ip route flush table all dev {tun_of(hosts)}"
    ),
}
EXPOSING = "all rules deleted"
"""Replies reach the client in the backend's name until the rules are back, and are answered with a RST."""
RETRANSMISSION = 0.2
"""Seconds, of the server's reply, which the client acknowledges with its next request, or when it is told."""
OF_RAW_ALONE = ("TUN down and up", "rule deleted", "all routes through the TUN deleted")
"""Programs need no routes."""
ENGINES_DAMAGED = [
    pytest.param(starter, damage, id=f"{engine}-{damage}")
    for engine, starter in (("raw", start_raw), ("ebpf", start_ebpf))
    for damage in DAMAGES
    if engine == "raw" or damage not in OF_RAW_ALONE
]


@pytest.mark.parametrize(("start", "damage"), ENGINES_DAMAGED, indirect=["start"])
def test_what_somebody_has_removed_is_put_back(
    start: Start, site: Site, hosts: Hosts, client: TaggedClient, damage: str
) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, b"one") == b"8080 one"
        if damage == EXPOSING:
            await acknowledged(flow)
        DAMAGES[damage](hosts)
        if damage == EXPOSING:
            hosts.middle.run("ip rule add pref 32766 lookup main")
        else:
            await trio.sleep(2 * RETRANSMISSION)
        said = started.engine.tend()
        assert said != [] or start is not start_raw
        assert started.engine.tend() == []
        assert await ask(flow, b"two") == b"8080 two"
        assert await ask(client.connection(VIP, 4002), b"one") == b"8080 one"

    run(start, site, [SERVICE], conversation)


def test_programs_that_somebody_has_detached_are_put_back(
    site: Site, client: TaggedClient, hosts: Hosts
) -> None:
    if not supports_tcx():
        pytest.skip("this kernel has no TCX links")

    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, b"one") == b"8080 one"
        links = list(site.state_dir.glob("bpf/packetbridge-*/link_*"))
        assert len(links) == 5  # two at each interface, one at the TUN
        await acknowledged(flow)  # or its reply would come again, in the backend's name
        for link in links:
            hosts.middle.run(f"bpftool link detach pinned {link}")
        with pytest.raises(TimeoutError):
            await ask(flow, b"two", SOON / 4)
        assert started.engine.tend() != []
        assert started.engine.tend() == []
        assert await ask(flow, b"two") == b"8080 two"

    run(start_ebpf, site, [SERVICE], conversation)


def test_flow_goes_on_when_its_interface_was_down(
    start: Start, site: Site, hosts: Hosts, client: TaggedClient
) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, b"one") == b"8080 one"
        hosts.middle.run("ip link set m0 down")
        started.engine.tend()
        with pytest.raises(TimeoutError):
            await ask(flow, b"two", SOON)
        hosts.middle.run("ip link set m0 up")
        assert await ask(flow, b"two") == b"8080 two"
        started.engine.tend()
        assert await ask(flow, b"three") == b"8080 three"
        assert started.engine.tend() == []

    run(start, site, [SERVICE], conversation)


def test_interface_that_is_deleted_and_made_again_serves_on(
    start: Start, site: Site, hosts: Hosts, client: TaggedClient
) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, b"one") == b"8080 one"
        hosts.middle.run("ip link del m0")
        gone = started.engine.tend()
        assert f"{MIDDLE} is on no interface of this host any more: what needs it is cut off" in gone
        assert started.engine.tend() == []
        hosts.middle.run(f"ip link add m0 type veth peer name c0 netns {hosts.client.name}")
        hosts.client.run("ip address add 10.98.1.1/24 dev c0")
        hosts.client.run("ip link set c0 up")
        hosts.middle.run("ip address add 10.98.1.2/24 dev m0")
        hosts.middle.run("ip link set m0 up")
        back = started.engine.tend()
        assert f"{MIDDLE} is back, on m0" in back
        assert started.engine.tend() == []
        with hosts.client.entered():
            again = TaggedClient("c0", CLIENT, MIDDLE)
        with closing(again):
            assert await ask(again.connection(VIP, 4002), b"one") == b"8080 one"

    run(start, site, [SERVICE], conversation)


def test_flow_goes_on_when_the_bridge_address_moves(
    start: Start, site: Site, hosts: Hosts, client: TaggedClient
) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, b"one") == b"8080 one"
        hosts.middle.run("ip address del 10.98.1.2/24 dev m0")
        hosts.middle.run("ip address add 10.98.1.2/32 dev lo")
        hosts.middle.run("ip address add 10.98.1.3/24 dev m0")
        assert started.engine.tend() == [f"{MIDDLE} has moved from m0 to lo"]
        assert await ask(flow, b"two") == b"8080 two"

    run(start, site, [SERVICE], conversation)


def test_flow_goes_on_when_the_mtu_changes(
    start: Start, site: Site, hosts: Hosts, client: TaggedClient
) -> None:
    async def conversation(started: PacketbridgeEngine) -> None:
        flow = client.connection(VIP, 4001)
        assert await ask(flow, bytes(900)) == b"8080 " + bytes(900)
        hosts.middle.run("ip link set m0 mtu 1000")
        assert started.engine.tend() == []
        assert await ask(flow, bytes(900)) == b"8080 " + bytes(900)

    run(start, site, [SERVICE], conversation)


def test_restart_with_one_more_vip_keeps_the_flows(
    start: Start, site: Site, client: TaggedClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    flow = client.connection(VIP, 4001)

    async def before(_: PacketbridgeEngine) -> None:
        assert await ask(flow, b"one") == b"8080 one"

    async def afterwards(started: PacketbridgeEngine) -> None:
        assert await ask(flow, b"two") == b"8080 two"
        other = client.connection(OTHER_VIP, 4001, vip_port=81, index=2)
        assert await ask(other, b"one") == b"8081 one"
        assert {each.vip_index for each in started.engine.flows()} == {1, 2}

    run(start, site._replace(keep_flows=True), [SERVICE], before)
    run(start, site, [SERVICE, OTHER], afterwards)
    assert not any("another kind" in message for message in caplog.messages)


def test_restart_with_another_backend_ends_the_flows(start: Start, site: Site, client: TaggedClient) -> None:
    flow = client.connection(VIP, 4001)

    async def before(_: PacketbridgeEngine) -> None:
        assert await ask(flow, b"one") == b"8080 one"

    async def afterwards(started: PacketbridgeEngine) -> None:
        assert list(started.engine.flows()) == []
        assert await ask(client.connection(VIP, 4002), b"one") == b"8081 one"

    run(start, site._replace(keep_flows=True), [SERVICE], before)
    run(start, site, [SERVICE._replace(backend_port=OTHER_PORT)], afterwards)
