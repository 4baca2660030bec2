"""Who is still served while SYNs of spoofed addresses come in, and how many of these are answered.

The SYNs arrive in the router as if the client's link had brought them (syn_flood.py); a route sends the
answers nowhere. Connections that stood before go on meanwhile, and new ones are opened all the time. The
links are not to keep order here: one CPU would receive for all hosts then, and what it drops is no host's
doing.
"""

import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench import origin
from bench.contestants import PORT, daemons
from bench.effort import ScaleEffort
from bench.errors import BenchError
from bench.programs import script
from bench.readings import Observation
from bench.scale.compiled import compiled
from bench.workloads import percentile, warm_up
from lab import Lab, Process

FLOOD = 200_000
RATES = (0, 10_000, FLOOD)
"""SYNs per second that are wanted; 0 is no flood, for comparison."""
SPOOFED = "198.18.0.0/15"
KEPT_CONNECTIONS, DOWNLOADS = 32, 8
NEW_PER_SECOND = 100
START_SECONDS = 1
"""The flood begins before the first new connection, and is to end after the last."""
WAIT_SECONDS = 15
POLL_SECONDS = 0.05
COUNTERS = re.compile(r"counters: (.*)\n")
ANSWER_SYN = re.compile(r"\banswer_syn=(\d+)")
NEW_ANSWERED = "new connections answered"
BROKEN = "established flows broken"


@dataclass(frozen=True, slots=True)
class Outcome:
    syns: float
    """Per second."""
    answered: float
    """Of all SYNs, the new connections' included, per second."""
    times: Sequence[float | None]
    """Seconds of each new connection with its request; None where it failed."""
    broken: Sequence[str]
    """How the established flows ended that did."""


def floods(lab: Lab, engine: str, effort: ScaleEffort) -> list[Observation]:
    """LabError or BenchError where something fails that is not to be measured."""
    with (
        origin.serving(lab),
        compiled("syn_flood") as path,
        _blackhole(lab),
        daemons.running(lab, engine) as running,
    ):
        warm_up(lab, _vip(lab))
        found = {rate: _flood(lab, running.balancer, str(path), rate, effort.flood_seconds) for rate in RATES}
    return [each for rate, outcome in found.items() for each in observations(engine, rate, outcome)]


def name_of(rate: int, what: str) -> str:
    return f"{what}, SYN flood of {rate:,}/s" if rate else f"{what}, no SYN flood"


def observations(engine: str, rate: int, outcome: Outcome) -> Iterator[Observation]:
    times = [1000 * each for each in outcome.times if each is not None]
    name = daemons.name(engine)
    if rate:
        yield Observation(name, name_of(rate, "SYNs that came"), "/s", 0, [outcome.syns])
        yield Observation(name, name_of(rate, "answered SYNs"), "/s", 0, [outcome.answered])
    share = 100 * len(times) / len(outcome.times)
    yield Observation(name, name_of(rate, NEW_ANSWERED), "%", 2, [share])
    for percent in (50, 99) if times else ():
        value = percentile(times, percent / 100)
        yield Observation(name, name_of(rate, f"p{percent} of new connections"), "ms", 2, [value])
    every = KEPT_CONNECTIONS + DOWNLOADS
    yield Observation(name, name_of(rate, BROKEN), f"of {every}", 0, [len(outcome.broken)])


def _flood(lab: Lab, balancer: Process, path: str, rate: int, seconds: float) -> Outcome:
    with _established(lab) as established:
        before = _answered(balancer)
        flood = _start_flood(lab, path, rate, seconds + START_SECONDS) if rate else None
        new = ["new_flows.py", _vip(lab), str(PORT), str(NEW_PER_SECOND), str(seconds), *origin.urls("1k")]
        told = lab.client.run(_python(*new), timeout=seconds + WAIT_SECONDS).stdout
        syns, took = (0, seconds) if flood is None else _sent(flood)
        answered = _answered(balancer) - before
        broken = _broken(established)
    return Outcome(syns / took, answered / took, json.loads(told), broken)


@contextmanager
def _established(lab: Lab) -> Iterator[Process]:
    argv = ["kept_flows.py", _vip(lab), str(PORT), str(KEPT_CONNECTIONS), str(DOWNLOADS), "/1k/0", "/100m/0"]
    process = lab.client.start(_python(*argv), name="kept-flows")
    try:
        process.wait_for("standing", WAIT_SECONDS)
        yield process
    finally:
        process.stop()


def _broken(established: Process) -> list[str]:
    """Ends the process."""
    established.stop()
    account = json.loads(established.read_log().splitlines()[-1])
    if not account["requests"] or not account["bytes"]:
        raise BenchError(f"no flow was established:\n{established.read_log()}")
    broken: list[str] = account["broken"]
    return broken


def _start_flood(lab: Lab, path: str, rate: int, seconds: float) -> Process:
    arguments = [path, lab.client.name, _vip(lab), str(PORT), str(rate), str(seconds)]
    process = lab.router.start([sys.executable, "-m", "bench.scale.syn_flood", *arguments], name="syn-flood")
    process.wait_for("flooding", WAIT_SECONDS)
    return process


def _sent(flood: Process) -> tuple[int, float]:
    """How many, in how many seconds, once all are."""
    flood.wait(WAIT_SECONDS)
    said = re.search(r"^sent (\d+) in ([0-9.]+)$", flood.read_log(), re.MULTILINE)
    if said is None:
        raise BenchError(f"no flood:\n{flood.read_log()}")
    return int(said[1]), float(said[2])


def _answered(balancer: Process) -> int:
    """SYNs, as the balancer counts them."""
    earlier = len(balancer.read_log())
    balancer.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        line = COUNTERS.search(balancer.read_log(), earlier)
        if line is not None:
            found = ANSWER_SYN.search(line[1])
            return int(found[1]) if found else 0
        time.sleep(POLL_SECONDS)
    raise BenchError(f"the balancer does not tell its counters:\n{balancer.read_log()}")


@contextmanager
def _blackhole(lab: Lab) -> Iterator[None]:
    """For what the balancer answers."""
    route = ["blackhole", SPOOFED]
    lab.router.run(["ip", "route", "add", *route])
    try:
        yield
    finally:
        lab.router.run(["ip", "route", "delete", *route])


def _vip(lab: Lab) -> str:
    return str(lab.topology.service.vip)


def _python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", str(script(program)), *arguments]
