"""What the programs know of handoff keys and of the time of day."""

import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from common.bpf import keys
from common.bpf.abi import CLOCK, HANDOFF_KEYS
from common.bpf.clock import keep_clock, set_clock
from common.bpf.maps import ArrayMap, HashMap, create_array
from common.config import ConfigError
from common.keyring import KeySource
from tests.root.ebpf.hash_maps import hash_map

pytestmark = pytest.mark.root

ONE, OTHER = bytes(range(16)), bytes(range(16, 32))
"""The last bytes are 15 and 31, so both have the key id 1."""
THIRD = bytes(15) + b"\x02"


@pytest.fixture
def handoff_keys() -> Iterator[HashMap]:
    with hash_map(4, HANDOFF_KEYS.size, 1) as handoff_keys:
        yield handoff_keys


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "handoff.key"
    path.touch(mode=0o600)
    return path


def row(current: bytes, previous: bytes, ids: tuple[int, int], has_previous: int) -> bytes:
    """SipHash reads a key as two little-endian words (Aumasson and Bernstein, section 2.1)."""
    words = struct.unpack("<4Q", current + previous)
    return struct.pack("=4QBBBxI", *words, *ids, has_previous, 0)


def test_keys_are_written_as_a_whole_and_again_when_the_file_has_changed(
    handoff_keys: HashMap, key_file: Path
) -> None:
    key_file.write_text(ONE.hex())
    source = KeySource(key_file, is_insecure=False)
    keys.write(handoff_keys, source.keyring)
    assert dict(handoff_keys.items()) == {bytes(4): row(ONE, ONE, (1, 1), 0)}

    key_file.write_text(f"{THIRD.hex()}\n{ONE.hex()}\n")
    source.take(source.read())
    keys.write(handoff_keys, source.keyring)
    assert dict(handoff_keys.items()) == {bytes(4): row(THIRD, ONE, (0, 1), 1)}

    key_file.write_text(f"{OTHER.hex()}\n{THIRD.hex()}\n")
    source.take(source.read())
    keys.write(handoff_keys, source.keyring)
    assert dict(handoff_keys.items()) == {bytes(4): row(OTHER, THIRD, (1, 0), 1)}


def test_file_that_cannot_be_used_leaves_the_programs_their_keys(
    handoff_keys: HashMap, key_file: Path
) -> None:
    key_file.write_text(ONE.hex())
    source = KeySource(key_file, is_insecure=False)
    keys.write(handoff_keys, source.keyring)
    key_file.write_text("no key")
    with pytest.raises(ConfigError):
        source.take(source.read())
    keys.write(handoff_keys, source.keyring)
    assert dict(handoff_keys.items()) == {bytes(4): row(ONE, ONE, (1, 1), 0)}


def test_halves_are_little_endian() -> None:
    assert keys.halves(ONE) == (0x0706050403020100, 0x0F0E0D0C0B0A0908)


@pytest.fixture
def wall() -> Iterator[ArrayMap]:
    descriptor = create_array("clock", CLOCK.size, 1)
    yield ArrayMap(descriptor)
    os.close(descriptor)


def wall_seconds(wall: ArrayMap) -> float:
    """The time of day as a program computes it."""
    (offset,) = struct.unpack("=q", wall.lookup(0))
    return (time.monotonic_ns() + int(offset)) / 1e9


def test_programs_have_the_time_of_day(wall: ArrayMap) -> None:
    set_clock(wall)
    before = date_seconds()
    said = wall_seconds(wall)
    assert before <= said <= date_seconds()


def date_seconds() -> float:
    said = subprocess.run(["date", "+%s.%N"], capture_output=True, text=True, check=True, timeout=20).stdout
    return float(said)


@pytest.mark.parametrize("step", [3600, -3600])
def test_a_step_of_the_clock_is_followed_soon(
    wall: ArrayMap, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Setting this host's clock would disturb all others on it, so the process is told another time."""
    real = time.time_ns

    async def follow() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_clock, wall)
            await trio.sleep(0.1)
            monkeypatch.setattr(time, "time_ns", lambda: real() + step * 10**9)
            with trio.fail_after(20):
                while wall_seconds(wall) != pytest.approx(real() / 1e9 + step, abs=0.5):  # noqa: ASYNC110
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    trio.run(follow)
