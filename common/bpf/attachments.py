"""One daemon's programs at all their hooks, and the pins of those that are links."""

import socket
from collections.abc import Mapping
from contextlib import ExitStack

from common.bpf.attach import Attachment, ClsactFilter, Direction, Hook, TcxLink, supports_tcx
from common.bpf.errors import BpfError
from common.bpf.pins import PinDirectory


class Attachments:
    def __init__(self, pins: PinDirectory, handle: int) -> None:
        """``handle`` tells this daemon's clsact filters from those of others."""
        self._pins = pins
        self._handle = handle
        self._at: dict[Hook, Attachment] = {}
        self._programs: dict[Hook, int] = {}

    def begin(self, programs: Mapping[Hook, int]) -> None:
        """Put programs (descriptors) to work, in the places of those that an earlier run left; what it left
        elsewhere goes then. `BpfError`; then `leave` or `close` is to be called.
        """
        with ExitStack() as failing:
            left = links_in(self._pins) if supports_tcx() else filters_of(self._handle)
            for attachment in left.values():
                failing.callback(attachment.leave)
            for hook, program in programs.items():
                self._attach(hook, program, left.pop(hook, None))
            self._pin()
            for hook, attachment in reversed(left.items()):
                attachment.close()
                self._pins.unpin(_link_name(hook))
            failing.pop_all()

    def tend(self, programs: Mapping[Hook, int]) -> tuple[list[str], list[str]]:
        """Attach to hooks that are new, and again where somebody has detached; pin what is not; let go of
        interfaces that are gone. Says what was done, and what the kernel refuses.
        """
        said, refused = self._let_go(), []
        for hook, program in {**self._programs, **programs}.items():
            try:
                said += self._tend(hook, program)
            except BpfError as error:
                refused.append(str(error))
        try:
            self._pin()
        except BpfError as error:
            refused.append(str(error))
        return said, refused

    def leave(self) -> None:
        """Let go; filters stay, and so do links that are pinned."""
        for attachment in self._at.values():
            attachment.leave()
        self._forget()

    def close(self) -> None:
        """Detach."""
        with ExitStack() as steps:
            steps.callback(self._forget)
            for attachment in self._at.values():
                steps.callback(attachment.close)

    def _forget(self) -> None:
        self._at.clear()
        self._programs.clear()

    def _attach(self, hook: Hook, program: int, there: Attachment | None) -> None:
        """``there`` is what an earlier run left at the hook."""
        if not supports_tcx():
            self._at[hook] = ClsactFilter.create(hook, program, self._handle)
        elif there is None:
            self._at[hook] = TcxLink.create(hook, program)
        else:
            self._at[hook] = there
            there.replace(program)
        self._programs[hook] = program

    def _pin(self) -> None:
        """Links that are not pinned."""
        pinned = set(self._pins.names())
        for hook, attachment in self._at.items():
            if isinstance(attachment, TcxLink) and _link_name(hook) not in pinned:
                self._pins.pin(_link_name(hook), attachment.descriptor)

    def _let_go(self) -> list[str]:
        there = _interfaces()
        gone = [hook for hook in self._at if hook.ifindex not in there]
        for hook in reversed(gone):
            self._at.pop(hook).close()
            del self._programs[hook]
            self._pins.unpin(_link_name(hook))
        return [f"interface {number} has gone" for number in sorted({hook.ifindex for hook in gone})]

    def _tend(self, hook: Hook, program: int) -> list[str]:
        attachment = self._at.get(hook)
        if attachment is None:
            self._attach(hook, program, None)
            return [f"programs are at {hook} from now on"]
        if attachment.is_attached():
            return []
        attachment.renew(program)
        self._pins.unpin(_link_name(hook))
        return [f"somebody has removed our program at {hook}: it is back"]


def filters_of(handle: int) -> dict[Hook, Attachment]:
    hooks = [Hook(ifindex, direction) for ifindex in sorted(_interfaces()) for direction in Direction]
    return {hook: found for hook in hooks if (found := ClsactFilter.find(hook, handle)) is not None}


def links_in(pins: PinDirectory) -> dict[Hook, Attachment]:
    """Those whose interfaces are still there; the others are unpinned."""
    found: dict[Hook, Attachment] = {}
    for name in filter(is_link, pins.names()):
        try:
            descriptor = pins.get_link(name)
        except BpfError:  # of another kind
            descriptor = None
        link = None if descriptor is None else TcxLink.adopt(descriptor)
        if link is None:
            pins.unpin(name)
        else:
            found[link.hook] = link
    return found


def _link_name(hook: Hook) -> str:
    return f"link_{hook.direction.name.lower()}_{hook.ifindex}"


def is_link(name: str) -> bool:
    return name.startswith("link_")


def _interfaces() -> set[int]:
    return {index for index, _ in socket.if_nameindex()}
