"""A set of readings made by hand: two rounds of two workloads, with one contestant that was absent."""

from bench.readings import Load, Observation, Quantity, Reading, Series
from bench.results import Results

RATE = Quantity("rate", "Gbit/s", 1, more_is_better=True)
P50 = Quantity("p50", "ms", 2, more_is_better=False)


def reading(  # the work of one turn
    value: float,
    *,
    quantity: str = "rate",
    busy: float = 2.0,
    requests: int = 1000,
    delivered: int = 10**9,
    crossed: int = 0,
    failures: int = 0,
    **counters: int,
) -> Reading:
    load = Load(1.0, requests, delivered, failures, {quantity: value})
    return Reading(load, busy, crossed, {"client": counters, "node1": {"TcpInSegs": 7}})


DOWNLOADS = Series(
    "1 download",
    "superpackets",
    [RATE],
    True,
    {
        "direct": [reading(10, busy=1.0), reading(20, busy=1.5, TcpRetransSegs=2)],
        "HAProxy": [reading(1, crossed=2 * 10**9), reading(4, crossed=2 * 10**9)],
        "l3dsr-raw": [
            reading(5, busy=2.0, crossed=10**6, TcpRetransSegs=3),
            reading(16, busy=2.0, crossed=3 * 10**6, failures=2),
        ],
        "direct again": [reading(11, busy=1.1), reading(19, busy=1.4, TcpRetransSegs=1)],
    },
)
FRESH = Series(
    "fresh connection",
    "superpackets",
    [P50],
    False,
    {
        "direct": [reading(0.5, quantity="p50", busy=0.1), reading(0.25, quantity="p50", busy=0.2)],
        "l3dsr-raw": [reading(1.0, quantity="p50", busy=0.3), reading(1.25, quantity="p50", busy=0.6)],
        "direct again": [reading(0.5, quantity="p50", busy=0.1), reading(0.3, quantity="p50", busy=0.2)],
    },
)
RESULTS = Results(
    machine={"CPU": "one of these", "cores": 2},
    other_work=[0.01, 0.25],
    contestants={
        "direct": "one node",
        "HAProxy": "a proxy",
        "l3dsr-raw": "ours",
        "l3dsr-ebpf": "ours in the kernel",
        "direct again": "noise",
    },
    absent={"l3dsr-ebpf": "no program for it"},
    series=[DOWNLOADS, FRESH],
    observations=[Observation("l3dsr-raw", "start to first answered SYN", "s", 2, [0.5, 0.25, 2.0])],
    seconds=12.3,
)
