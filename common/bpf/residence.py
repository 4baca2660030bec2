"""One daemon's programs and maps in the kernel: staged, published, left behind, and taken over.

Everything that is to outlive a killed daemon is pinned. A start finds the pins, and uses the maps again if
they were made for the same purpose by the same version: `identity` says so. The new programs take the places
of the old ones at their hooks one by one, each atomically, on the same maps. What does not fit is removed
before.

The map `meta`, which no program sees, holds the digest of the identity and a secret that lives as long as the
maps.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from common.bpf import libbpf
from common.bpf.abi import LAYOUT_VERSION
from common.bpf.attach import Attachment, ClsactFilter, Direction, Hook, TcxLink, supports_tcx
from common.bpf.errors import BpfError
from common.bpf.layout import Layout
from common.bpf.maps import ArrayMap, create_array, memory_bytes
from common.bpf.objects import BpfObject, Constants, object_path
from common.bpf.pins import PinDirectory, is_bpf_filesystem

SECRET_SIZE = 16
_META = "meta"
_DIGEST_SIZE = 32


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
    handle: int
    """Tells this daemon's clsact filters from those of others on the host."""
    max_entries: Mapping[str, int]


class Residence:
    def __init__(self, plan: Plan, logger: logging.Logger) -> None:
        """Looks for what is left of an earlier run, and removes it where it is of no use. `BpfError`."""
        self.is_taken_over = False
        self.secret = os.urandom(SECRET_SIZE)
        """Of `SECRET_SIZE` bytes, random; that of the earlier run where its maps are used."""
        self._plan = plan
        self._pins = PinDirectory(plan.pins)
        self._digest = hashlib.sha256(plan.identity).digest()
        self._objects: dict[int, BpfObject] = {}
        self._attachments: list[Attachment] = []
        self._kept: dict[str, int] = {}
        with ExitStack() as failing:
            failing.callback(self.leave)
            self._look_for_maps(logger)
            failing.pop_all()

    def load(self, constants: Constants, link_header_sizes: Iterable[int]) -> None:
        """Load the programs, one set for each size, all on the same maps. `BpfError`."""
        path = object_path(self._plan.object_name)
        for size in sorted(set(link_header_sizes)):
            self._objects[size] = BpfObject(
                path,
                constants={**constants, "link_header_size": size},
                max_entries=self._plan.max_entries,
                reuse=self._kept or self._maps(),
            )

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
        """Pin the maps and put the programs to work. `BpfError`: then a fresh start has left nothing."""
        with ExitStack() as failing:
            failing.callback(self.remove if not self.is_taken_over else self.leave)
            self._pin_maps()
            old = _links(self._pins)
            for place in places:
                self._attach(place, old)
            for link in old.values():
                link.close()
            failing.pop_all()

    def leave(self) -> None:
        """Let go; what is pinned goes on."""
        for attachment in self._attachments:
            attachment.leave()
        self._close()

    def remove(self) -> None:
        """Take everything out of the kernel again."""
        for attachment in reversed(self._attachments):
            attachment.close()
        self._close()
        self._pins.clear()

    def _close(self) -> None:
        self._attachments.clear()
        for loaded in self._objects.values():
            loaded.close()
        self._objects.clear()
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept.clear()

    def _first(self) -> BpfObject:
        return next(iter(self._objects.values()))

    def _maps(self) -> dict[str, int]:
        if not self._objects:
            return {}
        first = self._first()
        return {name: first.map(name) for name in first.map_names()}

    def _look_for_maps(self, logger: logging.Logger) -> None:
        names = self._pins.names()
        meta = self._pins.get_map(_META) if _META in names else None
        if meta is not None:
            try:
                said = ArrayMap(meta).lookup(0)
            finally:
                os.close(meta)
            if said[:_DIGEST_SIZE] == self._digest:
                self.secret = said[_DIGEST_SIZE : _DIGEST_SIZE + SECRET_SIZE]
                self.is_taken_over = True
                for name in names:
                    if name != _META and not _is_link(name):
                        descriptor = self._pins.get_map(name)
                        if descriptor is not None:
                            self._kept[name] = descriptor
                return
        if names:
            logger.warning("what an earlier run left in %s is of another kind: removed", self._pins.path)
            self._remove_old()

    def _remove_old(self) -> None:
        for link in _links(self._pins).values():
            link.close()
        self._pins.clear()

    def _pin_maps(self) -> None:
        if self.is_taken_over:
            return
        self._pins.create()
        for name, descriptor in self._maps().items():
            self._pins.pin(name, descriptor)
        meta = create_array(_META, _DIGEST_SIZE + SECRET_SIZE, 1)
        try:
            ArrayMap(meta).update(0, self._digest + self.secret)
            self._pins.pin(_META, meta)
        finally:
            os.close(meta)

    def _attach(self, place: Place, old: dict[Hook, TcxLink]) -> None:
        hook = Hook(place.ifindex, place.direction)
        program = self._objects[place.link_header_size].program(place.program)
        if not supports_tcx():
            self._attachments.append(ClsactFilter.create(hook, program, self._plan.handle))
            return
        link = old.pop(hook, None)
        if link is not None:
            link.replace(program)
        else:
            link = TcxLink.create(hook, program)
        self._attachments.append(link)
        name = f"link_{place.direction.name.lower()}_{place.ifindex}"
        if name not in self._pins.names():
            self._pins.pin(name, link.descriptor)


def remove_left(pins: Path, ifindexes: Iterable[int], handle: int) -> bool:
    """Take out of the kernel what a daemon left that was killed or told to; it must not run any more.

    False where there was nothing. ``ifindexes`` are those of interfaces that may have a filter of ``handle``.
    """
    try:
        libbpf.library()
    except BpfError:
        return False  # who cannot use eBPF has left nothing
    hooks = [Hook(ifindex, direction) for ifindex in ifindexes for direction in Direction]
    filters = [each for hook in hooks if (each := ClsactFilter.find(hook, handle)) is not None]
    for left in reversed(filters):
        left.close()
    if not is_bpf_filesystem(pins.parent):
        return bool(filters)
    directory = PinDirectory(pins)
    names = directory.names()
    for link in _links(directory).values():
        link.close()
    directory.clear()
    return bool(filters or names)


def _links(pins: PinDirectory) -> dict[Hook, TcxLink]:
    """Those whose interfaces are still there; the others are unpinned."""
    found = {}
    for name in filter(_is_link, pins.names()):
        descriptor = pins.get_link(name)
        link = None if descriptor is None else TcxLink.adopt(descriptor)
        if link is None:
            pins.unpin(name)
        else:
            found[link.hook] = link
    return found


def identity(*parts: object, layouts: Iterable[Layout[Any]]) -> bytes:
    """Of ``parts``, by their text, and of the structs in the maps."""
    structs = [(layout.name, [(field.name, field.at) for field in layout.fields]) for layout in layouts]
    return repr((LAYOUT_VERSION, parts, structs)).encode()


def _is_link(name: str) -> bool:
    return name.startswith("link_")
