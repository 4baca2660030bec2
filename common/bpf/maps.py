"""Maps of the kernel, by descriptor. Keys and values are bytes in the layout of the programs.

A map object does not own its descriptor: the `BpfObject` does, or who got it from a pin.
"""

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from common.bpf import libbpf
from common.bpf.errors import BpfError
from common.tables import TableFullError

_BATCH_SIZE = 4096
_CURSOR_SIZE = 64  # of a hash map it is a u32, of others a key


class MapType(IntEnum):
    """enum bpf_map_type, as far as it is used."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    ARRAY_OF_MAPS = 12


class Update(IntEnum):
    """What `HashMap.update` may do."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2


@dataclass(frozen=True, slots=True)
class MapDescription:
    type: int
    """`MapType` has those that matter."""
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str
    """At most 15 characters of the source's."""


class MapShape(NamedTuple):
    """What two maps must have in common for one to stand in for the other."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int


def shape_of(descriptor: int) -> MapShape:
    info = libbpf.MapInfo()
    libbpf.fill_info(descriptor, info)
    return MapShape(*(getattr(info, name) for name in MapShape._fields))


def describe(descriptor: int) -> MapDescription:
    info = libbpf.MapInfo()
    libbpf.fill_info(descriptor, info)
    return MapDescription(
        type=info.type,
        id=info.id,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.map_flags,
        name=info.name.decode(),
    )


def memory_bytes(descriptor: int) -> int:
    """What the kernel says that a map takes, all of it that is allocated beforehand included."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "memlock":
            return int(value)
    raise ValueError(f"descriptor {descriptor} is no map")


class _Map:
    def __init__(self, descriptor: int, *types: MapType) -> None:
        self.descriptor = descriptor
        self.info = describe(descriptor)
        if self.info.type not in types:
            raise ValueError(f"the map {self.info.name} has type {self.info.type}")
        self._library = libbpf.library()
        self._value = ctypes.create_string_buffer(self.info.value_size)

    def _check_value(self, value: bytes) -> None:
        if len(value) != self.info.value_size:
            raise ValueError(f"a value of {self.info.name} has {self.info.value_size} bytes")

    def _read(self, result: int) -> bytes | None:
        """The value just looked up."""
        if result == -errno.ENOENT:
            return None
        libbpf.check(result)
        return self._value.raw


class HashMap(_Map):
    """HASH or LRU_HASH; only the latter makes room by itself."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, MapType.HASH, MapType.LRU_HASH)

    def lookup(self, key: bytes) -> bytes | None:
        self._check_key(key)
        return self._read(self._library.bpf_map_lookup_elem(self.descriptor, key, self._value))

    def update(self, key: bytes, value: bytes, flag: Update = Update.ANY) -> bool:
        """False where ``flag`` forbids it. `TableFullError`; then nothing was changed."""
        self._check_key(key)
        self._check_value(value)
        result: int = self._library.bpf_map_update_elem(self.descriptor, key, value, flag)
        if result in {-errno.EEXIST, -errno.ENOENT}:
            return False
        if result in {-errno.E2BIG, -errno.ENOMEM}:
            raise TableFullError
        libbpf.check(result)
        return True

    def delete(self, key: bytes) -> bool:
        """False where it was not there."""
        self._check_key(key)
        result: int = self._library.bpf_map_delete_elem(self.descriptor, key)
        if result == -errno.ENOENT:
            return False
        libbpf.check(result)
        return True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """What is there all the while comes once; what comes or goes meanwhile, once or not at all."""
        key_size, value_size = self.info.key_size, self.info.value_size
        for count, keys, values in self._batches():
            for at in range(count):
                key = keys[at * key_size : (at + 1) * key_size]
                yield key, values[at * value_size : (at + 1) * value_size]

    def count(self) -> int:
        """By walking through the whole map."""
        return sum(count for count, _, _ in self._batches())

    def _batches(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Number of entries, keys, values; whole buckets of the map at a time."""
        size = _BATCH_SIZE
        start = None
        while True:
            cursor = ctypes.create_string_buffer(_CURSOR_SIZE)
            keys = ctypes.create_string_buffer(size * self.info.key_size)
            values = ctypes.create_string_buffer(size * self.info.value_size)
            count = ctypes.c_uint32(size)
            result = self._library.bpf_map_lookup_batch(
                self.descriptor, start, cursor, keys, values, ctypes.byref(count), None
            )
            if result == -errno.ENOSPC:  # a bucket holds more than this
                size *= 2
                continue
            if result != -errno.ENOENT:
                libbpf.check(result)
            yield count.value, keys.raw, values.raw
            if result:
                return
            start = cursor

    def _check_key(self, key: bytes) -> None:
        if len(key) != self.info.key_size:
            raise ValueError(f"a key of {self.info.name} has {self.info.key_size} bytes")


class ArrayMap(_Map):
    """Every index exists; values begin as zeros."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, MapType.ARRAY)

    def lookup(self, index: int) -> bytes:
        value = self._read(self._library.bpf_map_lookup_elem(self.descriptor, _index(index), self._value))
        if value is None:
            raise IndexError(index)
        return value

    def update(self, index: int, value: bytes) -> None:
        self._check_value(value)
        result = self._library.bpf_map_update_elem(self.descriptor, _index(index), value, Update.ANY)
        if result == -errno.E2BIG:
            raise IndexError(index)
        libbpf.check(result)


class PerCpuArray(_Map):
    """An array of which each CPU has its own."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, MapType.PERCPU_ARRAY)
        self._stride = (self.info.value_size + 7) & ~7
        self._cpus = libbpf.check(self._library.libbpf_num_possible_cpus())
        self._value = ctypes.create_string_buffer(self._stride * self._cpus)

    def lookup(self, index: int) -> list[bytes]:
        """One value for each possible CPU."""
        found = self._read(self._library.bpf_map_lookup_elem(self.descriptor, _index(index), self._value))
        if found is None:
            raise IndexError(index)
        size = self.info.value_size
        return [found[at : at + size] for at in range(0, len(found), self._stride)]

    def sums(self, index: int) -> tuple[int, ...]:
        """The values as u64 counters in host byte order, each summed over the CPUs."""
        numbers = struct.Struct(f"={self.info.value_size // 8}Q")
        return tuple(map(sum, zip(*map(numbers.unpack, self.lookup(index)), strict=True)))


class MapOfMaps(_Map):
    """ARRAY_OF_MAPS. A program that has found an inner map may use it to its end, whatever is published."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, MapType.ARRAY_OF_MAPS)

    def publish(self, index: int, inner: int) -> None:
        """Put the map of descriptor ``inner`` in the place of the one at ``index``, atomically.

        The descriptor stays the caller's and may be closed. Returns when no program can find the old map any
        more. `BpfError` where it is not made as the object's template.
        """
        value = inner.to_bytes(4, sys.byteorder)
        result = self._library.bpf_map_update_elem(self.descriptor, _index(index), value, Update.ANY)
        if result == -errno.E2BIG:
            raise IndexError(index)
        if result == -errno.EINVAL:
            raise BpfError(f"the map {describe(inner).name} does not fit into {self.info.name}")
        libbpf.check(result)

    def inner_id(self, index: int) -> int | None:
        """The kernel's number of the map at ``index``."""
        found = self._read(self._library.bpf_map_lookup_elem(self.descriptor, _index(index), self._value))
        return None if found is None else int.from_bytes(found, sys.byteorder)


def create_array(name: str, value_size: int, max_entries: int) -> int:
    """Descriptor, owned by the caller, of a new ARRAY map of zeros. `BpfError`."""
    result: int = libbpf.library().bpf_map_create(
        MapType.ARRAY, name.encode(), 4, value_size, max_entries, None
    )
    if result < 0:
        raise BpfError(f"the kernel makes no map {name} of {max_entries} entries: {os.strerror(-result)}")
    return result


def _index(index: int) -> bytes:
    return index.to_bytes(4, sys.byteorder)
