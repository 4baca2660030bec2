"""What is measured, as values: a reading, a series of them, and what is derived from it.

A ratio or a difference is always taken within a round, between readings that are seconds apart, and only
then are the rounds summed up: what else the machine does changes from round to round.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.contestants import DIRECT


@dataclass(frozen=True, slots=True)
class Load:
    """What the client did, by its own account."""

    seconds: float
    requests: int
    delivered_bytes: int
    failures: int
    values: Mapping[str, float]
    """By the quantity's name."""


@dataclass(frozen=True, slots=True)
class Reading:
    load: Load
    busy_seconds: float
    """Of all cores of the machine."""
    balancer_bytes: int
    """In and out on the balancer's link."""
    counters: Mapping[str, Mapping[str, int]]
    """The kernel's, by host: those in kernel_counters.GROUPS that changed, and by how much."""


class Spread(NamedTuple):
    """Over the rounds."""

    minimum: float
    median: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Quantity:
    """`digits` are those behind the point."""

    name: str
    unit: str
    digits: int
    more_is_better: bool


@dataclass(frozen=True, slots=True)
class Series:
    """One workload on one kind of links: a contestant's nth reading is that of round n."""

    workload: str
    links: str
    quantities: Sequence[Quantity]
    per_byte: bool
    """Its processor time is told per GB, or else per 1000 requests."""
    readings: Mapping[str, Sequence[Reading]]

    @property
    def name(self) -> str:
        return f"{self.workload}, {self.links}"

    def values(self, contestant: str, quantity: str) -> list[float]:
        return [reading.load.values[quantity] for reading in self.readings[contestant]]

    def ratios(self, contestant: str, quantity: str, against: str = DIRECT) -> list[float]:
        pairs = zip(self.values(contestant, quantity), self.values(against, quantity), strict=True)
        return [value / other for value, other in pairs]

    def excesses(self, contestant: str, quantity: str) -> list[float]:
        """Over `direct`, in the quantity's unit."""
        pairs = zip(self.values(contestant, quantity), self.values(DIRECT, quantity), strict=True)
        return [value - other for value, other in pairs]

    def extra_processor_seconds(self, contestant: str) -> list[float]:
        """Over `direct`, per GB or per 1000 requests."""
        pairs = zip(self.readings[contestant], self.readings[DIRECT], strict=True)
        return [self._processor_seconds(reading) - self._processor_seconds(other) for reading, other in pairs]

    def processor_seconds(self, contestant: str) -> list[float]:
        return [self._processor_seconds(reading) for reading in self.readings[contestant]]

    def balancer_bytes(self, contestant: str) -> list[float]:
        """Per byte delivered."""
        return [
            reading.balancer_bytes / reading.load.delivered_bytes for reading in self.readings[contestant]
        ]

    def failures(self, contestant: str) -> int:
        return sum(reading.load.failures for reading in self.readings[contestant])

    def _processor_seconds(self, reading: Reading) -> float:
        work = reading.load.delivered_bytes / 1e9 if self.per_byte else reading.load.requests / 1000
        return reading.busy_seconds / work


@dataclass(frozen=True, slots=True)
class Observation:
    """What `direct` does not have. `values` are of one kind: their median is told."""

    contestant: str
    name: str
    unit: str
    digits: int
    values: Sequence[float]


def spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), statistics.median(values), max(values))
