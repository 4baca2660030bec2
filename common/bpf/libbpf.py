"""libbpf.so.1 by ctypes: what of it is used, its results as exceptions, its messages as lines.

Structures are those of bpf/bpf.h, bpf/libbpf.h (version 1.1) and linux/bpf.h. Nothing is loaded at import.
"""

import ctypes
import os
from collections import deque
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar

from common.bpf.errors import BpfError

_LIBRARY = "libbpf.so.1"
_PACKAGE = "libbpf1"
_LEVEL_DEBUG = 2
_MESSAGE_LIMIT = 4096

messages: deque[str] = deque(maxlen=50)
"""The last lines that libbpf wrote, of any call; clear it before a call whose lines matter."""


class Options(ctypes.Structure):
    """A structure whose first field is its own size, by which libbpf knows its version."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(sz=ctypes.sizeof(self), **fields)


class ObjectOpenOptions(Options):
    _fields_: ClassVar = [
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", c_char_p),
        ("removed", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
        ("kernel_log_buf", c_void_p),
        ("kernel_log_size", c_size_t),
        ("kernel_log_level", c_uint32),
    ]


class TcHook(Options):
    _fields_: ClassVar = [
        ("sz", c_size_t),
        ("ifindex", c_int),
        ("attach_point", c_int),
        ("parent", c_uint32),
    ]


class TcOptions(Options):
    _fields_: ClassVar = [
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    ]


class TestRunOptions(Options):
    __test__ = False  # for pytest, which collects by name
    _fields_: ClassVar = [
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_int32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    ]


class MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info."""

    _fields_: ClassVar = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
    ]


class ProgramInfo(ctypes.Structure):
    """The head of struct bpf_prog_info."""

    _fields_: ClassVar = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_ubyte * 8),
        ("sizes", c_uint32 * 2),
        ("instructions", c_uint64 * 2),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
    ]


class LinkInfo(ctypes.Structure):
    """The head of struct bpf_link_info, with the union's part of a TCX link."""

    _fields_: ClassVar = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("padding", c_uint32),
        ("ifindex", c_uint32),
        ("attach_type", c_uint32),
    ]


class BtfType(ctypes.Structure):
    _fields_: ClassVar = [("name_off", c_uint32), ("info", c_uint32), ("size", c_uint32)]


class BtfVariable(ctypes.Structure):
    """struct btf_var_secinfo: where a variable lies in its section."""

    _fields_: ClassVar = [("type", c_uint32), ("offset", c_uint32), ("size", c_uint32)]


_TC = (POINTER(TcHook), POINTER(TcOptions))
_KEY_VALUE = (c_int, c_char_p, c_void_p)
_BATCH = (POINTER(c_uint32), c_void_p)

_SIGNATURES: Mapping[str, tuple[Any, Sequence[Any]]] = MappingProxyType(
    {
        "bpf_object__open_file": (c_void_p, (c_char_p, POINTER(ObjectOpenOptions))),
        "bpf_object__load": (c_int, (c_void_p,)),
        "bpf_object__close": (None, (c_void_p,)),
        "bpf_object__btf": (c_void_p, (c_void_p,)),
        "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
        "bpf_program__fd": (c_int, (c_void_p,)),
        "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
        "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
        "bpf_map__name": (c_char_p, (c_void_p,)),
        "bpf_map__is_internal": (ctypes.c_bool, (c_void_p,)),
        "bpf_map__fd": (c_int, (c_void_p,)),
        "bpf_map__type": (c_int, (c_void_p,)),
        "bpf_map__key_size": (c_uint32, (c_void_p,)),
        "bpf_map__value_size": (c_uint32, (c_void_p,)),
        "bpf_map__max_entries": (c_uint32, (c_void_p,)),
        "bpf_map__map_flags": (c_uint32, (c_void_p,)),
        "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
        "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
        "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
        "btf__find_by_name_kind": (c_int32, (c_void_p, c_char_p, c_uint32)),
        "btf__type_by_id": (c_void_p, (c_void_p, c_uint32)),
        "btf__name_by_offset": (c_char_p, (c_void_p, c_uint32)),
        "bpf_map_create": (c_int, (c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p)),
        "bpf_map_lookup_elem": (c_int, _KEY_VALUE),
        "bpf_map_update_elem": (c_int, (c_int, c_char_p, c_char_p, c_uint64)),
        "bpf_map_delete_elem": (c_int, (c_int, c_char_p)),
        "bpf_map_lookup_batch": (c_int, (c_int, c_void_p, c_void_p, c_void_p, c_void_p, *_BATCH)),
        "bpf_map_update_batch": (c_int, (c_int, c_void_p, c_void_p, *_BATCH)),
        "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, POINTER(c_uint32))),
        "bpf_obj_pin": (c_int, (c_int, c_char_p)),
        "bpf_obj_get": (c_int, (c_char_p,)),
        "bpf_prog_get_fd_by_id": (c_int, (c_uint32,)),
        "bpf_link_create": (c_int, (c_int, c_int, c_int, c_void_p)),
        "bpf_link_update": (c_int, (c_int, c_int, c_void_p)),
        "bpf_link_detach": (c_int, (c_int,)),
        "bpf_prog_query": (c_int, (c_int, c_int, c_uint32, c_void_p, c_void_p, POINTER(c_uint32))),
        "bpf_tc_hook_create": (c_int, (POINTER(TcHook),)),
        "bpf_tc_hook_destroy": (c_int, (POINTER(TcHook),)),
        "bpf_tc_attach": (c_int, _TC),
        "bpf_tc_detach": (c_int, _TC),
        "bpf_tc_query": (c_int, _TC),
        "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(TestRunOptions))),
        "libbpf_num_possible_cpus": (c_int, ()),
    }
)


@cache
def library() -> ctypes.CDLL:
    """The library with its functions typed; `BpfError` where it is not installed."""
    try:
        loaded = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError as error:
        raise BpfError(f"cannot load {_LIBRARY}: install the package {_PACKAGE}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    loaded.libbpf_set_print(_keep_message_function)
    return loaded


def check(result: int) -> int:
    """What a function of libbpf returned; `OSError` where that is a negative errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def address(pointer: int | None) -> int:
    """A pointer that a function of libbpf returned; `OSError` where it is null."""
    if not pointer:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return pointer


Info = MapInfo | ProgramInfo | LinkInfo


def fill_info(descriptor: int, info: Info) -> None:
    """Ask the kernel about a map, program or link; ``info`` must be of that kind. `OSError`."""
    size = c_uint32(ctypes.sizeof(info))
    check(library().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size)))


def _keep_message(level: int, form: bytes, arguments: int) -> int:
    """libbpf_print_fn_t. The va_list is passed by its address on every ABI where it is no plain pointer."""
    if level < _LEVEL_DEBUG:
        text = ctypes.create_string_buffer(_MESSAGE_LIMIT)
        _libc().vsnprintf(text, c_size_t(_MESSAGE_LIMIT), c_char_p(form), c_void_p(arguments))
        messages.extend(text.value.decode(errors="replace").splitlines())
    return 0


_keep_message_function = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)(_keep_message)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
