"""The maps' operations, each on the kernel's own map."""

import os
import random
import threading
from collections.abc import Iterator

import pytest

from common.bpf import maps
from common.bpf.errors import BpfError
from common.bpf.maps import ArrayMap, HashMap, MapOfMaps, PerCpuArray, Update
from common.bpf.objects import BpfObject
from common.bpf.run import run_packet
from common.tables import TableFullError
from tests.bpf.programs import compiled

pytestmark = pytest.mark.root

PACKET = bytes(60)
MANY = 20_000


@pytest.fixture
def loaded() -> Iterator[BpfObject]:
    with BpfObject(compiled()) as loaded:
        yield loaded


@pytest.fixture
def flows(loaded: BpfObject) -> HashMap:
    """Of four entries."""
    return HashMap(loaded.map("flows"))


@pytest.fixture
def large() -> Iterator[HashMap]:
    with BpfObject(compiled(), max_entries={"flows": 2 * MANY}) as loaded:
        yield HashMap(loaded.map("flows"))


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "little")


def test_map_describes_itself(flows: HashMap) -> None:
    info = flows.info
    assert (info.type, info.name) == (maps.MapType.HASH, "flows")
    assert (info.key_size, info.value_size, info.max_entries) == (8, 4, 4)
    assert maps.describe(flows.descriptor).id == info.id


def test_memory_grows_with_the_capacity(flows: HashMap, large: HashMap) -> None:
    assert maps.memory_bytes(large.descriptor) - maps.memory_bytes(flows.descriptor) >= 2 * MANY * 12
    with pytest.raises(ValueError, match="is no map"):
        maps.memory_bytes(0)


def test_entry_is_put_found_and_deleted(flows: HashMap) -> None:
    assert flows.lookup(b"flow0001") is None
    assert flows.update(b"flow0001", b"aaaa")
    assert flows.lookup(b"flow0001") == b"aaaa"
    assert flows.update(b"flow0001", b"bbbb")
    assert flows.lookup(b"flow0001") == b"bbbb"
    assert flows.delete(b"flow0001")
    assert not flows.delete(b"flow0001")
    assert flows.lookup(b"flow0001") is None


def test_first_of_two_that_put_if_absent_stays(flows: HashMap) -> None:
    assert flows.update(b"flow0001", b"aaaa", Update.NOEXIST)
    assert not flows.update(b"flow0001", b"bbbb", Update.NOEXIST)
    assert flows.lookup(b"flow0001") == b"aaaa"


def test_what_is_not_there_is_not_replaced(flows: HashMap) -> None:
    assert not flows.update(b"flow0001", b"aaaa", Update.EXIST)
    assert flows.count() == 0
    flows.update(b"flow0001", b"aaaa")
    assert flows.update(b"flow0001", b"bbbb", Update.EXIST)
    assert flows.lookup(b"flow0001") == b"bbbb"


def test_full_map_says_so_and_loses_nothing(flows: HashMap) -> None:
    entries = {b"flow000%d" % at: b"node" for at in range(4)}
    for key, value in entries.items():
        flows.update(key, value)
    with pytest.raises(TableFullError):
        flows.update(b"flow0009", b"node")
    assert dict(flows.items()) == entries
    assert flows.update(b"flow0001", b"next"), "there is room for a new value"


@pytest.mark.parametrize(("key", "value"), [(b"short", b"node"), (b"too long!", b"node"), (b"flow0001", b"")])
def test_wrong_size_never_reaches_the_kernel(flows: HashMap, key: bytes, value: bytes) -> None:
    with pytest.raises(ValueError, match="of flows has"):
        flows.update(key, value)


def test_map_of_another_type_is_refused(loaded: BpfObject) -> None:
    with pytest.raises(ValueError, match="the map slots has type 2"):
        HashMap(loaded.map("slots"))


def test_walk_finds_every_entry_once(large: HashMap) -> None:
    entries = {number(at, 8): number(at * 3) for at in range(MANY)}
    for key, value in entries.items():
        large.update(key, value)
    found = list(large.items())
    assert len(found) == MANY
    assert dict(found) == entries
    assert large.count() == MANY


def test_walk_through_a_map_that_changes_finds_what_stays_once(large: HashMap) -> None:
    """Another thread puts and deletes all the while, in random order; one entry in two stays."""
    staying = {number(at, 8): number(at) for at in range(0, MANY, 2)}
    for key, value in staying.items():
        large.update(key, value)
    stop = threading.Event()

    def change() -> None:
        chance = random.Random(1)
        while not stop.is_set():
            key = number(chance.randrange(MANY // 2) * 2 + 1, 8)
            large.update(key, b"gone")
            large.delete(key)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(3):
            found = [key for key, _ in large.items() if key in staying]
            assert len(found) == len(staying)
            assert set(found) == set(staying)
    finally:
        stop.set()
        changer.join()


def test_entries_may_be_deleted_during_a_walk(large: HashMap) -> None:
    for at in range(MANY):
        large.update(number(at, 8), number(at))
    walked = [large.delete(key) and value == key[:4] for key, value in large.items()]
    assert walked == [True] * MANY
    assert large.count() == 0


def test_recent_entries_stay_where_old_ones_make_room(loaded: BpfObject) -> None:
    recent = HashMap(loaded.map("recent"))
    for at in range(5000):
        recent.update(number(at), number(at))
    assert 0 < recent.count() <= 1024
    assert recent.lookup(number(4999)) == number(4999)


def test_array_has_all_indexes_and_no_others(loaded: BpfObject) -> None:
    slots = ArrayMap(loaded.map("slots"))
    assert slots.lookup(65536) == b"\0\0"
    slots.update(65536, b"ab")
    assert slots.lookup(65536) == b"ab"
    with pytest.raises(IndexError):
        slots.lookup(65537)
    with pytest.raises(IndexError):
        slots.update(65537, b"ab")


def test_counters_of_all_cpus_are_summed(loaded: BpfObject) -> None:
    counters = PerCpuArray(loaded.map("counters"))
    home = os.sched_getaffinity(0)
    try:
        for cpu in home:
            os.sched_setaffinity(0, {cpu})
            run_packet(loaded.program("count"), PACKET, repeat=10)
    finally:
        os.sched_setaffinity(0, home)
    each = counters.lookup(1)
    assert [value for value in each if value != bytes(16)] == [number(10, 8) + number(600, 8)] * len(home)
    assert counters.sums(1) == (10 * len(home), 600 * len(home))
    assert counters.sums(0) == (0, 0)
    with pytest.raises(IndexError):
        counters.lookup(2)


def test_published_generation_is_seen_as_a_whole_and_replaced_by_the_next(loaded: BpfObject) -> None:
    generations = MapOfMaps(loaded.map("generations"))
    program = loaded.program("generation")
    assert generations.inner_id(0) is None
    assert run_packet(program, PACKET).verdict == -7
    for first in (11, 12):
        inner = maps.create_array("generation", 4, 3)
        for index in range(3):
            ArrayMap(inner).update(index, number(first))
        generations.publish(0, inner)
        assert generations.inner_id(0) == maps.describe(inner).id
        os.close(inner)
        assert run_packet(program, PACKET).verdict == first


def test_old_generation_lives_as_long_as_somebody_holds_it(loaded: BpfObject) -> None:
    generations = MapOfMaps(loaded.map("generations"))
    old, new = (maps.create_array(name, 4, 3) for name in ("old", "new"))
    ArrayMap(old).update(0, b"data")
    generations.publish(0, old)
    generations.publish(0, new)
    os.close(new)
    assert ArrayMap(old).lookup(0) == b"data"
    os.close(old)


def test_map_unlike_the_template_is_not_published(loaded: BpfObject) -> None:
    generations = MapOfMaps(loaded.map("generations"))
    other = maps.create_array("other", 4, 4)
    with pytest.raises(BpfError, match="the map other does not fit into generations"):
        generations.publish(0, other)
    with pytest.raises(IndexError):
        generations.publish(1, other)
    os.close(other)


def test_map_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(BpfError, match="the kernel makes no map empty of 0 entries: Invalid argument"):
        maps.create_array("empty", 4, 0)
