"""What every contestant is asked to do, and how the client tells one reading of it.

downloads               of 100 MiB, some at the same time, each over a connection of its own (downloads.py)
64 KiB objects          16 connections that ask again and again (wrk)
keep-alive 1 KiB        the same
connection per request  the same, with a connection for each request
kept, fresh connection  one request at a time with a pause between them: the load is low (latency.py)
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.contestants import PORT
from bench.effort import Effort
from bench.errors import BenchError
from bench.origin import urls
from bench.programs import script
from bench.readings import Load, Quantity
from lab import Lab

SUPERPACKETS, MTU_SIZED = LINKS = ("superpackets", "MTU-sized packets")
WRK_CONNECTIONS = 16
PAUSE_SECONDS = 0.003
PROGRAM_SECONDS = 30
"""Beyond the time that is measured."""
WARM_UP_REQUESTS = 30
HEAD_BYTES = 250
"""About what stands before a body of 1 KiB."""

RATE = "rate"
P50, P99 = "p50", "p99"
MEASURED = re.compile(r"^measured ([0-9.]+) (\d+) (\d+) (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    quantities: Sequence[Quantity]
    per_byte: bool
    """Its processor time is told per GB, or else per 1000 requests."""
    with_mtu_sized: bool
    """It is measured without segmentation offloads, too."""
    measure: Callable[[Lab, str, Effort], Load]
    """The second argument is the address that the client asks."""


def warm_up(lab: Lab, address: str) -> None:
    """A few requests; LabError where one fails."""
    _latency(lab, address, "fresh", WARM_UP_REQUESTS, 0)


def _downloads(lab: Lab, address: str, effort: Effort, *, at_once: int) -> Load:
    seconds = effort.download_seconds
    argv = [sys.executable, "-I", str(script("downloads.py")), address, str(PORT), str(at_once), str(seconds)]
    told = json.loads(lab.client.run([*argv, *urls("100m")], timeout=seconds + PROGRAM_SECONDS).stdout)
    gbit = told["bytes"] * 8 / told["seconds"] / 1e9
    return Load(told["seconds"], told["requests"], told["bytes"], told["failures"], {RATE: gbit})


def _requests(lab: Lab, address: str, effort: Effort, *, file: str, close: bool) -> Load:
    options = ("-H", "Connection: close") if close else ()
    argv = [
        *("wrk", "-t1", f"-c{WRK_CONNECTIONS}", f"-d{effort.load_seconds}s", *options),
        *("-s", str(script("urls.lua")), f"http://{address}:{PORT}/", "--", *urls(file)),
    ]
    return parse_wrk(lab.client.run(argv, timeout=effort.load_seconds + PROGRAM_SECONDS).stdout)


def parse_wrk(output: str) -> Load:
    """BenchError where that is not what urls.lua makes wrk print."""
    found = MEASURED.search(output)
    if found is None or int(found[2]) == 0:
        raise BenchError(f"wrk had no answer:\n{output}")
    seconds, requests = float(found[1]), int(found[2])
    return Load(seconds, requests, int(found[3]), int(found[4]), {RATE: requests / seconds})


def _one_at_a_time(lab: Lab, address: str, effort: Effort, *, kind: str) -> Load:
    return load_of_times(_latency(lab, address, kind, effort.requests, PAUSE_SECONDS))


def load_of_times(seconds: Sequence[float]) -> Load:
    values = {P50: statistics.median(seconds) * 1000, P99: percentile(seconds, 0.99) * 1000}
    return Load(sum(seconds), len(seconds), len(seconds) * (1024 + HEAD_BYTES), 0, values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def _latency(lab: Lab, address: str, kind: str, count: int, pause: float) -> list[float]:
    argv = [sys.executable, "-I", str(script("latency.py")), address, str(PORT), kind, str(count), str(pause)]
    done = lab.client.run([*argv, *urls("1k")], timeout=PROGRAM_SECONDS)
    times: list[float] = json.loads(done.stdout)
    return times


def _rate(unit: str, digits: int) -> Quantity:
    return Quantity(RATE, unit, digits, more_is_better=True)


_GBIT = (_rate("Gbit/s", 2),)
_REQUESTS = (_rate("requests/s", 0),)
_TIMES = (Quantity(P50, "ms", 3, more_is_better=False), Quantity(P99, "ms", 3, more_is_better=False))

ONE_DOWNLOAD = "1 download"
FOUR_DOWNLOADS = "4 downloads"
MANY_DOWNLOADS = "32 downloads"
OBJECTS = "64 KiB objects"
KEEP_ALIVE = "keep-alive, 1 KiB"
CONNECTION_PER_REQUEST = "connection per request, 1 KiB"
KEPT = "kept connection"
FRESH = "fresh connection"

WORKLOADS = (
    Workload(ONE_DOWNLOAD, _GBIT, True, True, partial(_downloads, at_once=1)),
    Workload(FOUR_DOWNLOADS, _GBIT, True, True, partial(_downloads, at_once=4)),
    Workload(MANY_DOWNLOADS, _GBIT, True, True, partial(_downloads, at_once=32)),
    Workload(OBJECTS, _REQUESTS, True, True, partial(_requests, file="64k", close=False)),
    Workload(KEEP_ALIVE, _REQUESTS, False, False, partial(_requests, file="1k", close=False)),
    Workload(CONNECTION_PER_REQUEST, _REQUESTS, False, False, partial(_requests, file="1k", close=True)),
    Workload(KEPT, _TIMES, False, False, partial(_one_at_a_time, kind="kept")),
    Workload(FRESH, _TIMES, False, False, partial(_one_at_a_time, kind="fresh")),
)
