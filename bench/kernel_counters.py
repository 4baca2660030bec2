"""What the kernels of all hosts count and should count seldom, beside what they do for direct connections.

Three nodes that send at once on few cores count more than the one of `direct` does: each is kept from running
more often, and takes late acknowledgments for losses. So does `ecmp`, which is the measure for that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bench.contestants import DIRECTS
from bench.readings import Series

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "PAWS": ("TcpExtPAWSActive", "TcpExtPAWSEstab"),
        "checksum": ("TcpInCsumErrors", "IpExtInCsumErrors"),
        "reordering": (
            *("TcpExtTCPSACKReorder", "TcpExtTCPTSReorder", "TcpExtTCPRenoReorder"),
            *("TcpExtTCPOFOQueue", "TcpExtTCPDSACKRecv"),
        ),
        "retransmissions": ("TcpRetransSegs", "TcpExtTCPTimeouts", "TcpExtTCPLossProbes"),
        "listen drops": ("TcpExtListenDrops", "TcpExtListenOverflows", "TcpExtTCPReqQFullDrop"),
    }
)
"""Named as nstat names them. A loss probe may carry new data and is no loss then, but tells of impatience."""


def watched(changes: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """By host, of all that changed what is in a group."""
    names = {name for group in GROUPS.values() for name in group}
    kept = {
        host: {name: change for name, change in changed.items() if name in names}
        for host, changed in changes.items()
    }
    return {host: changed for host, changed in kept.items() if changed}


@dataclass(frozen=True, slots=True)
class Tally:
    """Of one contestant in all rounds of a series."""

    counts: Mapping[str, int]
    """By group."""
    worse: tuple[str, ...]
    """Groups in which it has more, for as much work, than both of `direct`'s measurements."""


def tally(series: Series, contestant: str) -> Tally:
    own = _counts(series, contestant)
    work = _work(series, contestant)
    references = [name for name in DIRECTS if name in series.readings]
    allowed = {
        group: max(_counts(series, name)[group] / _work(series, name) for name in references)
        for group in GROUPS
    }
    worse = tuple(group for group, count in own.items() if count / work > allowed[group])
    return Tally(own, () if contestant in references else worse)


def _counts(series: Series, contestant: str) -> dict[str, int]:
    return {
        group: sum(
            counters.get(name, 0)
            for reading in series.readings[contestant]
            for counters in reading.counters.values()
            for name in names
        )
        for group, names in GROUPS.items()
    }


def _work(series: Series, contestant: str) -> float:
    loads = [reading.load for reading in series.readings[contestant]]
    return sum(load.delivered_bytes if series.per_byte else load.requests for load in loads)
