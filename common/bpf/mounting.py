"""A bpf file system of our own for pins (mount(2), Linux Documentation/filesystems).

Each mount is a file system of its own: pins live as long as it stays mounted somewhere.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.bpf.errors import BpfError
from common.bpf.pins import is_bpf_filesystem
from common.net.privileges import Capability, raised

_OF_THE_KERNEL = {"progs.debug", "maps.debug"}
"""What some kernels put into each (CONFIG_BPF_PRELOAD)."""
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8


@contextmanager
def bpf_directory(path: Path) -> Iterator[Path]:
    """``path`` as the top of a bpf file system, which is mounted there unless it is already.

    It is unmounted afterwards if no pins are left in it. `BpfError`.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BpfError(f"cannot make {path} ({error.strerror}): choose another --state-dir") from error
    mount_unless_mounted(path)
    try:
        yield path
    finally:
        unmount_if_empty(path)


def mount_unless_mounted(path: Path) -> None:
    """``path`` is a directory. `BpfError`."""
    if is_bpf_filesystem(path):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    with raised(Capability.SYS_ADMIN):
        result = libc.mount(b"bpf", os.fsencode(path), b"bpf", flags, b"mode=0700")
    if result < 0:
        raise BpfError(f"cannot mount a bpf file system at {path}: {os.strerror(ctypes.get_errno())}")


def unmount_if_empty(path: Path) -> None:
    """Where somebody still uses it, it stays."""
    if is_bpf_filesystem(path) and {entry.name for entry in path.iterdir()} <= _OF_THE_KERNEL:
        with raised(Capability.SYS_ADMIN):
            ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(path), 0)
