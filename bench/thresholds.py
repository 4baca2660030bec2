"""What is wanted of this project's own contestants, as data, and whether it is reached.

Ratios are medians over the rounds of ratios within a round.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import kernel_counters
from bench.contestants import DIRECT
from bench.memory import FLOW_MEMORY
from bench.results import Results
from bench.scale import flood
from bench.scale.memory import name_by_slabs, name_of_memory
from bench.start import START
from bench.workloads import (
    CONNECTION_PER_REQUEST,
    FOUR_DOWNLOADS,
    FRESH,
    KEEP_ALIVE,
    KEPT,
    LINKS,
    MANY_DOWNLOADS,
    MTU_SIZED,
    OBJECTS,
    ONE_DOWNLOAD,
    P50,
    RATE,
    SUPERPACKETS,
)


@dataclass(frozen=True, slots=True)
class Threshold:
    contestant: str
    subject: str
    measure: str
    limit: float
    at_most: bool
    value: Callable[[Results], float | None]
    """None where it was not measured."""

    @property
    def wanted(self) -> str:
        return f"at {'most' if self.at_most else 'least'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    threshold: Threshold
    value: float | None

    @property
    def reached(self) -> bool:
        if self.value is None:
            return False
        limit = self.threshold.limit
        return self.value <= limit if self.threshold.at_most else self.value >= limit


def judge(results: Results) -> list[Verdict]:
    """For the contestants that were to take part."""
    return [
        Verdict(threshold, threshold.value(results))
        for threshold in THRESHOLDS
        if threshold.contestant in results.contestants
    ]


def ratio(
    contestant: str,
    workload: str,
    limit: float,
    against: str = DIRECT,
    *,
    links: str = SUPERPACKETS,
    quantity: str = RATE,
    at_most: bool = False,
) -> Threshold:
    def value(results: Results) -> float | None:
        series = results.find(workload, links)
        if series is None or not {contestant, against} <= series.readings.keys():
            return None
        return statistics.median(series.ratios(contestant, quantity, against))

    return Threshold(
        contestant, f"{workload}, {links}", f"{quantity}, ratio to {against}", limit, at_most, value
    )


def excess(contestant: str, workload: str, quantity: str, limit: float) -> Threshold:
    def value(results: Results) -> float | None:
        series = results.find(workload, SUPERPACKETS)
        if series is None or contestant not in series.readings:
            return None
        return statistics.median(series.excesses(contestant, quantity))

    return Threshold(contestant, workload, f"{quantity}, ms over {DIRECT}", limit, True, value)


def extra_processor_time(contestant: str, workload: str, against: str) -> Threshold:
    """Not more, over `direct`, than `against`."""

    def value(results: Results) -> float | None:
        series = results.find(workload, SUPERPACKETS)
        if series is None or not {contestant, against} <= series.readings.keys():
            return None
        pairs = zip(
            series.extra_processor_seconds(contestant), series.extra_processor_seconds(against), strict=True
        )
        return statistics.median(own - other for own, other in pairs)

    measure = f"CPU s per 1000 requests over {DIRECT}, less those of {against}"
    return Threshold(contestant, workload, measure, 0.0, True, value)


def balancer_bytes(contestant: str, workload: str, links: str, limit: float) -> Threshold:
    def value(results: Results) -> float | None:
        series = results.find(workload, links)
        if series is None or contestant not in series.readings:
            return None
        return statistics.median(series.balancer_bytes(contestant))

    return Threshold(
        contestant, f"{workload}, {links}", "balancer's bytes per byte delivered", limit, True, value
    )


def counters(contestant: str, links: str) -> Threshold:
    """Over all workloads together."""

    def value(results: Results) -> float | None:
        measured = [each for each in results.series if each.links == links and contestant in each.readings]
        if not measured:
            return None
        return sum(len(kernel_counters.tally(each, contestant).worse) for each in measured)

    measure = "groups of kernel counters that are worse than direct's"
    return Threshold(contestant, f"all workloads, {links}", measure, 0, True, value)


def observed(contestant: str, name: str, limit: float, *, at_most: bool = True) -> Threshold:
    def value(results: Results) -> float | None:
        found = results.observation(contestant, name)
        return None if found is None else statistics.median(found.values)

    return Threshold(contestant, name, "median", limit, at_most, value)


DOWNLOADS = (ONE_DOWNLOAD, FOUR_DOWNLOADS, MANY_DOWNLOADS, OBJECTS)
DAEMONS = ("balancer", "packetbridge")
RAW, EBPF = "l3dsr-raw", "l3dsr-ebpf"
NFTABLES, HAPROXY, SPLICE, NGINX = "nftables L3DSR", "HAProxy", "HAProxy splice", "NGINX"

THRESHOLDS: Sequence[Threshold] = (
    *(ratio(EBPF, workload, 0.90, DIRECT, links=links) for links in LINKS for workload in DOWNLOADS),
    *(ratio(EBPF, workload, 5.0, HAPROXY) for workload in DOWNLOADS),
    *(ratio(EBPF, workload, 1.8, SPLICE) for workload in DOWNLOADS),
    ratio(EBPF, KEEP_ALIVE, 0.95, "ecmp"),
    ratio(EBPF, KEEP_ALIVE, 1.8, HAPROXY),
    *(
        ratio(EBPF, CONNECTION_PER_REQUEST, limit, against)
        for against, limit in [(NFTABLES, 1.0), (DIRECT, 0.90), (HAPROXY, 1.0), (SPLICE, 1.0), (NGINX, 1.0)]
    ),
    ratio(EBPF, FRESH, 1.0, NFTABLES, quantity=P50, at_most=True),
    ratio(EBPF, KEPT, 1.0, NFTABLES, quantity=P50, at_most=True),
    extra_processor_time(EBPF, CONNECTION_PER_REQUEST, HAPROXY),
    balancer_bytes(EBPF, ONE_DOWNLOAD, SUPERPACKETS, 0.001),
    balancer_bytes(EBPF, ONE_DOWNLOAD, MTU_SIZED, 0.03),
    *(counters(EBPF, links) for links in LINKS),
    *(observed(EBPF, name(daemon), 300) for daemon in DAEMONS for name in (name_of_memory, name_by_slabs)),
    observed(EBPF, flood.name_of(flood.FLOOD, flood.NEW_ANSWERED), 99, at_most=False),
    observed(EBPF, flood.name_of(flood.FLOOD, flood.BROKEN), 0),
    ratio(RAW, ONE_DOWNLOAD, 0.15),
    ratio(RAW, KEEP_ALIVE, 0.20),
    ratio(RAW, CONNECTION_PER_REQUEST, 0.15),
    excess(RAW, FRESH, P50, 1.0),
    balancer_bytes(RAW, ONE_DOWNLOAD, SUPERPACKETS, 0.005),
    balancer_bytes(RAW, ONE_DOWNLOAD, MTU_SIZED, 0.03),
    *(observed(RAW, f"{FLOW_MEMORY}, {daemon}", 1049) for daemon in DAEMONS),
    observed(RAW, START, 1.0),
)
