"""Capabilities (capabilities(7)): what a daemon started by root keeps once it is set up.

The user stays root, because the key file, the control socket and the pins are root's; but without the
capability to override file permissions, to mount, to trace or to load modules, root is no more than their
owner. The bounding set shrinks with the others, so that no program that the process might execute regains
any (and `no_new_privs` says so once more).

Capabilities belong to threads, and new threads have those of the one that starts them: `drop` is to be called
while there is one.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from common.net.errors import HostError


class Capability(IntEnum):
    """linux/capability.h."""

    SETPCAP = 8
    """Taking from the bounding set."""
    NET_ADMIN = 12
    """Routes, rules, nftables, TUN, attaching to interfaces."""
    NET_RAW = 13
    """Taps, raw sockets."""
    SYS_ADMIN = 21
    """Mounting and unmounting the bpf file system."""
    PERFMON = 38
    """What programs may do that look into kernel memory; the verifier asks for it."""
    BPF = 39


WORKING = (Capability.NET_ADMIN, Capability.NET_RAW, Capability.PERFMON, Capability.BPF)
"""What either data plane needs as long as it runs."""

_VERSION_3 = 0x20080522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_HIGHEST = 63


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """32 capabilities of each set."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop(kept: Iterable[Capability] = WORKING, in_reserve: Iterable[Capability] = ()) -> None:
    """Keep ``kept`` and nothing else; ``in_reserve`` too, to be used within `raised` only. `HostError`.

    What the process does not have it does not get. Without `Capability.SETPCAP` the bounding set stays, and
    `no_new_privs` alone keeps programs from regaining what is in it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    permitted = _permitted(libc)
    in_effect = permitted & _mask(kept)
    allowed = in_effect | permitted & _mask(in_reserve)
    if effective() & _mask([Capability.SETPCAP]):
        _bound(libc, allowed)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _set(libc, in_effect, allowed)
    _demand(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


@contextmanager
def raised(capability: Capability) -> Iterator[None]:
    """With a capability kept in reserve put to use; without one, as it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    before, permitted = effective(), _permitted(libc)
    _set(libc, before | permitted & _mask([capability]), permitted)
    try:
        yield
    finally:
        _set(libc, before, permitted)


def effective() -> int:
    """Bit n is capability n, of the calling thread."""
    low, high = _get(ctypes.CDLL(None, use_errno=True))
    return int(low.effective | high.effective << 32)


def _bound(libc: ctypes.CDLL, allowed: int) -> None:
    for number in range(_HIGHEST + 1):
        is_bounding = libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1
        if is_bounding and not allowed >> number & 1:
            _demand(libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))


def _permitted(libc: ctypes.CDLL) -> int:
    low, high = _get(libc)
    return int(low.permitted | high.permitted << 32)


def _get(libc: ctypes.CDLL) -> tuple[_Sets, _Sets]:
    sets = (_Sets * 2)()
    _demand(libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), sets))
    return sets[0], sets[1]


def _set(libc: ctypes.CDLL, in_effect: int, permitted: int) -> None:
    low, high = ((in_effect >> at & 0xFFFFFFFF, permitted >> at & 0xFFFFFFFF, 0) for at in (0, 32))
    sets = (_Sets * 2)(_Sets(*low), _Sets(*high))
    _demand(libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), sets))


def _mask(capabilities: Iterable[Capability]) -> int:
    return sum(1 << capability for capability in set(capabilities))


def _demand(result: int) -> None:
    if result < 0:
        raise HostError(f"cannot give up privileges: {os.strerror(ctypes.get_errno())}")
