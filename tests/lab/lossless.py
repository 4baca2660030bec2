"""What TCP had to repair on a path that loses nothing.

Three things in a lab look like a fault of what is tested and are none. A tail loss probe (RFC 8985 section 7)
counts as retransmission and is sent when an ACK takes longer than two round trips, here some 4 ms; a timeout
comes after 200 ms: both tell how busy the machine is. And all namespaces of the machine share the kernel's
queues of received packets, one a CPU (net.core.netdev_max_backlog): where something else fills one, the path
has lost packets.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
    changes = undisturbed(lab, transfer)
    return {
        f"{host} {counter}": of_host[counter]
        for host, of_host in changes.items()
        for counter in REPAIRS
        if counter in of_host
    }


def undisturbed(lab: Lab, transfer: Callable[[], None]) -> Mapping[str, Mapping[str, int]]:
    """Each host's counters that have changed, and by how much, in a transfer during which no receive queue
    overflowed. It is made again until there is one; LabError where that takes too long.
    """
    with patient(lab):
        for _ in range(ATTEMPTS):
            overflowed, before = overflows(), lab.counters()
            transfer()
            changes = lab.counters_since(before)
            if overflows() == overflowed:
                return changes
    raise LabError("the machine's receive queues overflow all the time")


@contextmanager
def patient(lab: Lab) -> Iterator[None]:
    """All hosts that have connections: see `Host.patient_tcp`."""
    with ExitStack() as all_patient:
        for host in (lab.client, *lab.nodes):
            all_patient.enter_context(host.patient_tcp())
        yield


def overflows() -> int:
    """Packets that found a receive queue full, in all namespaces since the machine started."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[DROPPED_COLUMN], 16) for line in lines)
