"""Chains of iptables-legacy, whose rules nftables does not know of (linux/netfilter_ipv4/ip_tables.h)."""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.net.errors import HostError

_NAMES = Path("/proc/net/ip_tables_names")
"""Of the tables that this network namespace has."""
_CHAINS = {"PREROUTING": 0, "FORWARD": 2, "POSTROUTING": 4}
"""What forwarded packets pass, by the number of its hook."""
_GET_INFO, _GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32sI5I5III")
"""Name, hooks that the table has, where each one's rules begin and end, how many there are, their size."""
_ENTRIES_AT = 40
"""Of the entries in an answer: behind the name, the size, and padding."""
_TARGET_OFFSET = struct.Struct("=88xH")
"""In an entry: where its target stands."""
_VERDICT = struct.Struct("=32xi")
_DROP = -1


class LegacyChain(NamedTuple):
    table: str
    name: str
    has_rules: bool
    drops: bool
    """By its policy."""


def chains() -> Iterator[LegacyChain]:
    """Those that forwarded packets pass. `HostError` where the kernel does not tell."""
    try:
        tables = _NAMES.read_text(encoding="ascii").split()
        if not tables:
            return
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as control:
            for table in tables:
                yield from _chains_of(control, table)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(error.strerror or str(error)) from None


def _chains_of(control: socket.socket, table: str) -> Iterator[LegacyChain]:
    info = _INFO.unpack(_asked(control, _GET_INFO, _INFO.pack(table.encode(), *[0] * 13)))
    hooks, begins, ends, size = info[1], info[2:7], info[7:12], info[13]
    question = struct.pack("=32sI4x", table.encode(), size) + bytes(size)
    entries = _asked(control, _GET_ENTRIES, question)[_ENTRIES_AT:]
    for name, number in _CHAINS.items():
        if hooks >> number & 1:
            (target,) = _TARGET_OFFSET.unpack_from(entries, ends[number])
            (verdict,) = _VERDICT.unpack_from(entries, ends[number] + target)
            yield LegacyChain(table, name, begins[number] != ends[number], verdict == _DROP)


def _asked(control: socket.socket, option: int, question: bytes) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(question, len(question))
    size = ctypes.c_uint(len(question))
    if libc.getsockopt(control.fileno(), socket.IPPROTO_IP, option, buffer, ctypes.byref(size)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw
