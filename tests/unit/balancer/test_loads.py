"""How many flows each node has, and who takes one more."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.core.loads import FACTOR_ONE, CountedLoads, NodeLoad, has_room

A, B, C = (bytes((10, 0, 0, number)) for number in (1, 2, 3))


def loads_of(
    *flows: int | None, factor: int = 2 * FACTOR_ONE, weights: tuple[int, ...] = (1, 1, 1)
) -> CountedLoads:
    loads = CountedLoads()
    loads.configure(1, dict(zip((A, B, C), weights, strict=True)), factor)
    for node, said in zip((A, B, C), flows, strict=True):
        loads.correct(1, node, said)
    return loads


def admitted(loads: CountedLoads, index: int = 1) -> list[bytes]:
    return [node for node in (A, B, C) if loads.admits(index, node)]


@given(
    load=st.integers(0, 1 << 40),
    others=st.integers(0, 1 << 40),
    weight=st.integers(1, 1000),
    other_weights=st.integers(0, 100_000),
    factor=st.integers(FACTOR_ONE, 100 * FACTOR_ONE),
)
def test_there_is_room_up_to_the_rounded_bound(
    load: int, others: int, weight: int, other_weights: int, factor: int
) -> None:
    total, weights = load + others, weight + other_weights
    bound = ceil(Fraction(factor, FACTOR_ONE) * (total + 1) * Fraction(weight, weights))
    said = has_room(load, total, weight=weight, weights=weights, factor=factor)
    assert said == (load + 1 <= bound)


def test_a_node_at_its_bound_takes_no_more() -> None:
    assert admitted(loads_of(0, 0, 0)) == [A, B, C]
    assert admitted(loads_of(7, 2, 0)) == [B, C]  # at most 2 * 10 / 3, rounded up
    assert admitted(loads_of(6, 3, 0)) == [A, B, C]


def test_the_bound_goes_by_weight() -> None:
    assert admitted(loads_of(6, 6, 0, weights=(1, 10, 1))) == [B, C]


def test_what_a_node_has_is_what_it_said_and_what_it_was_handed_since() -> None:
    loads = loads_of(5, 0, 0)
    loads.count(1, A)
    loads.count(1, A)
    assert loads.of(1, A) == NodeLoad(flows=7, handed=2)
    loads.correct(1, A, 1)
    assert loads.of(1, A) == NodeLoad(flows=1, handed=2)


def test_handed_flows_count_in_the_total_at_once() -> None:
    loads = loads_of(8, 1, 0)
    assert not loads.admits(1, A)
    for _ in range(2):
        loads.count(1, B)
        loads.count(1, C)
    assert loads.admits(1, A)


def test_a_node_that_says_nothing_is_not_bounded_and_bounds_nobody() -> None:
    loads = loads_of(None, 3, 0)
    for _ in range(1000):
        loads.count(1, A)
    assert admitted(loads) == [A, B, C]
    assert loads.of(1, A) == NodeLoad(flows=None, handed=1000)
    loads.configure(1, {A: 1, B: 1, C: 1}, FACTOR_ONE)
    assert admitted(loads) == [A, C]  # B has 3 of the 3 + 1 that two nodes share


def test_a_node_closed_to_new_flows_does_not_count_in_the_average() -> None:
    loads = loads_of(100, 6, 0, weights=(0, 1, 1), factor=FACTOR_ONE)
    assert not loads.admits(1, B)
    assert loads.admits(1, C)
    assert loads.of(1, A) == NodeLoad(flows=100, handed=0)


def test_without_a_factor_everybody_takes_everything() -> None:
    assert admitted(loads_of(1000, 0, 0, factor=0)) == [A, B, C]


def test_nodes_that_stay_keep_their_numbers_and_others_are_forgotten() -> None:
    loads = loads_of(8, 1, 0)
    loads.count(1, B)
    loads.configure(1, {B: 1, C: 0}, 2 * FACTOR_ONE)
    assert loads.of(1, B) == NodeLoad(flows=2, handed=1)
    assert loads.of(1, C) == NodeLoad(flows=0, handed=0)
    assert loads.of(1, A) == NodeLoad(flows=None, handed=0)


def test_services_have_loads_of_their_own() -> None:
    loads = loads_of(8, 0, 0)
    loads.configure(2, {A: 1, B: 1, C: 1}, 2 * FACTOR_ONE)
    assert admitted(loads, 2) == [A, B, C]
    loads.forget(1)
    assert admitted(loads) == [A, B, C]
    assert loads.of(1, A) == NodeLoad(flows=None, handed=0)


@pytest.mark.parametrize("index", [1, 9])
def test_what_is_said_of_unknown_nodes_and_services_is_nothing(index: int) -> None:
    loads = CountedLoads()
    loads.configure(1, {A: 1}, FACTOR_ONE)
    loads.count(index, C)
    loads.correct(index, C, 5)
    assert loads.of(index, C) == NodeLoad(flows=None, handed=0)
    assert loads.admits(index, C)
