"""Bounded loads: no node far above the average, whatever is popular, and hot keys on few nodes.

The load is of long downloads whose URLs have a Zipf popularity, under a seed, from several addresses. They
begin one after the other.
"""

import json
import math
import random
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from common.hashing.maglev import DEFAULT_SIZE, build
from common.hashing.sequence import node_sequence
from common.hashing.xxh64 import xxh64
from lab import Lab
from tests.lab import checked
from tests.lab.checked import ALL, node_flows, ruled
from tests.lab.conversation import VIP_ADDRESS
from tests.lab.sockets import PATIENCE_SECONDS, await_that, inside, say

pytestmark = pytest.mark.root

CONNECTIONS = 400
URLS = 100
SEED = 33
EXPONENT = 1.2
HOT = "/slow/file/1700/1m"
TABLE = build(dict.fromkeys(ALL, 10), DEFAULT_SIZE)


class Download(NamedTuple):
    target: str
    node: str


@pytest.fixture(scope="module")
def loaded_lab(lab: Lab) -> Lab:
    for node in lab.topology.nodes:
        lab.start_packetbridge(node.name)
    checked.start(lab, health=None)
    checked.await_all_up(lab)
    return lab


def film(number: int) -> str:
    """A download of ten minutes."""
    return f"/slow/file/{1700 + number}/1m"


def popular() -> list[str]:
    """The targets of all connections in their order. `HOT` is the most popular."""
    weights = [1 / (rank + 1) ** EXPONENT for rank in range(URLS)]
    return random.Random(SEED).choices([film(number) for number in range(URLS)], weights, k=CONNECTIONS)


@contextmanager
def bounded(lab: Lab, factor: float | str) -> Iterator[None]:
    """With this load factor; begins and ends without flows."""
    await_word_of(lab, 0)
    checked.reconfigure(lab, pool={"load-factor": factor}, health=None)
    try:
        yield
    finally:
        checked.reconfigure(lab, health=None)


@contextmanager
def downloading(lab: Lab, targets: Sequence[str]) -> Iterator[list[Download]]:
    """Until the end of the block, from all of the client's addresses in turn."""
    sockets = inside(lab.client, lambda: [socket.socket() for _ in targets])
    addresses = [str(address) for address in lab.topology.client.addresses]
    try:
        yield [
            begin(client, addresses[turn % len(addresses)], target)
            for turn, (client, target) in enumerate(zip(sockets, targets, strict=True))
        ]
    finally:
        for client in sockets:
            client.close()


def begin(client: socket.socket, address: str, target: str) -> Download:
    client.settimeout(PATIENCE_SECONDS)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.bind((address, 0))
    client.connect((VIP_ADDRESS, 80))
    say(client, target)
    head = client.recv(1 << 16)
    assert head.startswith(b"HTTP/1.1 200 "), head
    return Download(target, head.partition(b"\r\nX-Node: ")[2].partition(b"\r\n")[0].decode())


def flows(lab: Lab) -> dict[str, int]:
    """By the nodes' own reports."""
    return {node.name: node_flows(node) for node in lab.nodes}


def reported(lab: Lab) -> dict[str, int | None]:
    """By the balancer's."""
    return {name: node.flows for name, node in checked.nodes(lab).items()}


def await_word_of(lab: Lab, number: int) -> None:
    """The nodes have so many flows in all, and have told the balancer since."""
    await_that(lambda: sum(flows(lab).values()) == number)
    before = answers(lab)
    await_that(lambda: not before & answers(lab) and reported(lab) == flows(lab))


def answers(lab: Lab) -> set[tuple[str, float | None]]:
    """The last one of each node, told from others by how long it took."""
    return {(name, channel.round_trip) for name, channel in checked.channels(lab).items()}


def explained(lab: Lab, target: str) -> list[str]:
    """Its sequence of nodes."""
    said = json.loads(lab.tool(lab.balancer, "explain", target, "--json").stdout)
    return [str(node) for node in said["sequence"]]


def sequence(target: str) -> list[str]:
    return list(dict.fromkeys(node_sequence(TABLE, xxh64(target.encode(), 0))))


def nodes_by_rule(targets: Sequence[str], factor: float) -> dict[str, set[str]]:
    """Of each target, by Mirrokni, Thorup and Zadimoghaddam: the first of its sequence that has less than
    ``factor`` times its share, the new flow counted in.
    """
    sequences = {target: sequence(target) for target in set(targets)}
    loads, used = Counter[str](), {target: set[str]() for target in sequences}
    for total, target in enumerate(targets, 1):
        bound = math.ceil(factor * total / len(ALL))
        node = next(node for node in sequences[target] if loads[node] < bound)
        loads[node] += 1
        used[target].add(node)
    return used


@pytest.mark.parametrize("factor", [1.25, 1.5])
def test_no_node_has_more_than_its_bound(loaded_lab: Lab, factor: float) -> None:
    targets = popular()
    with bounded(loaded_lab, factor), downloading(loaded_lab, targets) as downloads:
        found = Counter(download.node for download in downloads)
        assert flows(loaded_lab) == found
        await_that(lambda: reported(loaded_lab) == found)
        assert max(found.values()) <= math.ceil(factor * CONNECTIONS / len(ALL))
        used = {target: {d.node for d in downloads if d.target == target} for target in set(targets)}
        expected = nodes_by_rule(targets, factor)
        assert used[HOT] == expected[HOT] == set(explained(loaded_lab, HOT)[: len(used[HOT])])
        assert sum(map(len, used.values())) <= 1.05 * sum(map(len, expected.values()))
        assert checked.report(loaded_lab).counters["bounded_away"] > 0


def test_without_a_bound_the_node_of_the_hot_keys_is_overloaded(loaded_lab: Lab) -> None:
    with bounded(loaded_lab, "off"), downloading(loaded_lab, popular()) as downloads:
        found = Counter(download.node for download in downloads)
        assert max(found.values()) > 1.5 * CONNECTIONS / len(ALL)
        assert all(len({d.node for d in downloads if d.target == target}) == 1 for target in popular())


def test_a_hot_key_comes_back_to_its_node_when_it_cools(loaded_lab: Lab) -> None:
    first, second, _ = explained(loaded_lab, HOT)
    others = [target for target in map(film, range(1, URLS)) if sequence(target)[0] != first][:30]
    with bounded(loaded_lab, 1.5), downloading(loaded_lab, others):
        with downloading(loaded_lab, [HOT] * 60) as hot:
            assert {download.node for download in hot} == {first, second}
        await_word_of(loaded_lab, len(others))
        with downloading(loaded_lab, [HOT] * 5) as cool:
            assert {download.node for download in cool} == {first}


def test_bounds_rest_while_nodes_do_not_report(loaded_lab: Lab) -> None:
    first = explained(loaded_lab, HOT)[0]
    with bounded(loaded_lab, 1.25):
        with ruled(loaded_lab.router, "forward", "udp dport 19507 drop"):
            await_that(lambda: reported(loaded_lab) == dict.fromkeys(ALL))
            with downloading(loaded_lab, [HOT] * 30) as downloads:
                assert {download.node for download in downloads} == {first}
        checked.await_all_up(loaded_lab)
        await_word_of(loaded_lab, 0)
        with downloading(loaded_lab, [HOT] * 30) as downloads:
            assert {download.node for download in downloads} == set(ALL)
