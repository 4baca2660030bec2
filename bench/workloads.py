"""What every contestant is asked to do, and how one reading of it is taken.

download                one client, one connection, 100 MiB to /dev/null (curl)
keep-alive requests     16 connections that ask for 1 KiB again and again (wrk)
connection per request  the same, with a connection for each request
fresh connection        one request at a time, from connect to the last byte (fresh_connections.py)
"""

import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contestants import Contestant
from bench.effort import Effort
from bench.errors import BenchError
from bench.measurement import Measure, Quantity, Reading, Threshold
from lab import Lab

LARGE_FILE = "/100m"
LARGE_FILE_BYTES = 100 << 20
SMALL_FILE = "/1k"
WRK_CONNECTIONS = 16
PAUSE_SECONDS = 0.003
"""Between two fresh connections: the load is low."""
PROGRAM_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Workload:
    quantity: Quantity
    measure: Callable[[Lab, Contestant, Effort], Reading]


def download(lab: Lab, contestant: Contestant, effort: Effort) -> Reading:
    """Gbit/s, the median of several downloads."""
    rates = [fetch_large_file(lab, contestant) for _ in range(effort.downloads)]
    return Reading(statistics.median(rates))


def fetch_large_file(lab: Lab, contestant: Contestant) -> float:
    """Gbit/s of one download."""
    done = lab.client.run(
        [
            *("curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{size_download} %{time_total}"),
            *("--max-time", str(PROGRAM_SECONDS - 1), contestant.url(LARGE_FILE)),
        ],
        timeout=PROGRAM_SECONDS,
    )
    size, seconds = done.stdout.split()
    if int(size) != LARGE_FILE_BYTES:
        raise BenchError(f"{contestant.name}: curl got {size} of {LARGE_FILE_BYTES} bytes")
    return int(size) * 8 / float(seconds) / 1e9


def keep_alive_requests(lab: Lab, contestant: Contestant, effort: Effort) -> Reading:
    return _wrk(lab, contestant, effort.load_seconds, ())


def connection_per_request(lab: Lab, contestant: Contestant, effort: Effort) -> Reading:
    return _wrk(lab, contestant, effort.load_seconds, ("-H", "Connection: close"))


def fresh_connection(lab: Lab, contestant: Contestant, effort: Effort) -> Reading:
    """Milliseconds, the median of many requests."""
    done = lab.client.run(
        [
            *(sys.executable, str(program("fresh_connections.py"))),
            *(contestant.host, str(contestant.port), SMALL_FILE),
            *(str(effort.fresh_connections), str(PAUSE_SECONDS)),
        ],
        timeout=PROGRAM_SECONDS,
    )
    return Reading(statistics.median(float(line) * 1000 for line in done.stdout.split()))


def program(name: str) -> Path:
    """A script of this package, to be run in a namespace; it needs nothing but the standard library."""
    return Path(__file__).with_name(name)


def parse_wrk(output: str) -> Reading:
    """Requests a second, and how many failed. BenchError where that is not what wrk has printed."""
    rate = re.search(r"^Requests/sec: +([0-9.]+)$", output, re.MULTILINE)
    if rate is None:
        raise BenchError(f"wrk gives no rate:\n{output}")
    failures = [
        *re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output),
        *re.findall(r"Non-2xx or 3xx responses: (\d+)()", output),
    ]
    return Reading(float(rate[1]), sum(int(count) for group in failures for count in group if count))


def _wrk(lab: Lab, contestant: Contestant, seconds: int, options: Sequence[str]) -> Reading:
    load = ("-t1", f"-c{WRK_CONNECTIONS}", f"-d{seconds}s", *options)
    done = lab.client.run(["wrk", *load, contestant.url(SMALL_FILE)], timeout=seconds + PROGRAM_SECONDS)
    return parse_wrk(done.stdout)


WORKLOADS = (
    Workload(
        Quantity("one 100 MiB download", "Gbit/s", 2, Threshold(Measure.RATIO, 0.15, at_most=False)), download
    ),
    Workload(
        Quantity("keep-alive, 1 KiB", "requests/s", 0, Threshold(Measure.RATIO, 0.20, at_most=False)),
        keep_alive_requests,
    ),
    Workload(
        Quantity(
            "connection per request, 1 KiB", "requests/s", 0, Threshold(Measure.RATIO, 0.15, at_most=False)
        ),
        connection_per_request,
    ),
    Workload(
        Quantity("fresh connection, p50", "ms", 3, Threshold(Measure.EXCESS, 1.0, at_most=True)),
        fresh_connection,
    ),
)
