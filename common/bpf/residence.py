"""One daemon's programs and maps in the kernel: staged, published, left behind, and taken over.

Everything that is to outlive a killed daemon is pinned. A start finds the pins, and uses the maps again if
they were made for the same purpose by the same version: `identity` says so. The new programs take the places
of the old ones at their hooks one by one, each atomically, on the same maps. What does not fit is removed
before.

The map `meta`, which no program sees, holds digests of the layout and the identity, and a secret that lives
as long as the maps. It is pinned last and unpinned first: without it the other pins are of no use.
"""

import hashlib
import logging
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from common.bpf import libbpf
from common.bpf.abi import LAYOUT_VERSION
from common.bpf.attach import Attachment, Direction, Hook
from common.bpf.attachments import Attachments, filters_of, is_link, links_in
from common.bpf.errors import BpfError
from common.bpf.layout import Layout
from common.bpf.maps import ArrayMap, MapShape, MapType, create_array, memory_bytes, shape_of
from common.bpf.mounting import mount_unless_mounted, unmount_if_empty
from common.bpf.objects import BpfObject, Constants, map_shapes, object_path
from common.bpf.pins import PinDirectory, is_bpf_filesystem

SECRET_SIZE = 16
_META = "meta"
_DIGEST_SIZE = 32
_META_SHAPE = MapShape(MapType.ARRAY, 4, 2 * _DIGEST_SIZE + SECRET_SIZE, 1, 0)


class Place(NamedTuple):
    """Where a program is to run."""

    ifindex: int
    direction: Direction
    program: str
    link_header_size: int
    """Bytes in front of the IP header there."""


class Plan(NamedTuple):
    """What a daemon wants to have in the kernel."""

    object_name: str
    identity: bytes
    """What the maps' contents mean: other maps must not be used."""
    pins: Path
    """A directory of this daemon's own."""
    max_entries: Mapping[str, int]
    better_object: str | None = None
    """Used instead where the kernel takes it. It has the same maps and programs."""
    layout: bytes = b""
    """What `maps_left` goes by: maps made for another purpose can still be read if theirs is the same."""

    def digests(self) -> bytes:
        return _digest(self.layout) + _digest(self.identity)


class Residence:
    def __init__(self, plan: Plan, logger: logging.Logger) -> None:
        """Looks for what is left of an earlier run, and removes it where it is of no use. `BpfError`."""
        self.is_taken_over = False
        self.secret = os.urandom(SECRET_SIZE)
        """Of `SECRET_SIZE` bytes, random; that of the earlier run where its maps are used."""
        self._plan = plan
        self._logger = logger
        self._pins = PinDirectory(plan.pins)
        self._handle = handle_of(plan.pins)
        self._digests = plan.digests()
        self._object_name = plan.object_name
        self._constants: Constants = {}
        self._objects: dict[int, BpfObject] = {}
        self._attachments = Attachments(self._pins, self._handle)
        self._kept: dict[str, int] = {}
        self._refused: list[str] = []
        self._is_pinned = False
        """By this run, and not only by an earlier one."""
        with ExitStack() as failing:
            failing.callback(self.leave)
            self._look_for_maps()
            failing.pop_all()

    def load(self, constants: Constants, link_header_sizes: Iterable[int]) -> None:
        """Load the programs, one set for each size, all on the same maps. `BpfError`."""
        self._constants = constants
        sizes = sorted(set(link_header_sizes))
        if self._plan.better_object is not None:
            try:
                self._objects = self._loaded(self._plan.better_object, sizes)
            except BpfError as error:
                self._logger.debug("%s is loaded instead: %s", self._plan.object_name, error)
            else:
                self._object_name = self._plan.better_object
                return
        self._objects = self._loaded(self._plan.object_name, sizes)

    def map(self, name: str) -> int:
        """Descriptor; KeyError."""
        return self._first().map(name)

    def program(self, name: str) -> int:
        """Descriptor; KeyError."""
        return self._first().program(name)

    def memory_bytes(self) -> int:
        """What all maps take."""
        return sum(map(memory_bytes, self._maps().values()))

    def publish(self, places: Sequence[Place]) -> None:
        """Pin the maps and put the programs to work.

        `BpfError`: then a fresh start has left nothing, and what a take-over has found is still at work.
        """
        with ExitStack() as failing:
            failing.callback(self.remove)
            if not self.is_taken_over:
                self._is_pinned = True
                self._pin_maps()
            self._attachments.begin(self._programs(places))
            self._is_pinned = True
            failing.pop_all()

    def tend(self, places: Sequence[Place]) -> list[str]:
        """Have programs at these places as well, and put back what somebody has taken: filters, links, pins,
        the file system that these are in. Says in words what was done, and once what the kernel refuses.

        An interface keeps its programs until it has gone from the host, even where it is down or none of
        ``places`` any more: otherwise the kernel would answer what comes by it before the next call.
        """
        said: list[str] = []
        refused: list[str] = []
        try:
            if self._pin_maps():
                said.append(f"somebody has removed pins from {self._pins.path}: they are back")
            new = {place.link_header_size for place in places} - self._objects.keys()
            self._objects.update(self._loaded(self._object_name, sorted(new)))
        except BpfError as error:
            refused.append(str(error))
        loaded = [place for place in places if place.link_header_size in self._objects]
        attached, unattached = self._attachments.tend(self._programs(loaded))
        refused += unattached
        said += [*attached, *(text for text in refused if text not in self._refused)]
        self._refused = refused
        return said

    def leave(self) -> None:
        """Let go; what is pinned goes on."""
        self._attachments.leave()
        self._is_pinned = False
        self._close()

    def remove(self) -> None:
        """Take everything out of the kernel again, but for what a take-over that failed has found there.

        Does nothing after `leave` or a second time.
        """
        if not self._is_pinned:
            self.leave()
            return
        self._is_pinned = False
        with ExitStack() as steps:
            steps.callback(_clear, self._pins)
            steps.callback(self._close)
            steps.callback(self._attachments.close)

    def _loaded(self, name: str, link_header_sizes: Iterable[int]) -> dict[int, BpfObject]:
        """Sets for all sizes, or none and `BpfError`."""
        path = object_path(name)
        made: dict[int, BpfObject] = {}
        with ExitStack() as failing:
            for size in link_header_sizes:
                made[size] = BpfObject(
                    path,
                    constants={**self._constants, "link_header_size": size},
                    max_entries=self._plan.max_entries,
                    reuse=self._kept or _maps_of([*self._objects.values(), *made.values()]),
                )
                failing.callback(made[size].close)
            failing.pop_all()
        return made

    def _programs(self, places: Iterable[Place]) -> dict[Hook, int]:
        return {
            Hook(place.ifindex, place.direction): self._objects[place.link_header_size].program(place.program)
            for place in places
        }

    def _close(self) -> None:
        for loaded in self._objects.values():
            loaded.close()
        self._objects.clear()
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept.clear()

    def _first(self) -> BpfObject:
        return next(iter(self._objects.values()))

    def _maps(self) -> dict[str, int]:
        return _maps_of(self._objects.values())

    def _look_for_maps(self) -> None:
        names = self._pins.names()
        if not names:
            return
        if self._take_over(names):
            self.is_taken_over = True
            return
        self._close()
        self._logger.warning("what an earlier run left in %s is of another kind: removed", self._pins.path)
        _remove(filters_of(self._handle), self._pins)

    def _take_over(self, names: Iterable[str]) -> bool:
        """Whether the pinned maps are those of this plan, all of them; then they are kept open."""
        shapes = map_shapes(object_path(self._plan.object_name), self._plan.max_entries)
        maps = {name for name in names if not is_link(name)}
        if maps != {_META, *shapes}:
            return False
        for name in maps:
            descriptor = _map_in(self._pins, name)
            if descriptor is None:
                return False
            self._kept[name] = descriptor
        said = _read_meta(self._kept.pop(_META))
        digests, secret = said[:-SECRET_SIZE], said[-SECRET_SIZE:]
        if digests != self._digests or shapes != _shapes(self._kept):
            return False
        self.secret = secret
        return True

    def _pin_maps(self) -> bool:
        """Those that are not; whether there were any."""
        mount_unless_mounted(self._pins.path.parent)
        self._pins.create()
        missing = {*self._maps(), _META} - set(self._pins.names())
        for name, descriptor in self._maps().items():
            if name in missing:
                self._pins.pin(name, descriptor)
        if _META in missing:
            self._pin_meta()
        return bool(missing)

    def _pin_meta(self) -> None:
        meta = create_array(_META, _META_SHAPE.value_size, 1)
        try:
            ArrayMap(meta).update(0, self._digests + self.secret)
            self._pins.pin(_META, meta)
        finally:
            os.close(meta)


def remove_left(pins: Path) -> bool:
    """Take out of the kernel what a daemon left that was killed or told to; it must not run any more.

    False where there was nothing. `BpfError`.
    """
    try:
        libbpf.library()
    except BpfError:
        return False  # who cannot use eBPF has left nothing
    filters = filters_of(handle_of(pins))
    directory = PinDirectory(pins) if is_bpf_filesystem(pins.parent) else None
    found = bool(filters or (directory and directory.names()))
    _remove(filters, directory)
    if found and directory is not None:
        unmount_if_empty(pins.parent)
    return found


def maps_left(pins: Path, layout: bytes, names: Iterable[str]) -> dict[str, int]:
    """Descriptors, owned by the caller, of maps that an earlier run left. They outlive the removal.

    None where there are no such maps, or their `Plan.layout` was another one.
    """
    if not is_bpf_filesystem(pins.parent):
        return {}
    directory = PinDirectory(pins)
    meta = _map_in(directory, _META)
    if meta is None or _read_meta(meta)[:_DIGEST_SIZE] != _digest(layout):
        return {}
    found: dict[str, int] = {}
    with ExitStack() as failing:
        for name in names:
            descriptor = _map_in(directory, name)
            if descriptor is None:
                return {}
            failing.callback(os.close, descriptor)
            found[name] = descriptor
        failing.pop_all()
    return found


def handle_of(pins: Path) -> int:
    """Of clsact filters: tells this daemon's from those of others on the host."""
    return zlib.crc32(os.fsencode(pins.resolve())) or 1


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _map_in(pins: PinDirectory, name: str) -> int | None:
    """Descriptor, owned by the caller; None where there is no such map."""
    try:
        return pins.get_map(name)
    except BpfError:  # of another kind
        return None


def _read_meta(descriptor: int) -> bytes:
    """Layout's digest, identity's digest and secret; empty where the map is no such one. It is closed."""
    try:
        return ArrayMap(descriptor).lookup(0) if shape_of(descriptor) == _META_SHAPE else b""
    finally:
        os.close(descriptor)


def _remove(filters: Mapping[Hook, Attachment], pins: PinDirectory | None) -> None:
    links = links_in(pins) if pins else {}
    for attachment in (*filters.values(), *links.values()):
        attachment.close()
    if pins:
        _clear(pins)


def _clear(pins: PinDirectory) -> None:
    pins.unpin(_META)
    pins.clear()


def identity(*parts: object, layouts: Iterable[Layout[Any]], numbers: Iterable[type[IntEnum]]) -> bytes:
    """Of ``parts``, by their text, and of the structs in the maps and what ``numbers`` in them mean."""
    structs = [(layout.name, [(field.name, field.at) for field in layout.fields]) for layout in layouts]
    meanings = [list(each) for each in numbers]
    return repr((LAYOUT_VERSION, parts, structs, meanings)).encode()


def _shapes(maps: Mapping[str, int]) -> dict[str, MapShape]:
    return {name: shape_of(descriptor) for name, descriptor in maps.items()}


def _maps_of(objects: Iterable[BpfObject]) -> dict[str, int]:
    """All objects have the same."""
    for each in objects:
        return {name: each.map(name) for name in each.map_names()}
    return {}
