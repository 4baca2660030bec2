"""What TCP had to repair on a path that loses nothing.

Two things in a lab look like a fault of what is tested and are none. A tail loss probe (RFC 8985 section 7)
counts as retransmission and is sent when an ACK takes longer than two round trips, here some 4 ms: it tells
how busy the machine is. And all namespaces of the machine share the kernel's queues of received packets, one
a CPU (net.core.netdev_max_backlog): where something else fills one, the path has lost packets.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lab import Lab, LabError

ATTEMPTS = 6
DROPPED_COLUMN = 1
REPAIRS = ("TcpRetransSegs", "TcpInCsumErrors", "TcpInErrs", "TcpExtTCPOFOQueue")


def repairs(lab: Lab, transfer: Callable[[], None]) -> dict[str, int]:
    """How often each host's TCP retransmitted or refused something ("client TcpRetransSegs"); empty where it
    never did. The transfer is made again where a receive queue overflowed meanwhile. Raises LabError where
    one does each time.
    """
    with _without_loss_probes(lab):
        for _ in range(ATTEMPTS):
            overflowed, before = overflows(), lab.counters()
            transfer()
            changes = lab.counters_since(before)
            if overflows() == overflowed:
                return _repairs(changes)
    raise LabError("the machine's receive queues overflow all the time")


def _repairs(changes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {
        f"{host} {counter}": of_host[counter]
        for host, of_host in changes.items()
        for counter in REPAIRS
        if counter in of_host
    }


@contextmanager
def _without_loss_probes(lab: Lab) -> Iterator[None]:
    for host in lab.hosts.values():
        host.sysctl("net.ipv4.tcp_early_retrans", 0)
    yield
    for host in lab.hosts.values():
        host.sysctl("net.ipv4.tcp_early_retrans", 3)


def overflows() -> int:
    """Packets that found a receive queue full, in all namespaces since the machine started."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[DROPPED_COLUMN], 16) for line in lines)
