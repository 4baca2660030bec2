"""Loading of one compiled object: its constants, the sizes of its maps, its programs."""

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from common.bpf import libbpf
from common.bpf.errors import BpfError
from common.bpf.maps import MapShape, shape_of

_BUILT = Path(__file__).with_name("built")
_VERIFIER_LOG = (1 << 24) - 1  # the most that kernels before 5.2 take; pages are used as they are written
_STATISTICS = ("processed ", "verification time ", "stack depth ")  # lines that end a verifier's log
_BTF_KIND_DATASEC = 15
_RODATA = ".rodata"
_NONE: Mapping[str, int] = MappingProxyType({})

Constants = Mapping[str, int | bytes]


def object_path(name: str) -> Path:
    """Where the package's own object ``name`` is; `BpfError` where it was not built."""
    path = _BUILT / f"{name}.bpf.o"
    if not path.exists():
        raise BpfError(
            f"this installation has no eBPF program {name}: install the packages clang libbpf-dev"
            " linux-libc-dev, then install l3dsr again"
        )
    return path


class BpfObject:
    """An object in the kernel. Its descriptors are its own: they are valid until it is closed.

    Programs that are attached, and maps that these use or that are pinned, live on after that.
    """

    def __init__(
        self,
        path: Path,
        *,
        constants: Constants = _NONE,
        max_entries: Mapping[str, int] = _NONE,
        reuse: Mapping[str, int] = _NONE,
    ) -> None:
        """``constants`` are `const volatile` variables by name; one that is left out keeps its value of the
        source. ``reuse`` gives maps by descriptor, which stays the caller's; they must be made as those of
        the object. `BpfError`, also where the kernel refuses; KeyError where no map has the name.
        """
        self._name = path.name.removesuffix(".bpf.o")
        self._library = libbpf.library()
        self._log = mmap.mmap(-1, _VERIFIER_LOG)
        place = (ctypes.c_char * _VERIFIER_LOG).from_buffer(self._log)
        options = libbpf.ObjectOpenOptions(
            kernel_log_buf=ctypes.addressof(place), kernel_log_size=_VERIFIER_LOG
        )
        libbpf.messages.clear()
        self._object: int | None = self._library.bpf_object__open_file(os.fsencode(path), options)
        if not self._object:
            raise self._refusal("cannot be opened", ctypes.get_errno())
        try:
            for map_name, entries in max_entries.items():
                libbpf.check(self._library.bpf_map__set_max_entries(self._map(map_name), entries))
            for map_name, descriptor in reuse.items():
                self._reuse(map_name, descriptor)
            self._set_constants(constants)
            self._load()
        except BaseException:
            self.close()
            raise
        del place  # the log cannot be closed while it is lent
        self._log.close()

    def program(self, name: str) -> int:
        """Descriptor of a program; KeyError."""
        found = self._library.bpf_object__find_program_by_name(self._object, name.encode())
        if not found:
            raise KeyError(name)
        descriptor: int = self._library.bpf_program__fd(found)
        return descriptor

    def map(self, name: str) -> int:
        """Descriptor of a map; KeyError."""
        descriptor: int = self._library.bpf_map__fd(self._map(name))
        return descriptor

    def map_names(self) -> list[str]:
        """Of the maps that the source declares; those of its variables are not among them."""
        return list(_declared_maps(self._object))

    def close(self) -> None:
        """May be called more than once."""
        if self._object:
            self._library.bpf_object__close(self._object)
            self._object = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _map(self, name: str) -> int:
        found: int | None = self._library.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise KeyError(name)
        return found

    def _reuse(self, name: str, descriptor: int) -> None:
        wanted = self._map(name)
        for what, is_there, asked in zip(
            MapShape._fields, shape_of(descriptor), _declared_shape(wanted), strict=True
        ):
            if is_there != asked:
                raise BpfError(f"the map {name} cannot be used again: its {what} is {is_there}, not {asked}")
        libbpf.check(self._library.bpf_map__reuse_fd(wanted, descriptor))

    def _set_constants(self, constants: Constants) -> None:
        if not constants:
            return
        places = self._constant_places()
        size = ctypes.c_size_t()
        section = self._library.bpf_object__find_map_by_name(self._object, _RODATA.encode())
        start = self._library.bpf_map__initial_value(section, ctypes.byref(size)) if section else None
        for name, value in constants.items():
            if start is None or name not in places:
                raise BpfError(f"the eBPF program {self._name} has no constant {name}: build it again")
            at, length = places[name]
            ctypes.memmove(start + at, _constant_bytes(name, value, length), length)

    def _constant_places(self) -> dict[str, tuple[int, int]]:
        """Offset and size within .rodata of its variables, from BTF."""
        btf = self._library.bpf_object__btf(self._object)
        found = self._library.btf__find_by_name_kind(btf, _RODATA.encode(), _BTF_KIND_DATASEC)
        if found < 0:
            return {}
        pointer = libbpf.address(self._library.btf__type_by_id(btf, found))
        count = libbpf.BtfType.from_address(pointer).info & 0xFFFF
        variables = (libbpf.BtfVariable * count).from_address(pointer + ctypes.sizeof(libbpf.BtfType))
        places = {}
        for variable in variables:
            declared = libbpf.BtfType.from_address(self._library.btf__type_by_id(btf, variable.type))
            name = self._library.btf__name_by_offset(btf, declared.name_off).decode()
            places[name] = (variable.offset, variable.size)
        return places

    def _load(self) -> None:
        libbpf.messages.clear()
        result = self._library.bpf_object__load(self._object)
        if result < 0:
            raise self._refusal("is refused by the kernel", -result)

    def _refusal(self, what: str, number: int) -> BpfError:
        """From libbpf's first line, which names the program or map, and the verifier's last reason."""
        verifier = self._log[: self._log.find(b"\0")].decode(errors="replace").splitlines()
        said = [line.removeprefix("libbpf: ") for line in libbpf.messages]
        reasons = [line for line in verifier if line.strip() and not line.startswith(_STATISTICS)]
        details = [*said[:1], *reasons[-1:]] or [os.strerror(number)]
        if number == errno.EPERM and not reasons:
            details.append("eBPF needs root")
        log = "\n".join([*said, *verifier])
        return BpfError(f"the eBPF program {self._name} {what}: {': '.join(details)}", log)


def map_shapes(path: Path, max_entries: Mapping[str, int] = _NONE) -> dict[str, MapShape]:
    """Of the maps that an object declares, by name, with other ``max_entries`` for some; nothing is loaded.

    `BpfError`.
    """
    library = libbpf.library()
    opened = library.bpf_object__open_file(os.fsencode(path), libbpf.ObjectOpenOptions())
    if not opened:
        raise BpfError(f"{path} cannot be opened: {os.strerror(ctypes.get_errno())}")
    try:
        shapes = {name: _declared_shape(found) for name, found in _declared_maps(opened).items()}
    finally:
        library.bpf_object__close(opened)
    return {
        name: shape._replace(max_entries=max_entries.get(name, shape.max_entries))
        for name, shape in shapes.items()
    }


def _declared_maps(opened: int | None) -> dict[str, int]:
    library = libbpf.library()
    maps = {}
    found = library.bpf_object__next_map(opened, None)
    while found:
        if not library.bpf_map__is_internal(found):
            maps[library.bpf_map__name(found).decode()] = found
        found = library.bpf_object__next_map(opened, found)
    return maps


def _declared_shape(found: int) -> MapShape:
    library = libbpf.library()
    return MapShape(
        type=library.bpf_map__type(found),
        key_size=library.bpf_map__key_size(found),
        value_size=library.bpf_map__value_size(found),
        max_entries=library.bpf_map__max_entries(found),
        map_flags=library.bpf_map__map_flags(found),
    )


def _constant_bytes(name: str, value: int | bytes, size: int) -> bytes:
    if isinstance(value, int):
        try:
            return value.to_bytes(size, sys.byteorder, signed=value < 0)
        except OverflowError:
            raise BpfError(f"the constant {name} has {size} bytes: {value} does not fit") from None
    if len(value) != size:
        raise BpfError(f"the constant {name} has {size} bytes, not {len(value)}")
    return value
