import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.hashing.xxh64 import xxh64

MASK = (1 << 64) - 1
P1, P2, P3, P4, P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


def rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & MASK


def round_of(accumulator: int, lane: int) -> int:
    return rotated((accumulator + lane * P2) & MASK, 31) * P1 & MASK


def xxh64_as_specified(data: bytes, seed: int) -> int:
    """The six steps of the xxHash specification, XXH64 algorithm description."""
    rest = data
    if len(data) < 32:
        total = (seed + P5) & MASK
    else:
        lanes = [(seed + P1 + P2) & MASK, (seed + P2) & MASK, seed, (seed - P1) & MASK]
        while len(rest) >= 32:
            words = struct.unpack_from("<4Q", rest)
            lanes = [round_of(lane, word) for lane, word in zip(lanes, words, strict=True)]
            rest = rest[32:]
        total = sum(rotated(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
        for lane in lanes:
            total = ((total ^ round_of(0, lane)) * P1 + P4) & MASK
    total = (total + len(data)) & MASK
    while len(rest) >= 8:
        total = (rotated(total ^ round_of(0, int.from_bytes(rest[:8], "little")), 27) * P1 + P4) & MASK
        rest = rest[8:]
    if len(rest) >= 4:
        total = (rotated(total ^ int.from_bytes(rest[:4], "little") * P1 & MASK, 23) * P2 + P3) & MASK
        rest = rest[4:]
    for byte in rest:
        total = rotated(total ^ byte * P5 & MASK, 11) * P1 & MASK
    total = (total ^ total >> 33) * P2 & MASK
    total = (total ^ total >> 29) * P3 & MASK
    return total ^ total >> 32


@pytest.mark.parametrize(
    ("data", "seed", "digest"),
    [
        (b"", 0, 0xEF46DB3751D8E999),
        (b"", 2654435761, 0xAC75FDA2929B17EF),
        (b"a", 0, 0xD24EC4F1A98C6E5B),
        (b"abc", 0, 0x44BC2CF5AD770999),
    ],
)
def test_gives_the_published_digests(data: bytes, seed: int, digest: int) -> None:
    assert xxh64(data, seed) == digest


@given(st.binary(max_size=100), st.integers(0, MASK))
def test_agrees_with_the_specification(data: bytes, seed: int) -> None:
    assert xxh64(data, seed) == xxh64_as_specified(data, seed)


def test_default_seed_is_0() -> None:
    assert xxh64(b"") == 0xEF46DB3751D8E999


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_refuses_a_seed_that_is_not_64_bits_wide(seed: int) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.2\^64-1"):
        xxh64(b"", seed)
