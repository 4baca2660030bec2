"""Bounded loads under a load as the web has it: few keys are hot, most are cold, and flows come and go."""

import heapq
import random
import struct
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import accumulate
from math import ceil
from typing import NamedTuple

import pytest

from balancer.core.choice import ALL_AT_BOUND, BOUNDED_AWAY, Choice, choose
from balancer.core.loads import FACTOR_ONE, CountedLoads
from balancer.core.service import Service, make_nodes
from common.hashing.sequence import LENGTH
from common.hashing.xxh64 import xxh64

VIP = bytes((192, 0, 2, 1))
WEIGHTS = {f"node{number}": 1 + number % 3 for number in range(8)}
KEYS = 1000
FACTOR = 1.25
HASHES = [xxh64(b"/film/%d" % key) for key in range(KEYS)]


@cache
def make_service(factor: float = FACTOR) -> Service:
    members = {name: (bytes((10, 0, 0, number)), WEIGHTS[name]) for number, name in enumerate(WEIGHTS)}
    nodes, table = make_nodes(VIP, 80, 1, members)
    weights = dict(members.values())
    return Service(VIP, 80, 1, nodes, table, weights=weights, load_factor=int(factor * FACTOR_ONE))


class Arrived(NamedTuple):
    key: int
    choice: Choice
    flows: dict[str, int]
    """Of all nodes, this one included."""


class Town:
    """Whose people open flows, and which nodes have them; the nodes say at once what they have."""

    def __init__(self, service: Service, seed: int) -> None:
        self.service = service
        self.loads = CountedLoads()
        self.loads.configure(1, service.weights, service.load_factor)
        self.flows: Counter[str] = Counter(dict.fromkeys(WEIGHTS, 0))
        for node in service.nodes.values():
            self.loads.correct(1, node.address, 0)
        self._chance = random.Random(seed)
        self._ends: list[tuple[float, str]] = []
        self._now = 0.0

    def open(self, key: int, lifetime: float) -> Arrived:
        choice = choose(self.service, self.loads, HASHES[key])
        assert choice is not None
        self.flows[choice.node.name] += 1
        self.loads.count(1, choice.node.address)
        heapq.heappush(self._ends, (self._now + lifetime, choice.node.name))
        return Arrived(key, choice, dict(self.flows))

    def pass_time(self, seconds: float) -> None:
        self._now += seconds
        while self._ends and self._ends[0][0] <= self._now:
            _, name = heapq.heappop(self._ends)
            self.flows[name] -= 1
            self.loads.correct(1, self.service.nodes[name].address, self.flows[name])

    def live(self, arrivals: int, exponent: float = 1.0) -> Iterator[Arrived]:
        """Keys by Zipf's law; flows of 10 seconds on average, 100 new ones a second."""
        shares = [1 / rank**exponent for rank in range(1, KEYS + 1)]
        for key in self._chance.choices(range(KEYS), shares, k=arrivals):
            self.pass_time(self._chance.expovariate(100))
            yield self.open(key, self._chance.expovariate(0.1))


def bound_of(name: str, total: int) -> int:
    return ceil(Fraction(FACTOR) * total * Fraction(WEIGHTS[name], sum(WEIGHTS.values())))


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.5])
def test_no_node_is_handed_a_flow_beyond_its_bound(exponent: float) -> None:
    displaced: Counter[str] = Counter()
    for arrived in Town(make_service(), seed=1).live(10_000, exponent):
        name = arrived.choice.node.name
        assert arrived.flows[name] <= bound_of(name, sum(arrived.flows.values()))
        displaced[arrived.choice.displaced] += 1
    assert displaced[BOUNDED_AWAY] > 100, "the load was no test"
    assert not displaced[ALL_AT_BOUND]


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.5])
def test_flows_try_as_few_nodes_as_the_factor_leaves_room(exponent: float) -> None:
    """Nodes at their bound have at most 1/c of all weight, or they would have more flows than there are.

    So a look-up, which meets each node as often as its weight says, hits another with 1 - 1/c at least.
    """
    arrivals, looked_up = 10_000, 0
    for arrived in Town(make_service(), seed=2).live(arrivals, exponent):
        sequence = distinct_sequence(arrived.key)
        looked_up += 1 + sequence.index(arrived.choice.node.name)
    assert looked_up / arrivals <= 1 / (1 - 1 / FACTOR)


@pytest.mark.parametrize("key", range(20))
def test_a_hot_key_uses_no_more_of_its_sequence_than_has_room_for_it_and_comes_back(key: int) -> None:
    flows = 400
    sequence = distinct_sequence(key)
    town = Town(make_service(), seed=3)
    used = {town.open(key, lifetime=10).choice.node.name for _ in range(flows)}
    room = accumulate(bound_of(name, flows) for name in sequence)
    enough = next((number for number, sum_ in enumerate(room, 1) if sum_ >= flows), len(sequence))
    assert used == set(sequence[:enough])
    assert enough > 1
    town.pass_time(11)
    assert town.open(key, lifetime=10).choice == Choice(town.service.nodes[sequence[0]])


def test_two_hot_keys_do_not_share_their_way() -> None:
    ways = {tuple(distinct_sequence(key)[:3]) for key in range(20)}
    assert len(ways) > 10


def test_where_no_node_says_that_it_has_room_the_first_one_gets_the_flow() -> None:
    town = Town(make_service(), seed=4)
    town.loads.configure(1, town.service.weights, 1)
    for node in town.service.nodes.values():
        town.loads.correct(1, node.address, 1000)
    first = town.service.nodes[distinct_sequence(0)[0]]
    assert town.open(0, lifetime=1).choice == Choice(first, ALL_AT_BOUND)


def test_without_a_factor_every_key_has_one_node_whatever_the_loads() -> None:
    service = make_service(factor=0)
    assert service.table is not None
    for arrived in Town(service, seed=5).live(5000):
        assert arrived.choice == Choice(service.nodes[service.table.lookup(HASHES[arrived.key])])


def distinct_sequence(key: int) -> list[str]:
    table = make_service().table
    assert table is not None
    return list(dict.fromkeys(table.lookup(HASHES[key] if n == 0 else rehash(key, n)) for n in range(LENGTH)))


def rehash(key: int, n: int) -> int:
    return xxh64(struct.pack("<Q", HASHES[key]), n)
