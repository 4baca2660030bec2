from collections import Counter

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from common.hashing.maglev import DEFAULT_SIZE, LookupTable, build

NODES = {f"node{number}": 1 for number in range(1, 11)}
WEIGHTED = {f"node{number}": 1 + number % 3 for number in range(1, 11)}


def permutation(name: str, size: int) -> list[int]:
    offset = xxhash.xxh64_intdigest(name.encode(), 1) % size
    skip = xxhash.xxh64_intdigest(name.encode(), 2) % (size - 1) + 1
    return [(offset + step * skip) % size for step in range(size)]


def slots_by_pseudocode(weights: dict[str, int], size: int) -> list[str]:
    """POPULATE of the Maglev paper with the accounts of Katran, permutations and rounds written out."""
    permutations = {name: permutation(name, size) for name in sorted(weights)}
    accounts = dict.fromkeys(permutations, 0)
    entry: dict[int, str] = {}
    while True:
        for name, slots in permutations.items():
            accounts[name] += weights[name]
            if accounts[name] < max(weights.values()):
                continue
            accounts[name] -= max(weights.values())
            entry[next(slot for slot in slots if slot not in entry)] = name
            if len(entry) == size:
                return [entry[slot] for slot in range(size)]


def slots_of(table: LookupTable) -> list[str]:
    return [table.lookup(slot) for slot in range(len(table.slots))]


def moved_share(before: LookupTable, after: LookupTable, untouched: set[str]) -> float:
    """Of all slots, those that changed although both their old and their new node were there all the time."""
    pairs = zip(slots_of(before), slots_of(after), strict=True)
    return sum(old != new and {old, new} <= untouched for old, new in pairs) / len(before.slots)


@pytest.mark.parametrize(
    ("weights", "slots"),
    [({"a": 1, "b": 1, "c": 1}, "bcaaabbcaccba"), ({"a": 3, "b": 1, "c": 2}, "bcaaacbaaccaa")],
)
def test_table_never_changes_between_versions(weights: dict[str, int], slots: str) -> None:
    assert "".join(slots_of(build(weights, 13))) == slots


@given(
    st.dictionaries(st.text("abcdé", min_size=1, max_size=4), st.integers(1, 9), min_size=1, max_size=7),
    st.sampled_from([7, 11, 53]),
)
def test_equals_the_pseudocode_of_paper_and_katran(weights: dict[str, int], size: int) -> None:
    assert slots_of(build(weights, size)) == slots_by_pseudocode(weights, size)


def test_order_of_the_nodes_does_not_matter() -> None:
    assert build(dict(reversed(WEIGHTED.items()))) == build(WEIGHTED)


def test_common_factor_of_all_weights_does_not_matter() -> None:
    assert build({name: 700 * weight for name, weight in WEIGHTED.items()}) == build(WEIGHTED)


def test_lookup_takes_the_hash_modulo_the_size() -> None:
    table = build(NODES)
    assert len(table.slots) == DEFAULT_SIZE == 65537
    assert table.lookup(2**64 - 1) == table.names[table.slots[(2**64 - 1) % 65537]]
    assert table.lookup(65537 + 5) == table.lookup(5)


def test_slots_are_16_bit_indexes_into_the_sorted_names() -> None:
    table = build({"b": 1, "é": 1, "a": 1}, 13)
    assert table.names == ("a", "b", "é")
    assert (table.slots.typecode, table.slots.itemsize) == ("H", 2)
    assert set(table.slots) == {0, 1, 2}


def test_equal_weights_give_shares_equal_to_one_slot() -> None:
    counts = Counter(build(NODES).slots).values()
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    "weights", [WEIGHTED, {"big": 1000, "small": 1, "smaller": 3}, {f"n{w}": w for w in range(1, 31)}]
)
def test_shares_follow_the_weights_within_the_documented_tolerance(weights: dict[str, int]) -> None:
    counts, total = Counter(slots_of(build(weights))), sum(weights.values())
    for name, weight in weights.items():
        assert abs(counts[name] - 65537 * weight / total) <= 1 + len(weights) * weight / total


def test_key_hashes_spread_evenly() -> None:
    table = build({"node1": 1, "node2": 1, "node3": 1})
    counts = Counter(table.lookup(xxhash.xxh64_intdigest(b"/video/%d.ts" % number)) for number in range(3000))
    assert set(counts) == {"node1", "node2", "node3"}
    assert all(900 <= count <= 1100 for count in counts.values())


@pytest.mark.parametrize("weights", [NODES, WEIGHTED, {"node1": 1, "node2": 1, "node3": 1}])
def test_removing_a_node_moves_its_share_and_at_most_2_percent(weights: dict[str, int]) -> None:
    before = build(weights)
    for gone in ("node1", "node3"):
        left = {name: weight for name, weight in weights.items() if name != gone}
        assert moved_share(before, build(left), set(left)) <= 0.02


def test_adding_a_node_takes_only_its_share_and_at_most_2_percent() -> None:
    assert moved_share(build(NODES), build(NODES | {"node0": 1}), set(NODES)) <= 0.02


def test_node_of_weight_0_is_as_if_it_were_not_there() -> None:
    assert build(NODES | {"drained": 0}) == build(NODES)


def test_single_node_has_every_slot() -> None:
    assert set(slots_of(build({"only": 5}))) == {"only"}


def test_smallest_tables_are_filled() -> None:
    assert sorted(slots_of(build({"a": 1, "b": 1}, 2))) == ["a", "b"]


@pytest.mark.parametrize("size", [-7, 0, 1, 4, 65536, 65539 * 65539])
def test_refuses_a_size_that_is_not_prime(size: int) -> None:
    with pytest.raises(ValueError, match="not a prime number"):
        build(NODES, size)


@pytest.mark.parametrize("weights", [{}, {"node1": 0}])
def test_refuses_to_build_without_a_node_of_weight(weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no node has a weight above 0"):
        build(weights)


def test_refuses_a_negative_weight_and_names_the_node() -> None:
    with pytest.raises(ValueError, match="weight -1 of node 'node2' is negative"):
        build({"node1": 1, "node2": -1})


@pytest.mark.parametrize(("count", "size"), [(4, 3), (65537, 65537)])
def test_refuses_more_nodes_than_slots_or_indexes(count: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"{count} nodes do not fit"):
        build({str(number): 1 for number in range(count)}, size)
