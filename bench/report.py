"""The results as Markdown."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from bench import kernel_counters, thresholds
from bench.contestants import DIRECT
from bench.kernel_counters import GROUPS
from bench.readings import Observation, Quantity, Series, Spread, spread
from bench.results import Results
from bench.thresholds import Verdict
from bench.workloads import LINKS, RATE

Cell = Callable[[Series, str, Quantity], str]


def markdown(results: Results) -> str:
    machine = "; ".join(f"{name} {value}" for name, value in results.machine.items())
    others = ", ".join(f"{share:.0%}" for share in results.other_work)
    lines = [
        f"Machine: {machine}. Client, router, balancer, nodes and load share its cores.",
        f"Used by others before each lab was made: {others}. The run took {results.seconds:.0f} s.",
        "",
        *_contestants(results),
    ]
    for links in LINKS:
        series = [each for each in results.series if each.links == links]
        if series:
            lines += _of_links(series, links)
    if results.observations:
        lines += ["", "The daemons:", "", *observations(results.observations)]
    lines += ["", "Wanted:", "", *_verdicts(thresholds.judge(results))]
    return "\n".join(lines) + "\n"


def _contestants(results: Results) -> Iterator[str]:
    for name, what in results.contestants.items():
        absent = f" Not measured, or not to the end: {results.absent[name]}" if name in results.absent else ""
        yield f"- {name}: {what}.{absent}"


def _of_links(series: Sequence[Series], links: str) -> Iterator[str]:
    rounds = max(len(taken) for each in series for taken in each.readings.values())
    yield from (
        "",
        f"With {links}, ratio to `direct` of the same round; rounds: {rounds}; median (min, max):",
        "",
    )
    yield from _matrix(series, _ratio)
    yield from ("", f"With {links}, median of what was measured:", "")
    yield from _matrix(series, _value)
    yield from (
        "",
        f"With {links}, processor time of the whole machine over `direct`'s, median (min, max):",
        "",
    )
    yield from _by_workload(series, lambda each: f"s/{_work(each)}", _extra_processor_time)
    yield from ("", f"With {links}, bytes on the balancer's link per byte delivered, median:", "")
    yield from _by_workload(series, lambda _: "", _balancer_bytes)
    yield from ("", f"With {links}, kernel counters of all hosts, all rounds, where any is not 0:", "")
    yield from _counters(series)


def _matrix(series: Sequence[Series], cell: Cell) -> list[str]:
    """A column for each quantity, a row for each contestant."""
    columns = [(each, quantity) for each in series for quantity in each.quantities]
    header = ["", *(_title(each, quantity) for each, quantity in columns)]
    rows = [
        [
            name,
            *(cell(each, name, quantity) if name in each.readings else "-" for each, quantity in columns),
        ]
        for name in _names(series)
    ]
    return table(header, rows)


def _by_workload(
    series: Sequence[Series], unit: Callable[[Series], str], cell: Callable[[Series, str], str]
) -> list[str]:
    header = ["", *(f"{each.workload} {unit(each)}".rstrip() for each in series)]
    rows = [
        [name, *(cell(each, name) if name in each.readings else "-" for each in series)]
        for name in _names(series)
        if name != DIRECT
    ]
    return table(header, rows)


def _names(series: Sequence[Series]) -> list[str]:
    return list(dict.fromkeys(name for each in series for name in each.readings))


def _title(series: Series, quantity: Quantity) -> str:
    return series.workload if quantity.name == RATE else f"{series.workload}, {quantity.name}"


def _ratio(series: Series, name: str, quantity: Quantity) -> str:
    return _range(spread(series.ratios(name, quantity.name)), 2)


def _value(series: Series, name: str, quantity: Quantity) -> str:
    median = spread(series.values(name, quantity.name)).median
    failures = series.failures(name)
    shown = f"{median:,.{quantity.digits}f} {quantity.unit}"
    return f"{shown}, {failures} failed" if failures else shown


def _extra_processor_time(series: Series, name: str) -> str:
    return _range(spread(series.extra_processor_seconds(name)), 3)


def _balancer_bytes(series: Series, name: str) -> str:
    return f"{spread(series.balancer_bytes(name)).median:.5f}"


def _work(series: Series) -> str:
    return "GB" if series.per_byte else "1000 requests"


def _range(values: Spread, digits: int) -> str:
    if values.minimum == values.maximum:
        return f"{values.median:.{digits}f}"
    return f"{values.median:.{digits}f} ({values.minimum:.{digits}f}, {values.maximum:.{digits}f})"


def _counters(series: Sequence[Series]) -> list[str]:
    rows = []
    for each in series:
        for name in each.readings:
            tally = kernel_counters.tally(each, name)
            if any(tally.counts.values()):
                counts = [str(tally.counts[group]) for group in GROUPS]
                rows.append([each.workload, name, *counts, ", ".join(tally.worse)])
    return table(["", "contestant", *GROUPS, "worse than direct's"], rows) if rows else ["None was."]


def observations(observed: Sequence[Observation]) -> list[str]:
    """As a table."""
    rows = [
        [
            each.name,
            each.contestant,
            *(f"{value:,.{each.digits}f} {each.unit}" for value in spread(each.values)),
        ]
        for each in observed
    ]
    return table(["", "contestant", "min", "median", "max"], rows)


def _verdicts(verdicts: Iterable[Verdict]) -> list[str]:
    header = ["contestant", "", "measure", "wanted", "is", "reached"]
    return table(header, [_verdict(verdict) for verdict in verdicts])


def _verdict(verdict: Verdict) -> list[str]:
    threshold = verdict.threshold
    measured = "-" if verdict.value is None else f"{verdict.value:.4g}"
    reached = "not measured" if verdict.value is None else "yes" if verdict.reached else "NO"
    return [threshold.contestant, threshold.subject, threshold.measure, threshold.wanted, measured, reached]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
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
