"""The results as figures: a panel for each quantity, a row for each contestant, one mark for all rounds.

A dot is the median, its line goes from the smallest to the largest; the band reaches from `direct` to all of
`direct again`, so what lies in it is noise. Colours are Okabe and Ito's, which people with any colour vision
tell apart.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.contestants import AGAIN, DIRECT
from bench.readings import Series, Spread, spread
from bench.results import Results
from bench.workloads import LINKS, MTU_SIZED, RATE, SUPERPACKETS

FILE_TYPES = ("png", "svg")
COLUMNS = 4
PANEL_INCHES = 3.1
ROW_INCHES = 0.24
HEAD_INCHES = 0.95
DPI = 150
OURS: Mapping[str, str] = MappingProxyType({"l3dsr-raw": "#E69F00", "l3dsr-ebpf": "#0072B2"})
OTHERS = "#555555"
BAND = "#DDDDDD"
RATIO_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
NEAR_TICKS = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 2.5, 3, 4)
"""Where the largest ratio is less than NEAR times the smallest."""
NEAR = 4


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    reference: float
    """What `direct` has."""
    spreads: Mapping[str, Spread]
    """By contestant."""
    logarithmic: bool


def draw(results: Results, directory: Path) -> list[Path]:
    """The files that were written: ratios and processor time, for each kind of links that was measured."""
    stems: Mapping[str, str] = {SUPERPACKETS: "", MTU_SIZED: "-mtu-sized"}
    written = []
    for links in LINKS:
        series = [each for each in results.series if each.links == links]
        if not series:
            continue
        title = f"Ratio to direct, {links}"
        written += _write(list(ratio_panels(series)), title, directory / f"ratios{stems[links]}")
        title = f"Processor time over direct's, {links}"
        written += _write(list(processor_panels(series)), title, directory / f"processor-time{stems[links]}")
    return written


def ratio_panels(series: Sequence[Series]) -> Iterator[Panel]:
    for each in series:
        for quantity in each.quantities:
            what = "" if quantity.name == RATE else f" {quantity.name}"
            better = "more" if quantity.more_is_better else "less"
            spreads = {name: spread(each.ratios(name, quantity.name)) for name in each.readings}
            yield Panel(f"{each.workload}{what} ({better} is better)", 1.0, spreads, logarithmic=True)


def processor_panels(series: Sequence[Series]) -> Iterator[Panel]:
    for each in series:
        work = "GB" if each.per_byte else "1000 requests"
        spreads = {name: spread(each.extra_processor_seconds(name)) for name in each.readings}
        yield Panel(f"{each.workload}, s/{work}", 0.0, spreads, logarithmic=False)


def _write(panels: Sequence[Panel], title: str, stem: Path) -> list[Path]:
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    names = [
        name for name in dict.fromkeys(name for panel in panels for name in panel.spreads) if name != DIRECT
    ]
    size = (PANEL_INCHES * columns, rows * (HEAD_INCHES + ROW_INCHES * len(names)))
    with mpl.rc_context():
        mpl.rc("font", size=8)
        mpl.rc("axes", titlesize=8.5)
        mpl.rc("axes.spines", top=False, right=False)
        mpl.rc("svg", hashsalt=stem.name)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title, fontsize=10)
        all_axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, panel in zip(all_axes, panels, strict=False):
            _draw_panel(axes, panel, names)
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        files = [stem.with_suffix(f".{file_type}") for file_type in FILE_TYPES]
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else {}
            figure.savefig(file, dpi=DPI, metadata=metadata)
    return files


def _draw_panel(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    if AGAIN in panel.spreads:
        noise = panel.spreads[AGAIN]
        left, right = min(noise.minimum, panel.reference), max(noise.maximum, panel.reference)
        axes.axvspan(left, right, color=BAND, linewidth=0, zorder=0)
    axes.axvline(panel.reference, color=OTHERS, linewidth=0.8, zorder=1)
    for row, name in enumerate(names):
        if name not in panel.spreads:
            continue
        values = panel.spreads[name]
        colour = OURS.get(name, OTHERS)
        axes.plot([values.minimum, values.maximum], [row, row], color=colour, linewidth=1.6, zorder=2)
        axes.plot([values.median], [row], "o", color=colour, markersize=5, zorder=3)
    axes.set_title(panel.title, loc="left")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=BAND, linewidth=0.5)
    axes.set_axisbelow(True)
    if panel.logarithmic:
        _set_ratio_scale(axes, panel)


def _set_ratio_scale(axes: Axes, panel: Panel) -> None:
    lowest = min(values.minimum for values in panel.spreads.values())
    highest = max(values.maximum for values in panel.spreads.values())
    axes.set_xscale("log")
    left, right = min(0.8, lowest / 1.1), max(1.25, highest * 1.1)
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(FixedLocator(NEAR_TICKS if right < NEAR * left else RATIO_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
