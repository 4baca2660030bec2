"""XXH64, the one hash of request keys and node names, in Python and in C alike.

XXH3 would be faster on long keys, but cannot sensibly be written for the BPF verifier; a
key is hashed once per connection.
"""

import xxhash

SEED_LIMIT = 1 << 64


def xxh64(data: bytes, seed: int = 0) -> int:
    """The 64-bit digest as an unsigned number. Raises ValueError for a seed that is not 64 bits wide.

    With the public seed 0 anybody can compute which node a URL belongs to, and aim all load at one;
    a secret seed, the same on every balancer of a VIP, prevents it.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"XXH64 seed {seed} is outside 0..2^64-1")
    return xxhash.xxh64_intdigest(data, seed)
