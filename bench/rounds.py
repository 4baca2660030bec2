"""Blocks of readings: in every round, for every workload, the contestants take their turns.

A contestant stands up before its turn, is asked a few times, is measured, and is gone before the next one's.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench import kernel_counters, processor
from bench.contestants import DIRECT, Contestant
from bench.effort import Effort
from bench.errors import BenchError
from bench.readings import Load, Reading, Series
from bench.workloads import Workload, warm_up
from lab import Lab, LabError

QUIET_SECONDS = 0.05
QUIET_ATTEMPTS = 20
Tell = Callable[[str], None]


@dataclass(slots=True)
class Field:
    """Who takes part, and who does not or not any more, with the reason."""

    contestants: list[Contestant]
    absent: dict[str, str] = field(default_factory=dict)

    def exclude(self, contestant: Contestant, reason: Exception) -> None:
        """What a program has said last is the reason."""
        self.contestants.remove(contestant)
        self.absent[contestant.name] = str(reason).strip().splitlines()[-1]


def audition(lab: Lab, field: Field, required: Sequence[str], tell: Tell) -> None:
    """Exclude those that cannot serve here; the error of a `required` one is raised."""
    for contestant in list(field.contestants):
        try:
            with contestant.standing(lab):
                warm_up(lab, contestant.address(lab))
        except (LabError, BenchError) as error:
            if contestant.name in {DIRECT, *required}:
                raise
            field.exclude(contestant, error)
            tell(f"without {contestant.name}: {field.absent[contestant.name]}")


def measure(
    lab: Lab, field: Field, workloads: Sequence[Workload], rounds: int, effort: Effort, links: str, tell: Tell
) -> list[Series]:
    taken: dict[str, dict[str, list[Reading]]] = {
        workload.name: {each.name: [] for each in field.contestants} for workload in workloads
    }
    for number in range(1, rounds + 1):
        for workload in workloads:
            tell(f"{links}, round {number} of {rounds}: {workload.name}")
            for contestant in list(field.contestants):
                reading = _turn(lab, contestant, workload, effort, field, tell)
                if reading is not None:
                    taken[workload.name][contestant.name].append(reading)
    return [
        Series(
            workload.name,
            links,
            workload.quantities,
            workload.per_byte,
            {name: readings for name, readings in taken[workload.name].items() if len(readings) == rounds},
        )
        for workload in workloads
    ]


def _turn(
    lab: Lab, contestant: Contestant, workload: Workload, effort: Effort, field: Field, tell: Tell
) -> Reading | None:
    """None where the contestant failed, which then takes no more turns; the error of `direct` is raised."""
    _wait_for_quiet(lab)
    try:
        with contestant.standing(lab):
            address = contestant.address(lab)
            warm_up(lab, address)
            return _reading(lab, lambda: workload.measure(lab, address, effort))
    except (LabError, BenchError) as error:
        if contestant.name == DIRECT:
            raise
        field.exclude(contestant, error)
        tell(f"{contestant.name} failed: {error}")
        return None


def _wait_for_quiet(lab: Lab) -> None:
    """Until what the contestant before has left on its way through the balancer is gone."""
    link = lab.balancer.interface_bytes()
    for _ in range(QUIET_ATTEMPTS):
        time.sleep(QUIET_SECONDS)
        earlier, link = link, lab.balancer.interface_bytes()
        if link == earlier:
            return


def _reading(lab: Lab, measure: Callable[[], Load]) -> Reading:
    counters = lab.counters()
    link = lab.balancer.interface_bytes()
    clock = processor.read()
    load = measure()
    busy = processor.busy_seconds(clock, processor.read(), os.cpu_count() or 1)
    link_after = lab.balancer.interface_bytes()
    changed = kernel_counters.watched(lab.counters_since(counters))
    crossed = link_after.received - link.received + link_after.sent - link.sent
    return Reading(load, busy, crossed, changed)
