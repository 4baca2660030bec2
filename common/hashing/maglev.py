"""Maglev lookup table (Eisenbud et al., NSDI 2016, section 3.4), with weights as Katran gives them.

Each node has a permutation of all slots: `offset`, `offset + skip`, `offset + 2 * skip`... modulo the table's
size, which is prime, so that every skip visits every slot. Nodes take turns; at its turn a node takes the
first slot of its permutation that is still free. Because a permutation depends on nothing but the node's
name, nearly all slots keep their node when another one comes or goes.

Weights: in Katran's rounds each node adds its weight to an account and has a turn in every round in which
the account reaches the largest weight, which is then taken off it. So node i has its k-th turn in round
ceil(k * largest / weight_i), which is computed here instead of counted: the cost does not depend on how
unequal the weights are. Within a round the order is that of the names.

A node's number of slots differs from its exact share, size * weight / sum of weights, by at most
1 + nodes * weight / sum of weights.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from common.hashing.xxh64 import xxh64

DEFAULT_SIZE = 65537
MAX_NODES = 1 << 16
OFFSET_SEED = 1
SKIP_SEED = 2

_FREE = -1


@dataclass(frozen=True, slots=True)
class LookupTable:
    """`slots[i]` is an index into `names`: the nodes of weight above 0, sorted by their UTF-8 bytes.

    `slots` has type code H: 16 bits, host byte order.
    """

    names: tuple[str, ...]
    slots: "array[int]"

    def lookup(self, key_hash: int) -> str:
        """The name of the node that `key_hash`, any non-negative number, belongs to."""
        return self.names[self.slots[key_hash % len(self.slots)]]


def build(weights: Mapping[str, int], size: int = DEFAULT_SIZE) -> LookupTable:
    """The table for nodes given as name -> weight; a node of weight 0 is not in it.

    The order of `weights` and a common factor of them all make no difference. Raises ValueError for a
    size that is not prime, a negative weight, no node of weight above 0, or more nodes than slots or
    MAX_NODES.
    """
    if not _is_prime(size):
        raise ValueError(f"size {size} of the Maglev table is not a prime number")
    for name, weight in weights.items():
        if weight < 0:
            raise ValueError(f"weight {weight} of node {name!r} is negative")
    names = tuple(sorted(name for name, weight in weights.items() if weight))
    if not names:
        raise ValueError("no node has a weight above 0")
    if len(names) > min(size, MAX_NODES):
        raise ValueError(f"{len(names)} nodes do not fit into a Maglev table of {size} slots")
    turns = _turns([weights[name] for name in names], size)
    return LookupTable(names, array("H", _fill(names, turns, size)))


def _turns(weights: list[int], size: int) -> list[int]:
    """Node indexes in the order of their turns, one for each slot."""
    count, largest, total = len(weights), max(weights), sum(weights)
    # Rounding costs each node less than one turn, so this many rounds hold at least `size` turns.
    rounds = -(-(size + count) * largest // total)
    ordered = [
        -(-turn * largest // weight) * count + node
        for node, weight in enumerate(weights)
        for turn in range(1, rounds * weight // largest + 1)
    ]
    ordered.sort()
    return [round_and_node % count for round_and_node in ordered[:size]]


def _fill(names: tuple[str, ...], turns: list[int], size: int) -> list[int]:
    encoded = [name.encode() for name in names]
    positions = [xxh64(name, OFFSET_SEED) % size for name in encoded]
    skips = [xxh64(name, SKIP_SEED) % (size - 1) + 1 for name in encoded]
    slots = [_FREE] * size
    for node in turns:
        slot, skip = positions[node], skips[node]
        while slots[slot] != _FREE:
            slot += skip
            if slot >= size:
                slot -= size
        slots[slot] = node
        positions[node] = slot
    return slots


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
