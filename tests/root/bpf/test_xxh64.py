"""XXH64 in the programs."""

import random
from collections.abc import Iterator

import pytest
import xxhash

from tests.root.bpf.hashes import FlowKeyRow, Given, Hashes, halves

pytestmark = pytest.mark.root

SEEDS = (0, 1, 2654435761, (1 << 64) - 1)
PAGE = random.Random(64).randbytes(16384)


@pytest.fixture(scope="module")
def programs() -> Iterator[Hashes]:
    with Hashes() as programs:
        yield programs


def digest_of(programs: Hashes, at: int, size: int, seed: int) -> int:
    return programs.number("xxh64_of_text", cb=(at, size, *halves(seed)))


@pytest.mark.parametrize(
    ("text", "seed", "digest"),
    [
        (b"", 0, 0xEF46DB3751D8E999),
        (b"", 2654435761, 0xAC75FDA2929B17EF),
        (b"a", 0, 0xD24EC4F1A98C6E5B),
        (b"abc", 0, 0x44BC2CF5AD770999),
    ],
)
def test_gives_the_published_digests(programs: Hashes, text: bytes, seed: int, digest: int) -> None:
    programs.write_text(text)
    assert digest_of(programs, 0, len(text), seed) == digest


@pytest.mark.parametrize("seed", SEEDS)
def test_agrees_with_the_library_on_each_size_up_to_600(programs: Hashes, seed: int) -> None:
    programs.write_text(PAGE)
    for size in range(601):
        assert digest_of(programs, 0, size, seed) == xxhash.xxh64_intdigest(PAGE[:size], seed)


@pytest.mark.parametrize("at", [0, 1, 3, 5, 7, 8, 100, 4095])
@pytest.mark.parametrize("size", [12, 63, 1424, 9000, 10239, 10240])
def test_agrees_with_the_library_wherever_the_text_begins(programs: Hashes, at: int, size: int) -> None:
    programs.write_text(PAGE)
    assert digest_of(programs, at, size, 7) == xxhash.xxh64_intdigest(PAGE[at : at + size], 7)


def test_flow_key_is_hashed_as_its_12_bytes(programs: Hashes) -> None:
    source = random.Random(12)
    for _ in range(500):
        key, seed = source.randbytes(12), source.choice(SEEDS)
        programs.give(Given(key=FlowKeyRow(key[:4], key[4:8], key[8:10], key[10:])))
        assert programs.number("xxh64_of_flow_key", cb=halves(seed)) == xxhash.xxh64_intdigest(key, seed)
