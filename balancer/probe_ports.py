"""Ports for health checks: such as nobody else on this host takes, and none twice within a minute.

What comes to them is taken from the kernel, so they lie outside of the range from which it chooses ports for
connections, and no socket listens there.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from common.net.errors import HostError

REUSE_SECONDS = 60.0
"""The backend may remember an address and port as long (TIME_WAIT)."""
MIN_PORTS, MAX_PORTS = 256, 4096
_FIRST, _LAST = 1024, 65535
_LISTEN = "0A"
_EPHEMERAL = "net.ipv4.ip_local_port_range"


def find_ports(also_occupied: Iterable[int] = (), proc: Path = Path("/proc")) -> range:
    """The longest run of ports that are free by now, the higher of two long ones; `HostError`: none is."""
    first, last = (int(word) for word in (proc / "sys" / _EPHEMERAL.replace(".", "/")).read_text().split())
    occupied = {*range(first, last + 1), *_listening(proc), *also_occupied}
    longest = max(_runs(occupied), key=lambda run: (min(len(run), MAX_PORTS), run.start))
    if len(longest) < MIN_PORTS:
        raise HostError(
            f"no {MIN_PORTS} ports in a row are free for health checks: "
            f"run `sysctl -w {_EPHEMERAL}='32768 60999'` (it is {first} {last})"
        )
    return longest[-MAX_PORTS:]


def _runs(occupied: Collection[int]) -> Iterator[range]:
    start = _FIRST
    for port in (*sorted(port for port in occupied if _FIRST <= port <= _LAST), _LAST + 1):
        yield range(start, port)
        start = port + 1


def _listening(proc: Path) -> Iterator[int]:
    """Ports of TCP sockets that listen in this network namespace."""
    for name in ("tcp", "tcp6"):
        table = proc / "thread-self" / "net" / name
        if table.exists():
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == _LISTEN:
                    yield int(local.rpartition(":")[2], 16)


class ProbePorts:
    """Those of a range in turn. Times are seconds of the caller's clock."""

    def __init__(self, ports: range, first: int) -> None:
        """``first`` is the index of the one to begin with."""
        self._waiting: deque[tuple[float, int]] = deque(
            (0.0, port) for port in (*ports[first:], *ports[:first])
        )
        self._size = len(ports)

    @property
    def are_in_use(self) -> bool:
        """Whether any of them has been taken and not been given back."""
        return len(self._waiting) < self._size

    def take(self, now: float) -> int | None:
        """One that was given back long enough ago; None: they are all in use, or too fresh."""
        if not self._waiting or self._waiting[0][0] > now:
            return None
        return self._waiting.popleft()[1]

    def give_back(self, port: int, now: float) -> None:
        self._waiting.append((now + REUSE_SECONDS, port))
