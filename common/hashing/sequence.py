"""The fixed sequence of look-ups that a key makes where nodes decline it.

The n-th look-up is by the XXH64 of the key's hash (8 bytes, little-endian) under seed n; the first,
n = 0, is by the hash itself. So a hot key spreads over few nodes, always the same ones in the same order,
and each key's order is its own: what one node declines does not fall on one other.
"""

from collections.abc import Iterator

from common.hashing.maglev import LookupTable
from common.hashing.xxh64 import xxh64

LENGTH = 64
"""Look-ups that a data plane makes at most: so many that a key meets every node of a small service, where
weights are unequal, too."""


def nth_hash(key_hash: int, n: int) -> int:
    """``key_hash`` is 64 bits wide, and so is what is returned."""
    return key_hash if n == 0 else xxh64(key_hash.to_bytes(8, "little"), n)


def node_sequence(table: LookupTable, key_hash: int, length: int = LENGTH) -> Iterator[str]:
    """Names of nodes in the order of the look-ups; a node may come more than once."""
    for n in range(length):
        yield table.lookup(nth_hash(key_hash, n))
