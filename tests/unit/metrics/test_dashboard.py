"""Every metric and label that dashboard and documents name is one that the daemons expose."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from common.metrics.families import FAMILIES

DOCS = Path(__file__).parents[3] / "docs"
DASHBOARD = json.loads((DOCS / "grafana" / "l3dsr.json").read_text())
LABELS = {family.metric(daemon): set(family.labels) for family in FAMILIES for daemon in family.daemons}
OF_SCRAPES = {"instance", "job"}


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _strings(item)
        case dict():
            yield from _strings([*value.values()])


EXPRESSIONS = sorted(
    {text for text in _strings(DASHBOARD) if re.search(r"\bl3dsr_", text)}
    | set(re.findall(r"`([^`]*\bl3dsr_[^`]*)` \|$", (DOCS / "metrics.md").read_text(), re.MULTILINE))
)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_and_labels_exist(expression: str) -> None:
    used = re.findall(r"\b(l3dsr_\w+)(?:\{([^}]*)\})?", expression)
    assert used
    of_all: set[str] = set(OF_SCRAPES)
    for metric, selectors in used:
        assert metric in LABELS
        own = LABELS[metric] | OF_SCRAPES
        of_all |= own
        assert set(re.findall(r"(\w+)\s*=", selectors)) <= own
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    asked = re.findall(r"^label_values\(\w+, (\w+)\)$", expression)
    assert {name.strip() for group in grouped for name in group.split(",")} | set(asked) <= of_all


@pytest.mark.parametrize("expression", [text for text in EXPRESSIONS if not text.startswith("label_values")])
def test_only_what_grows_has_a_rate(expression: str) -> None:
    rated = set(re.findall(r"\brate\((l3dsr_\w+)", expression))
    named = set(re.findall(r"\bl3dsr_\w+", expression))
    assert {name for name in named if name.endswith("_total")} == rated


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_each_balancer_says_of_a_node_is_counted_once(expression: str) -> None:
    said = r"l3dsr_balancer_node_(?:flows|state|sent_to_clients_bytes_total)"
    around = re.findall(rf"(\w+)(?: by \([^)]*\) )?\((?:rate\()?{said}", expression)
    assert set(around) <= {"max", "min"}


def test_legends_name_labels_that_their_expression_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            is_total = target["expr"].startswith("sum(")
            groups = [] if is_total else re.findall(r"\bby \(([^)]*)\)", target["expr"])
            kept = {name.strip() for group in groups for name in group.split(",")}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == kept, panel["title"]


def test_panels_are_there_once_and_side_by_side() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_panels_ask_the_data_source_that_is_chosen() -> None:
    sources = [
        each["datasource"]
        for panel in DASHBOARD["panels"]
        if panel["type"] != "row"
        for each in (panel, *panel["targets"])
    ]
    assert sources
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
