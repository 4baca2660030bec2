"""All that a run has found, and its form as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.errors import BenchError
from bench.readings import Load, Observation, Quantity, Reading, Series


@dataclass(frozen=True, slots=True)
class Results:
    machine: Mapping[str, str | int]
    other_work: Sequence[float]
    """The share of the machine that others used, before each lab."""
    contestants: Mapping[str, str]
    """What each is, in the order of their turns; also of those that are absent."""
    absent: Mapping[str, str]
    """Who did not take part, or not to the end, and why."""
    series: Sequence[Series]
    observations: Sequence[Observation]
    seconds: float
    """How long all of it took."""

    def find(self, workload: str, links: str) -> Series | None:
        return next((each for each in self.series if (each.workload, each.links) == (workload, links)), None)

    def observation(self, contestant: str, name: str) -> Observation | None:
        return next(
            (each for each in self.observations if (each.contestant, each.name) == (contestant, name)), None
        )


def dump(results: Results) -> str:
    return json.dumps(asdict(results), indent=1) + "\n"


def load(text: str) -> Results:
    """Raises BenchError where the text is not what `dump` has written."""
    try:
        document = json.loads(text)
        series = [_series(entry) for entry in document.pop("series")]
        observations = [Observation(**entry) for entry in document.pop("observations")]
        return Results(**document, series=series, observations=observations)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BenchError(f"not the readings of a run: {error}") from error


def _series(entry: dict[str, Any]) -> Series:
    quantities = [Quantity(**quantity) for quantity in entry.pop("quantities")]
    readings = {
        contestant: [Reading(load=Load(**reading.pop("load")), **reading) for reading in taken]
        for contestant, taken in entry.pop("readings").items()
    }
    return Series(**entry, quantities=quantities, readings=readings)
