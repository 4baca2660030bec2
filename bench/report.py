"""The result as Markdown for people and as JSON for programs."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.effort import Effort
from bench.measurement import Comparison, Measure, Observation, Quantity, spread


@dataclass(frozen=True, slots=True)
class Result:
    effort: Effort
    judged: str
    """The contestant that the thresholds are for."""
    comparisons: Sequence[Comparison]
    observations: Sequence[Observation]
    seconds: float
    """How long all of it took."""


def markdown(result: Result) -> str:
    rounds = result.effort.rounds
    lines = [
        f"Side by side; rounds: {rounds}; {_machine()}. Ratios to `direct` of the same round.",
        "",
        *_table(
            ("", "contestant", "ratio min", "median", "max", "value (median)", "failed", "wanted", "reached"),
            (row for comparison in result.comparisons for row in _comparison_rows(comparison, result.judged)),
        ),
        "",
        "The balancer alone:",
        "",
        *_table(
            ("", "min", "median", "max", "wanted", "reached"),
            (_observation_row(observation) for observation in result.observations),
        ),
        "",
        f"{result.seconds:.0f} s in all. What bounds these figures: docs/performance.md.",
    ]
    return "\n".join(lines)


def as_json(result: Result) -> str:
    """All readings, in the order of the rounds."""
    document: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "rounds": result.effort.rounds,
        "seconds": round(result.seconds, 1),
        "comparisons": [_comparison_entry(comparison, result.judged) for comparison in result.comparisons],
        "observations": [
            {
                **_quantity_entry(observation.quantity),
                "values": list(observation.values),
                "reached": observation.reached,
            }
            for observation in result.observations
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def _machine() -> str:
    return f"all on {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The first column stands left, the others right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    rule = [f"{'-' * width}:" if column else "-" * (width + 1) for column, width in enumerate(widths)]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    lines.insert(1, "|-" + "|-".join(rule) + "|")
    return lines


def _comparison_rows(comparison: Comparison, judged: str) -> Iterable[tuple[str, ...]]:
    quantity = comparison.quantity
    for contestant in comparison.readings:
        ratios = spread(comparison.ratios(contestant))
        yield (
            quantity.name if contestant == comparison.direct else "",
            contestant,
            *(f"{ratio:.2f}" for ratio in ratios),
            _value(quantity, spread(comparison.values(contestant)).median),
            str(comparison.failures(contestant)),
            _wanted(quantity) if contestant == judged else "",
            _yes_or_no(reached=comparison.reached(contestant)) if contestant == judged else "",
        )


def _observation_row(observation: Observation) -> tuple[str, ...]:
    quantity = observation.quantity
    cells = [_value(quantity, value) for value in spread(observation.values)]
    return (quantity.name, *cells, _wanted(quantity), _yes_or_no(reached=observation.reached))


def _value(quantity: Quantity, value: float) -> str:
    return f"{value:,.{quantity.digits}f} {quantity.unit}".rstrip()


def _wanted(quantity: Quantity) -> str:
    threshold = quantity.threshold
    relation = "at most" if threshold.at_most else "at least"
    match threshold.measure:
        case Measure.VALUE:
            return f"{relation} {threshold.limit:g} {quantity.unit}".rstrip()
        case Measure.RATIO:
            return f"ratio {relation} {threshold.limit:g}"
        case Measure.EXCESS:
            return f"{relation} {threshold.limit:g} {quantity.unit} above direct"


def _yes_or_no(*, reached: bool) -> str:
    return "yes" if reached else "NO"


def _comparison_entry(comparison: Comparison, judged: str) -> dict[str, Any]:
    return {
        **_quantity_entry(comparison.quantity),
        "direct": comparison.direct,
        "values": {contestant: comparison.values(contestant) for contestant in comparison.readings},
        "failures": {contestant: comparison.failures(contestant) for contestant in comparison.readings},
        "reached": comparison.reached(judged),
    }


def _quantity_entry(quantity: Quantity) -> dict[str, Any]:
    threshold = quantity.threshold
    return {
        "name": quantity.name,
        "unit": quantity.unit,
        "threshold": {
            "measure": threshold.measure.value,
            "limit": threshold.limit,
            "at_most": threshold.at_most,
        },
    }
