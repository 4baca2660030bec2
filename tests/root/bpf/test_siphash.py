"""SipHash-2-4 in the programs."""

import random
from collections.abc import Iterator

import pytest

from tests.root.bpf.hashes import Hashes
from tests.unit.wire.packets import siphash

pytestmark = pytest.mark.root

SIZES = (8, 15, 21, 49)


@pytest.fixture(scope="module")
def programs() -> Iterator[Hashes]:
    with Hashes() as programs:
        yield programs


@pytest.mark.parametrize(
    ("size", "digest"),
    [
        (8, "6224939a79f5f593"),
        (15, "e545be4961ca29a1"),
        (21, "c7673b2eb0cbf2d0"),
        (49, "96afadfc2ce666c7"),
    ],
)
def test_gives_the_vectors_of_the_reference_code(programs: Hashes, size: int, digest: str) -> None:
    data = bytes(range(16)) + bytes(range(size))
    assert programs.number(f"siphash_of_{size}", data) == int.from_bytes(bytes.fromhex(digest), "little")


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_library_on_random_keys_and_messages(programs: Hashes, size: int) -> None:
    source = random.Random(size)
    for _ in range(500):
        key, message = source.randbytes(16), source.randbytes(size)
        expected = int.from_bytes(siphash(key, message), "little")
        assert programs.number(f"siphash_of_{size}", key + message) == expected
