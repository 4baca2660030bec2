"""Readings of several rounds, their spread, and the thresholds that they are held against.

A ratio is always taken within a round, between readings that are seconds apart, and only then are the
rounds summed up: what else the machine does changes from round to round.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Reading(NamedTuple):
    value: float
    failures: int = 0
    """Requests that failed while it was taken."""


class Spread(NamedTuple):
    """Over the rounds."""

    minimum: float
    median: float
    maximum: float


class Measure(Enum):
    """What a threshold is held against: the median over the rounds of ..."""

    VALUE = "value"
    RATIO = "ratio to direct"
    EXCESS = "excess over direct"


@dataclass(frozen=True, slots=True)
class Threshold:
    """`at_most`, or else at least, `limit`."""

    measure: Measure
    limit: float
    at_most: bool

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is measured. `unit` stands behind a value, `digits` are those behind the point."""

    name: str
    unit: str
    digits: int
    threshold: Threshold


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity of all contestants: a contestant's nth reading is that of round n."""

    quantity: Quantity
    direct: str
    readings: Mapping[str, Sequence[Reading]]

    def values(self, contestant: str) -> list[float]:
        return [reading.value for reading in self.readings[contestant]]

    def failures(self, contestant: str) -> int:
        return sum(reading.failures for reading in self.readings[contestant])

    def ratios(self, contestant: str) -> list[float]:
        return [
            value / direct
            for value, direct in zip(self.values(contestant), self.values(self.direct), strict=True)
        ]

    def judged(self, contestant: str) -> float:
        """What the threshold is held against."""
        measure = self.quantity.threshold.measure
        if measure is Measure.RATIO:
            return statistics.median(self.ratios(contestant))
        values = self.values(contestant)
        if measure is Measure.EXCESS:
            pairs = zip(values, self.values(self.direct), strict=True)
            return statistics.median(value - direct for value, direct in pairs)
        return statistics.median(values)

    def reached(self, contestant: str) -> bool:
        return self.quantity.threshold.holds(self.judged(contestant))


@dataclass(frozen=True, slots=True)
class Observation:
    """A quantity that a direct connection does not have; its threshold is one of values."""

    quantity: Quantity
    values: Sequence[float]

    @property
    def reached(self) -> bool:
        return self.quantity.threshold.holds(statistics.median(self.values))


def spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), statistics.median(values), max(values))
