"""Programs at the tc hooks of an interface: as TCX links where the kernel has them, else as clsact filters.

A TCX link (kernel 6.6) lives as long as somebody holds or pins it, so it ends with a killed process. Links of
several owners run in the order of their coming. A clsact filter stays until it is deleted; ours have a
priority of their own, and the handle tells the daemon, so that the next run finds what a killed one left and
puts its own in its place. A program must return TC_ACT_UNSPEC (-1) for packets that others may see after it.
"""

import ctypes
import errno
import os
import socket
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, Self

from pyroute2 import IPRoute

from common.bpf import libbpf
from common.bpf.errors import BpfError


class Direction(IntEnum):
    """enum bpf_tc_attach_point."""

    INGRESS = 1
    EGRESS = 2


_TCX_ATTACH_TYPES = {Direction.INGRESS: 46, Direction.EGRESS: 47}
_LINK_TYPE_TCX = 11
_REPLACE = 1  # BPF_TC_F_REPLACE
_PRIORITY = 0x4C33
_CLSACT_PARENTS = (0xFFFFFFF2, 0xFFFFFFF3)
_GONE = {-errno.ENOENT, -errno.ENODEV, -errno.EINVAL}  # filter, interface, qdisc


@dataclass(frozen=True, slots=True)
class Hook:
    """Of the calling thread's network namespace."""

    ifindex: int
    direction: Direction

    def __str__(self) -> str:
        try:
            name = socket.if_indextoname(self.ifindex)
        except OSError:  # it has gone
            name = f"interface {self.ifindex}"
        return f"{self.direction.name.lower()} of {name}"


class Attachment(Protocol):
    """Its methods are called in the network namespace in which it was made."""

    @property
    def hook(self) -> Hook: ...

    def replace(self, program: int) -> None:
        """Put another program in the place of this one; no packet sees both or neither. `BpfError`."""
        ...

    def is_attached(self) -> bool:
        """False where the interface has gone, or somebody else has detached it."""
        ...

    def renew(self, program: int) -> None:
        """Attach again what is attached no longer. `BpfError`; then nothing has changed."""
        ...

    def leave(self) -> None:
        """Let go without detaching: a clsact filter stays, and so does a link that is pinned."""
        ...

    def close(self) -> None:
        """Detach, what is pinned too. Does nothing after `leave` or a second time."""
        ...


def supports_tcx() -> bool:
    """A kernel that knows the attach type complains of the interface 0, another one of the attach type."""
    count = ctypes.c_uint32(0)
    result: int = libbpf.library().bpf_prog_query(
        0, _TCX_ATTACH_TYPES[Direction.INGRESS], 0, None, None, ctypes.byref(count)
    )
    return result == -errno.ENODEV


def attach(hook: Hook, program: int, handle: int, *, tcx: bool | None = None) -> Attachment:
    """``handle`` (from 1 on) tells daemons at one hook apart where there is no TCX; ``tcx`` chooses the way,
    None leaves that to the kernel. `BpfError`; then nothing was changed.
    """
    if supports_tcx() if tcx is None else tcx:
        return TcxLink.create(hook, program)
    return ClsactFilter.create(hook, program, handle)


class TcxLink:
    def __init__(self, hook: Hook, descriptor: int) -> None:
        """``descriptor`` is a link's, from `create` or from a pin, and is owned from now on."""
        self.hook = hook
        self._descriptor: int | None = descriptor

    @classmethod
    def create(cls, hook: Hook, program: int) -> Self:
        """`BpfError`."""
        attach_type = _TCX_ATTACH_TYPES[hook.direction]
        result = libbpf.library().bpf_link_create(program, hook.ifindex, attach_type, None)
        return cls(hook, _demand(result, f"cannot attach to {hook}"))

    @classmethod
    def adopt(cls, descriptor: int) -> Self | None:
        """A link from a pin; None, with the descriptor closed, where its interface has gone."""
        info = libbpf.LinkInfo()
        libbpf.fill_info(descriptor, info)
        if info.type == _LINK_TYPE_TCX and info.ifindex:
            for direction, attach_type in _TCX_ATTACH_TYPES.items():
                if info.attach_type == attach_type:
                    return cls(Hook(info.ifindex, direction), descriptor)
        os.close(descriptor)
        return None

    @property
    def descriptor(self) -> int:
        """To be pinned."""
        if self._descriptor is None:
            raise ValueError("the link is closed")
        return self._descriptor

    def replace(self, program: int) -> None:
        result = libbpf.library().bpf_link_update(self.descriptor, program, None)
        _demand(result, f"cannot replace the program at {self.hook}")

    def is_attached(self) -> bool:
        info = libbpf.LinkInfo()
        libbpf.fill_info(self.descriptor, info)
        return bool(info.ifindex)

    def renew(self, program: int) -> None:
        """It is another link then, which is to be pinned in the place of the old one."""
        renewed = TcxLink.create(self.hook, program)
        self.leave()
        self._descriptor = renewed.descriptor

    def leave(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def close(self) -> None:
        if self._descriptor is not None:
            libbpf.library().bpf_link_detach(self._descriptor)  # it fails only where it is detached already
            self.leave()


class ClsactFilter:
    """A direct-action filter. The qdisc goes with the last filter if it came with one of ours.

    Several at one interface are to be closed in the reverse order of their making.
    """

    def __init__(self, hook: Hook, handle: int, *, made_qdisc: bool) -> None:
        self.hook = hook
        self._handle = handle
        self._made_qdisc = made_qdisc
        self._open = True

    @classmethod
    def create(cls, hook: Hook, program: int, handle: int) -> Self:
        """In the place of what a killed run left there. `BpfError`."""
        library = libbpf.library()
        left = _program_name_at(hook, handle)
        if left not in {None, _name(program)}:
            raise BpfError(
                f"{hook} has a filter {left} of another program at priority {_PRIORITY}, handle {handle}:"
                f" remove it (tc filter del dev ... {hook.direction.name.lower()} prio {_PRIORITY})"
            )
        result = library.bpf_tc_hook_create(_tc_hook(hook))
        if result != -errno.EEXIST:
            _demand(result, f"cannot add clsact to interface {hook.ifindex}")
        created = cls(hook, handle, made_qdisc=result == 0 or left is not None)
        try:
            created.replace(program)
        except BpfError:
            created._remove_qdisc()
            raise
        return created

    @classmethod
    def find(cls, hook: Hook, handle: int) -> Self | None:
        """What a killed run left."""
        return None if _program_name_at(hook, handle) is None else cls(hook, handle, made_qdisc=True)

    def replace(self, program: int) -> None:
        options = libbpf.TcOptions(prog_fd=program, flags=_REPLACE, handle=self._handle, priority=_PRIORITY)
        result = libbpf.library().bpf_tc_attach(_tc_hook(self.hook), options)
        _demand(result, f"cannot attach to {self.hook}")

    def is_attached(self) -> bool:
        return _program_at(self.hook, self._handle) is not None

    def renew(self, program: int) -> None:
        """Its qdisc, too, where that has gone."""
        renewed = ClsactFilter.create(self.hook, program, self._handle)
        self._made_qdisc = self._made_qdisc or renewed.made_qdisc

    @property
    def made_qdisc(self) -> bool:
        """Whether the qdisc came with it."""
        return self._made_qdisc

    def leave(self) -> None:
        self._open = False

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        options = libbpf.TcOptions(handle=self._handle, priority=_PRIORITY)
        result = libbpf.library().bpf_tc_detach(_tc_hook(self.hook), options)
        if result not in _GONE:
            _demand(result, f"cannot remove the filter at {self.hook}")
            self._remove_qdisc()

    def _remove_qdisc(self) -> None:
        if not self._made_qdisc or _has_filters(self.hook.ifindex):
            return
        both = libbpf.TcHook(ifindex=self.hook.ifindex, attach_point=Direction.INGRESS | Direction.EGRESS)
        libbpf.library().bpf_tc_hook_destroy(both)  # fails only where the qdisc or the interface has gone


def _tc_hook(hook: Hook) -> libbpf.TcHook:
    return libbpf.TcHook(ifindex=hook.ifindex, attach_point=hook.direction)


def _program_at(hook: Hook, handle: int) -> int | None:
    """The kernel's number of the program in a filter. Needs no more than CAP_NET_ADMIN."""
    options = libbpf.TcOptions(handle=handle, priority=_PRIORITY)
    result = libbpf.library().bpf_tc_query(_tc_hook(hook), options)
    if result in _GONE:
        return None
    _demand(result, f"cannot ask for the filters at {hook}")
    return int(options.prog_id)


def _program_name_at(hook: Hook, handle: int) -> str | None:
    number = _program_at(hook, handle)
    if number is None:
        return None
    descriptor = libbpf.library().bpf_prog_get_fd_by_id(number)
    program = _demand(descriptor, f"cannot see the filter at {hook}")
    try:
        return _name(program)
    finally:
        os.close(program)


def _name(program: int) -> str:
    info = libbpf.ProgramInfo()
    libbpf.fill_info(program, info)
    return str(info.name.decode())


def _has_filters(ifindex: int) -> bool:
    with IPRoute() as netlink:
        return any(list(netlink.get_filters(index=ifindex, parent=parent)) for parent in _CLSACT_PARENTS)


def _demand(result: int, what: str) -> int:
    if result < 0:
        reason = os.strerror(-result) + (": eBPF needs root" if result == -errno.EPERM else "")
        raise BpfError(f"{what}: {reason}", "\n".join(libbpf.messages))
    return result
