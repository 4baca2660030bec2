"""The channel over a network that loses, remarks, refuses and changes: balancer - router - node, routed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from balancer.core.channel import State
from common.keyring import KeySource
from tests.root.namespaces import MIDDLE, SERVER, Hosts, three_hosts
from tests.unit.daemons.channel_ends import CLIENT, FACTS, PERIOD, BalancerEnd, NodeEnd, converse, peer

pytestmark = pytest.mark.root

PORT = 19507
NODE = str(SERVER)
PEERS = [peer(NODE, 1, 7)]
TO_NODE, FROM_NODE = f"udp dport {PORT}", f"udp sport {PORT}"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        hosts.middle.run("nft add table ip channel")
        hosts.middle.run("nft add chain ip channel passing { type filter hook forward priority 0 ; }")
        yield hosts


@pytest.fixture
def keys(tmp_path: Path) -> KeySource:
    return KeySource(tmp_path, is_insecure=True)


@pytest.fixture
def balancer(keys: KeySource) -> BalancerEnd:
    return BalancerEnd(keys, PORT)


@pytest.fixture
def node(hosts: Hosts, keys: KeySource) -> Iterator[NodeEnd]:
    with hosts.server.entered():
        node = NodeEnd(NODE, keys, PORT)
    with node.open():
        yield node


def rule(hosts: Hosts, text: str) -> None:
    """Of the router, for what it passes on; instead of the one before."""
    hosts.middle.run("nft flush chain ip channel passing")
    if text:
        hosts.middle.run(f"nft add rule ip channel passing {text}")


def test_every_third_datagram_lost_costs_no_channel(hosts: Hosts, keys: KeySource, node: NodeEnd) -> None:
    rule(hosts, "meta l4proto udp numgen inc mod 3 0 drop")
    balancer = BalancerEnd(keys, PORT, period=3 * PERIOD)

    async def script() -> None:
        await balancer.until(lambda _: balancer.counters["channel_answers"] >= 10)
        for _ in range(10):
            if await balancer.channels.ask_flow("n1", 1, CLIENT, 49152) is not None:
                return
        raise AssertionError("ten questions for a flow without an answer")

    with hosts.client.entered():
        converse(balancer, PEERS, node, script=script)
    assert {state for _, state in balancer.told} == {State.OK}
    assert balancer.word().marking_problems() == []


@pytest.mark.parametrize("direction", [TO_NODE, FROM_NODE], ids=["requests", "answers"])
def test_a_filter_on_the_way_is_silence_until_it_is_gone(
    hosts: Hosts, balancer: BalancerEnd, node: NodeEnd, direction: str
) -> None:
    async def script() -> None:
        await balancer.until_state(State.OK)
        rule(hosts, f"{direction} drop")
        word = await balancer.until_state(State.SILENT)
        assert word.report is not None
        rule(hosts, "")
        await balancer.until_state(State.OK)

    with hosts.client.entered():
        converse(balancer, PEERS, node, script=script)
    changes = [
        state
        for before, (_, state) in zip([None, *balancer.told], balancer.told, strict=False)
        if before is None or before[1] is not state
    ]
    assert changes == [State.OK, State.SILENT, State.OK]


def test_a_router_that_remarks_one_dscp_is_found(hosts: Hosts, balancer: BalancerEnd, node: NodeEnd) -> None:
    rule(hosts, f"{TO_NODE} ip dscp 7 ip dscp set 0")

    async def script() -> None:
        word = await balancer.until(lambda word: len(word.dscp_seen) == 2)
        assert word.marking_problems() == [
            "DSCP 7 arrives at node n1 as DSCP 0: a router on the way remarks it"
        ]
        rule(hosts, "")
        await balancer.until(lambda word: word.dscp_seen == {1: 1, 7: 7})

    with hosts.client.entered():
        converse(balancer, PEERS, node, script=script)


def test_a_filter_that_drops_one_dscp_is_found(hosts: Hosts, balancer: BalancerEnd, node: NodeEnd) -> None:
    rule(hosts, f"{TO_NODE} ip dscp 7 drop")

    async def script() -> None:
        word = await balancer.until(lambda word: word.dscp_seen == {1: 1, 7: None})
        assert word.state is State.OK

    with hosts.client.entered():
        converse(balancer, PEERS, node, script=script)


def test_a_router_that_knows_no_way_is_named(hosts: Hosts, balancer: BalancerEnd, node: NodeEnd) -> None:
    async def script() -> None:
        await balancer.until_state(State.OK)
        hosts.middle.run(f"ip route add unreachable {NODE}/32")
        word = await balancer.until_state(State.UNREACHABLE)
        assert word.text == f"unreachable: no route to host, says {MIDDLE}"
        hosts.middle.run(f"ip route del unreachable {NODE}/32")
        await balancer.until_state(State.OK)

    with hosts.client.entered():
        converse(balancer, PEERS, node, script=script)


def test_a_balancer_without_a_route_says_so(hosts: Hosts, balancer: BalancerEnd, node: NodeEnd) -> None:
    hosts.client.run("ip route del 10.98.2.0/24")

    async def script() -> None:
        word = await balancer.until_state(State.UNREACHABLE)
        assert word.text == "unreachable: network is unreachable"
        hosts.client.run("ip route add 10.98.2.0/24 via 10.98.1.2")
        await balancer.until_state(State.OK)

    with hosts.client.entered():
        converse(balancer, PEERS, node, script=script)


def test_a_node_without_a_packetbridge_is_told_from_silence(hosts: Hosts, balancer: BalancerEnd) -> None:
    async def script() -> None:
        await balancer.until_state(State.CLOSED)

    with hosts.client.entered():
        converse(balancer, PEERS, script=script)


def test_a_bridge_address_may_go_and_come_back(hosts: Hosts, balancer: BalancerEnd, keys: KeySource) -> None:
    hosts.server.run(f"ip address del {NODE}/24 dev s0")
    with hosts.server.entered():
        node = NodeEnd(NODE, keys, PORT)

    def add_address() -> None:
        hosts.server.run(f"ip address add {NODE}/24 dev s0")
        hosts.server.run("ip route add 10.98.1.0/24 via 10.98.2.1")

    async def script() -> None:
        await trio.sleep(PERIOD)
        add_address()
        await balancer.until_state(State.OK)
        hosts.server.run(f"ip address del {NODE}/24 dev s0")
        await balancer.until(lambda word: word.state in (State.SILENT, State.UNREACHABLE))
        add_address()
        await balancer.until_state(State.OK)

    with node.open(), hosts.client.entered():
        converse(balancer, PEERS, node, script=script)


def test_a_balancer_may_change_its_address(hosts: Hosts, balancer: BalancerEnd, node: NodeEnd) -> None:
    async def script() -> None:
        await balancer.until_state(State.OK)
        hosts.client.run("ip address add 10.98.1.7/24 dev c0")
        hosts.client.run("ip address del 10.98.1.1/24 dev c0")
        hosts.client.run("ip address add 10.98.1.8/24 dev c0")
        hosts.client.run("ip route replace 10.98.2.0/24 via 10.98.1.2")
        answers = balancer.counters["channel_answers"]
        await balancer.until(lambda _: balancer.counters["channel_answers"] > answers + 2)

    with hosts.client.entered():
        converse(balancer, PEERS, node, script=script)


def test_a_path_with_a_small_mtu_carries_the_largest_messages(
    hosts: Hosts, balancer: BalancerEnd, node: NodeEnd
) -> None:
    hosts.middle.run("ip link set m1 mtu 600")
    hosts.server.run("ip link set s0 mtu 600")
    vips = tuple(FACTS.vips[0]._replace(vip_index=index) for index in range(1, 64))
    node.facts = FACTS._replace(vips=vips)

    async def script() -> None:
        word = await balancer.until_state(State.OK)
        assert word.report is not None
        assert word.report.facts.vips == vips

    with hosts.client.entered():
        converse(balancer, PEERS, node, script=script)
