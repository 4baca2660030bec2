"""The taps of one intake, of which each interface has one, while interfaces come and go.

An interface that is down, or has no address at the moment, keeps its tap: it may be back before anybody
looks. One that has been deleted has not: another one of its name is a new one.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from common.net.errors import HostError
from common.net.intake import Intake
from common.net.interfaces import Interface, open_interfaces
from common.net.packet_socket import Tap


class Taps:
    """Owns the taps. ``errors``, ``malformed`` and ``kernel_drops`` count for those, too, that are closed."""

    def __init__(self, intake: Intake, opened: Callable[[Tap], None], closing: Callable[[Tap], None]) -> None:
        """There is none before `open` and `follow`. ``opened`` and ``closing`` are told of each."""
        self._intake = intake
        self._opened = opened
        self._closing = closing
        self._taps: dict[int, Tap] = {}
        self._refused: dict[int, str] = {}
        """Why an interface could not be tapped, which is said once."""
        self._closed_errors = self._closed_malformed = self._closed_drops = 0

    @property
    def interfaces(self) -> list[Interface]:
        """Those that are tapped, as they were then."""
        return [tap.interface for tap in self._taps.values()]

    @property
    def errors(self) -> int:
        return self._closed_errors + sum(tap.errors for tap in self._taps.values())

    @property
    def malformed(self) -> int:
        return self._closed_malformed + sum(tap.malformed for tap in self._taps.values())

    def kernel_drops(self) -> int:
        return self._closed_drops + sum(tap.kernel_drops() for tap in self._taps.values())

    def open(self, interfaces: Iterable[Interface]) -> None:
        """Tap these too. `HostError` for the first that cannot be tapped; then none of them is."""
        with ExitStack() as failing:
            for interface in interfaces:
                self._open(interface)
                failing.callback(self._close, interface.index)
            failing.pop_all()

    def follow(self, interfaces: Sequence[Interface]) -> list[str]:
        """Tap these and no others; a tap that is dead is replaced. Says what was done, and what failed."""
        said = []
        present = {interface.index: interface for interface in interfaces}
        for index, tap in list(self._taps.items()):
            if index not in present or not tap.is_bound:
                said.append(f"interface {tap.interface.name} has gone: it is tapped no more")
                self._close(index)
        for index in self._refused.keys() - present.keys():
            del self._refused[index]
        for index, interface in present.items():
            if index in self._taps:
                continue
            try:
                self._open(interface)
            except HostError as error:
                if self._refused.get(index) != str(error):
                    said.append(str(error))
                self._refused[index] = str(error)
            else:
                self._refused.pop(index, None)
                said.append(f"interface {interface.name} is there: it is tapped")
        return said

    def take(self, intake: Intake) -> None:
        """What this one says, from now on. `HostError`: then all is as it was."""
        with ExitStack() as failing:
            for tap in self._taps.values():
                failing.callback(tap.take, self._intake)
                tap.take(intake)
            failing.pop_all()
        self._intake = intake

    def close(self) -> None:
        """May be called more than once."""
        for index in list(self._taps):
            self._close(index)

    def _open(self, interface: Interface) -> None:
        tap = Tap(interface, self._intake)
        self._taps[interface.index] = tap
        self._opened(tap)

    def _close(self, index: int) -> None:
        tap = self._taps.pop(index)
        self._closing(tap)
        self._closed_errors += tap.errors
        self._closed_malformed += tap.malformed
        self._closed_drops += tap.kernel_drops()
        tap.close()


def wanted(found: Iterable[Interface], tapped: Iterable[Interface], own_tun: int) -> list[Interface]:
    """Of all interfaces ``found`` those to tap now, if some are ``tapped`` already.

    ``own_tun`` is the index of the daemon's own TUN.
    """
    present = {each.index: each for each in found if each.index != own_tun and not each.master}
    indexes = {interface.index for interface in (*open_interfaces(present.values()), *tapped)}
    return [interface for index, interface in present.items() if index in indexes]
