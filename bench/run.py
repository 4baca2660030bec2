"""The whole run: labs, one after the other, and what is measured in each.

superpackets    rounds of all workloads, then the start of the balancer
MTU-sized       rounds of those workloads where the cost of a packet shows
memory          one for each engine: daemons that have not served anything yet
scale           labs of its own: very many flows, and floods
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench import machine, origin, processor, rounds
from bench.contestants import Contestant, daemons
from bench.effort import Effort, ScaleEffort
from bench.errors import BenchError
from bench.memory import idle_memory
from bench.readings import Observation, Series
from bench.results import Results
from bench.rounds import Field, Tell
from bench.scale import run as scale
from bench.start import start_times
from bench.workloads import MTU_SIZED, SUPERPACKETS, WORKLOADS
from lab import Lab, LabError

EPHEMERAL_PORTS = "1024 65535"
OTHER_WORK_SECONDS = 1.0
QUIET_SHARE = 0.05
"""Of the machine's processor time, in the hands of others."""


@dataclass(frozen=True, slots=True)
class Plan:
    effort: Effort
    contestants: Sequence[Contestant]
    required: Sequence[str]
    """Contestants without which there is nothing to measure; others may be absent."""
    keep_order: bool
    """Of the packets on the lab's links."""


def measure(plan: Plan, tell: Tell) -> Results:
    """`tell` is called with what comes next. LabError or BenchError where something cannot be measured."""
    started = time.monotonic()
    field = Field(list(plan.contestants))
    other_work: list[float] = []
    series: list[Series] = []
    observations: list[Observation] = []
    with _lab(plan, other_work, tell, mtu_sized=False) as lab, origin.serving(lab):
        rounds.audition(lab, field, plan.required, tell)
        effort = plan.effort
        series += rounds.measure(lab, field, WORKLOADS, effort.rounds, effort, SUPERPACKETS, tell)
        for engine in _engines(field):
            tell(f"start of the balancer, {engine}")
            observations.append(start_times(lab, engine, effort))
    with _lab(plan, other_work, tell, mtu_sized=True) as lab, origin.serving(lab):
        workloads = [workload for workload in WORKLOADS if workload.with_mtu_sized]
        series += rounds.measure(lab, field, workloads, effort.mtu_rounds, effort, MTU_SIZED, tell)
    for engine in _engines(field):
        tell(f"memory of {effort.idle_flows:,} idle flows, {engine}")
        with _lab(plan, other_work, tell, mtu_sized=False) as lab:
            observations += idle_memory(lab, engine, effort.idle_flows)
    if effort.scale is not None:
        observations += _scale(_engines(field), effort.scale, tell)
    return Results(
        machine=machine.describe(),
        other_work=other_work,
        contestants={each.name: each.what for each in plan.contestants},
        absent=field.absent,
        series=series,
        observations=observations,
        seconds=time.monotonic() - started,
    )


def _scale(engines: Sequence[str], effort: ScaleEffort, tell: Tell) -> list[Observation]:
    """Nothing where that fails: all else has been measured by then."""
    try:
        return scale.measure(engines, effort, tell)
    except (LabError, BenchError, OSError) as error:
        tell(f"very many flows and floods failed: {error}")
        return []


@contextmanager
def _lab(plan: Plan, other_work: list[float], tell: Tell, *, mtu_sized: bool) -> Iterator[Lab]:
    """With ports enough for a connection per request, on the client and, for a proxy, on the balancer."""
    share = processor.busy_share(OTHER_WORK_SECONDS)
    other_work.append(share)
    if share > QUIET_SHARE:
        tell(f"others use {share:.0%} of this machine; figures are for a quiet one")
    with Lab(mtu_sized=mtu_sized, keep_order=plan.keep_order) as lab:
        for host in (lab.client, lab.balancer):
            host.sysctl("net.ipv4.ip_local_port_range", EPHEMERAL_PORTS)
        yield lab


def _engines(field: Field) -> list[str]:
    return [
        engine
        for engine in daemons.ENGINES
        if daemons.name(engine) in {each.name for each in field.contestants}
    ]
