"""How packets to the nodes leave: what the map `routes` says, and that it says what the kernel does."""

import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from ipaddress import IPv4Address

import pytest
import trio

from balancer.ebpf.abi import ROUTE
from balancer.ebpf.routes import NodeRoutes
from common.bpf.maps import HashMap
from common.net.watch import NetworkWatch
from tests.root.ebpf.hash_maps import hash_map
from tests.root.namespaces import CLIENT, MIDDLE, SERVER, Hosts

pytestmark = pytest.mark.root

BEHIND = IPv4Address("10.77.0.1")
"""A node that no interface has on its link."""
SECONDS = 30
"""In which a change must have been followed."""


@pytest.fixture
def routes() -> Iterator[HashMap]:
    with hash_map(4, ROUTE.size) as routes:
        yield routes


def row(interface: str | None, next_hop: IPv4Address) -> bytes:
    index = socket.if_nametoindex(interface) if interface else 0
    return index.to_bytes(4, "little") + next_hop.packed + bytes(4)


def nothing() -> None:
    pass


def test_each_node_has_its_interface_and_next_hop(hosts: Hosts, routes: HashMap) -> None:
    hosts.middle.run(f"ip route add {BEHIND} via {SERVER}")
    NodeRoutes(routes, [CLIENT, SERVER, BEHIND])
    assert dict(routes.items()) == {
        CLIENT.packed: row("m0", CLIENT),
        SERVER.packed: row("m1", SERVER),
        BEHIND.packed: row("m1", SERVER),
    }


@pytest.mark.parametrize(
    "node", [MIDDLE, IPv4Address("127.0.0.1"), BEHIND], ids=["own", "loopback", "no route"]
)
@pytest.mark.usefixtures("hosts")
def test_node_of_this_host_and_one_without_route_are_left_to_the_kernel(
    routes: HashMap, node: IPv4Address
) -> None:
    NodeRoutes(routes, [node])
    assert routes.lookup(node.packed) == row(None, node)


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_route_that_refuses_is_none(hosts: Hosts, routes: HashMap, kind: str) -> None:
    hosts.middle.run(f"ip route add {kind} {BEHIND}")
    NodeRoutes(routes, [BEHIND])
    assert routes.lookup(BEHIND.packed) == row(None, BEHIND)


def test_route_by_an_ipv6_gateway_is_left_to_the_kernel(hosts: Hosts, routes: HashMap) -> None:
    hosts.middle.run("sysctl -q -w net.ipv6.conf.m1.disable_ipv6=0")
    hosts.middle.run("ip -6 address add fd00::1/64 dev m1 nodad")
    hosts.middle.run(f"ip route add {BEHIND} via inet6 fd00::2 dev m1")
    NodeRoutes(routes, [BEHIND])
    assert routes.lookup(BEHIND.packed) == row(None, BEHIND)


@pytest.mark.usefixtures("hosts")
def test_routes_of_an_earlier_runs_nodes_are_looked_after(routes: HashMap) -> None:
    routes.update(SERVER.packed, row("m0", CLIENT))
    NodeRoutes(routes, [CLIENT])
    assert routes.lookup(SERVER.packed) == row("m1", SERVER)


def test_the_smallest_mtu_is_that_of_configured_nodes_with_a_route(hosts: Hosts, routes: HashMap) -> None:
    hosts.middle.run("ip link set m1 mtu 1400")
    hosts.middle.run(f"ip route add {BEHIND} via {SERVER} mtu 1300")
    assert NodeRoutes(routes, [IPv4Address("192.0.2.1")]).mtu == 1500, "there is no route"
    kept = NodeRoutes(routes, [CLIENT])
    assert kept.mtu == 1500
    kept.serve([CLIENT, SERVER])
    assert kept.mtu == 1400
    kept.serve([CLIENT, BEHIND])
    assert kept.mtu == 1300
    kept.serve([CLIENT])
    assert kept.mtu == 1500, "the others are looked after, but nothing new goes there"
    assert routes.lookup(BEHIND.packed) == row("m1", SERVER)


def test_nodes_for_which_there_is_no_room_are_left_to_the_kernel(hosts: Hosts) -> None:
    with hosts.middle.entered(), hash_map(4, ROUTE.size, 1) as small:
        NodeRoutes(small, [CLIENT, SERVER])
        assert small.count() == 1


def test_an_mtu_that_has_changed_is_told(hosts: Hosts, routes: HashMap) -> None:
    async def follow() -> None:
        with closing(NetworkWatch()) as watch:
            kept = NodeRoutes(routes, [SERVER])
            told: list[int] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kept.follow, watch, lambda: told.append(kept.mtu), nothing)
                hosts.middle.run("ip link set m1 mtu 1400")
                await seen(lambda: told[-1:] == [1400])
                nursery.cancel_scope.cancel()

    trio.run(follow)


def test_node_that_is_configured_no_more_is_forgotten_when_it_has_no_flows(
    hosts: Hosts, routes: HashMap
) -> None:
    with_flows = {SERVER.packed}

    def mark() -> None:
        for node in with_flows:
            found = routes.lookup(node)
            assert found is not None
            routes.update(node, found[:8] + b"\1\0\0\0")

    async def follow() -> None:
        with closing(NetworkWatch()) as watch:
            kept = NodeRoutes(routes, [CLIENT, SERVER, BEHIND])
            kept.serve([CLIENT])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kept.follow, watch, nothing, mark)
                hosts.middle.run("ip link set m1 mtu 1400")
                await seen(lambda: {key for key, _ in routes.items()} == {CLIENT.packed, SERVER.packed})
                with_flows.clear()
                hosts.middle.run("ip link set m1 mtu 1300")
                await seen(lambda: {key for key, _ in routes.items()} == {CLIENT.packed})
                kept.serve([CLIENT, SERVER])
                assert routes.lookup(SERVER.packed) == row("m1", SERVER)
                nursery.cancel_scope.cancel()

    trio.run(follow)


def test_node_that_is_configured_no_more_while_flows_are_looked_for_stays(
    hosts: Hosts, routes: HashMap
) -> None:
    async def follow() -> None:
        with closing(NetworkWatch()) as watch:
            kept = NodeRoutes(routes, [CLIENT, SERVER, BEHIND])
            kept.serve([CLIENT, SERVER])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    kept.follow, watch, nothing, lambda: trio.from_thread.run_sync(kept.serve, [CLIENT])
                )
                hosts.middle.run("ip link set m1 mtu 1400")
                await seen(lambda: {key for key, _ in routes.items()} == {CLIENT.packed, SERVER.packed})
                nursery.cancel_scope.cancel()

    trio.run(follow)


Change = Callable[[Hosts], object]
CHANGES: dict[str, tuple[Change, tuple[str | None, IPv4Address]]] = {
    "another gateway": (
        lambda hosts: hosts.middle.run(f"ip route replace {BEHIND} via {CLIENT}"),
        ("m0", CLIENT),
    ),
    "the route goes": (lambda hosts: hosts.middle.run(f"ip route del {BEHIND}"), (None, BEHIND)),
    "the interface goes down": (lambda hosts: hosts.middle.run("ip link set m1 down"), (None, BEHIND)),
    "the gateway's network goes": (
        lambda hosts: hosts.middle.run("ip address del 10.98.2.1/24 dev m1"),
        (None, BEHIND),
    ),
    "it becomes an address of this host": (
        lambda hosts: hosts.middle.run(f"ip address add {BEHIND}/32 dev lo"),
        (None, BEHIND),
    ),
    "a rule leads elsewhere": (
        lambda hosts: hosts.middle.run(f"ip rule add to {BEHIND} lookup 77 priority 50"),
        ("m0", CLIENT),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_followed(hosts: Hosts, routes: HashMap, change: str) -> None:
    hosts.middle.run(f"ip route add {BEHIND} via {SERVER}")
    hosts.middle.run(f"ip route add {BEHIND} via {CLIENT} table 77")
    act, (interface, next_hop) = CHANGES[change]
    expected = row(interface, next_hop)

    async def follow() -> None:
        with closing(NetworkWatch()) as watch:
            kept = NodeRoutes(routes, [BEHIND])
            assert routes.lookup(BEHIND.packed) == row("m1", SERVER)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kept.follow, watch, nothing, nothing)
                act(hosts)
                await seen(lambda: routes.lookup(BEHIND.packed) == expected)
                nursery.cancel_scope.cancel()

    trio.run(follow)


async def seen(holds: Callable[[], bool]) -> None:
    for _ in range(100 * SECONDS):
        if holds():
            return
        await trio.sleep(0.01)
    pytest.fail("the change was not followed")


NO_NEWS_SECONDS = 0.5


async def wakes(watch: NetworkWatch, act: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether the watch speaks of what ``act`` does."""
    wait: Callable[[], Awaitable[None]] = watch.changed
    with trio.move_on_after(seconds):
        act()
        await wait()
        return True
    return False


@pytest.mark.parametrize(
    ("command", "is_news"),
    [
        ("ip route add 10.77.0.0/24 via 10.98.2.2", True),
        ("ip address add 10.77.0.1/32 dev m0", True),
        ("ip link set m0 mtu 1400", True),
        ("ip link add dummy7 type veth", True),
        ("ip rule add from 10.77.0.1 lookup 77", True),
        ("ip neighbour add 10.98.2.77 lladdr 02:00:00:00:00:01 dev m1", False),
        ("ip -4 address show", False),
    ],
)
def test_watch_wakes_for_links_addresses_routes_and_rules(hosts: Hosts, command: str, is_news: bool) -> None:
    async def watching() -> bool:
        with closing(NetworkWatch()) as watch:
            patience = {} if is_news else {"seconds": NO_NEWS_SECONDS}
            return await wakes(watch, lambda: hosts.middle.run(command), **patience)

    assert trio.run(watching) == is_news


def test_watch_speaks_once_of_a_bundle_of_changes_and_of_those_before_it_was_asked(hosts: Hosts) -> None:
    async def watching() -> tuple[bool, bool]:
        with closing(NetworkWatch()) as watch:
            for number in range(5):
                hosts.middle.run(f"ip route add 10.77.{number}.0/24 via {SERVER}")
            return await wakes(watch, lambda: None), await wakes(watch, lambda: None, NO_NEWS_SECONDS)

    assert trio.run(watching) == (True, False)


def test_watch_survives_more_changes_than_there_was_room_for(hosts: Hosts) -> None:
    """The kernel's own limit on what waits, for which recv gives ENOBUFS."""
    lines = "".join(f"route add 10.77.{at >> 8}.{at & 255}/32 via {SERVER}\n" for at in range(4000))

    async def watching() -> tuple[bool, bool, bool]:
        with closing(NetworkWatch()) as watch:
            watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            flood(hosts, lines)
            after_flood = await wakes(watch, lambda: None), await wakes(watch, lambda: None, NO_NEWS_SECONDS)
            return *after_flood, await wakes(watch, lambda: hosts.middle.run("ip link set m0 mtu 1400"))

    assert trio.run(watching) == (True, False, True)


def flood(hosts: Hosts, lines: str) -> None:
    command = ["ip", "netns", "exec", hosts.middle.name, "ip", "-batch", "-"]
    subprocess.run(command, input=lines, text=True, check=True, timeout=20)


@pytest.mark.usefixtures("hosts")
def test_closed_watch_is_an_error_and_not_a_loop() -> None:
    async def watching() -> None:
        watch = NetworkWatch()
        watch.close()
        watch.close()
        with trio.fail_after(SECONDS):
            await watch.changed()

    with pytest.raises((OSError, ValueError)):
        trio.run(watching)
