"""The live page as Chromium shows it, by what then stands in the document."""

from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from common import page
from common.reports import BalancerReport, Report
from tests.root.browsing import browse, shown
from tests.unit.metrics import reports

pytestmark = pytest.mark.root

SECONDS = 5
NOTHING = "\N{EN DASH}"
"""Where there is no number."""
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


class _Document(HTMLParser):
    """What can be read on a page, without what is hidden: the rows of its tables, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.title = ""
        self.bars: list[str] = []
        self.tags: set[str] = set()
        self._hidden: list[bool] = []
        self._within: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in {"meta", "link", "img", "br"}:
            return
        named = dict(attributes)
        self._within.append(tag)
        self._hidden.append("hidden" in named or tag in {"script", "style"} or any(self._hidden[-1:]))
        if tag == "tr":
            self.rows.append([])
        elif tag in {"th", "td"}:
            self.rows[-1].append("")
        elif tag == "i":
            self.bars.append(named.get("style") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._within:
            while self._within.pop() != tag:
                self._hidden.pop()
            self._hidden.pop()

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text or any(self._hidden):
            return
        if "title" in self._within:
            self.title = text
        self.texts.append(text)
        if "td" in self._within or "th" in self._within:
            cell = self.rows[-1][-1]
            self.rows[-1][-1] = f"{cell} {text}".strip()


def _shown(make_report: Callable[[], Awaitable[Report]]) -> _Document:
    with shown(make_report) as url:
        return _Document(browse(url, SECONDS, "--dump-dom"))


def _still(report: Report) -> Callable[[], Awaitable[Report]]:
    async def make_report() -> Report:
        return report

    return make_report


def test_balancers_nodes_stand_there_with_their_states_and_reasons() -> None:
    document = _shown(_still(reports.BALANCER))
    assert document.title == "balancer - l3dsr"
    assert "0.1.0, engine ebpf, running for 2 h 3 min, configuration 2" in document.texts
    assert (
        "VIP 192.168.33.10:80, DSCP 1, hash key segments:2, no load over 1.25 times the average"
        in document.texts
    )
    assert "node2 of films is down: packetbridge silent" in document.texts
    assert [
        "node1 192.168.33.20, 0.1.0",
        "● up",
        "25.0 %",
        "1.5 of 3",
        "17",
        "2.5",
        "",
        "1.00 MB",
        "0 s ago",
    ] in document.rows
    assert [
        "node2 192.168.33.21",
        "✕ down packetbridge silent: 3 checks without an answer; channel: no word for 12 s",
        "0.0 %",
        "0 of 1",
        NOTHING,
        "0.0",
        "",
        NOTHING,
        "never",
    ] in document.rows
    assert document.bars == ["width: 25%;", "width: 0%;", "width: 25%;"]
    assert "live" in document.texts
    assert "The daemon does not answer." not in " ".join(document.texts)


def test_bytes_past_the_balancer_stand_against_those_through_it() -> None:
    document = _shown(_still(reports.BALANCER))
    at = document.texts.index("Delivered past the balancer")
    assert document.texts[at + 2] == "1.00 MB so far"
    at = document.texts.index("Through the balancer")
    assert document.texts[at + 2] == "3.00 kB so far, 0.30 % of delivered"


def test_errors_stand_there_by_reason() -> None:
    document = _shown(_still(reports.BALANCER))
    assert ["packets dropped: bad checksum", "5", NOTHING] in document.rows
    assert ["answered by the balancer itself: 503", "4", NOTHING] in document.rows
    assert "None so far." not in document.texts


def test_rates_are_what_totals_grow_by() -> None:
    seconds = 0

    async def growing() -> Report:
        nonlocal seconds
        seconds += 1
        node = msgspec.structs.replace(reports.NODE1, bytes_to_clients=1_500_000 * seconds)
        return msgspec.structs.replace(
            reports.BALANCER,
            uptime=float(seconds),
            services=[msgspec.structs.replace(reports.BALANCER.services[0], nodes=[node])],
            counters={"bytes_to_nodes": 2500 * seconds},
        )

    document = _shown(growing)
    at = document.texts.index("Delivered past the balancer")
    assert document.texts[at + 1] == "1.50 MB/s"
    at = document.texts.index("Through the balancer")
    assert document.texts[at + 1] == "2.50 kB/s"


def test_packetbridges_vips_stand_there() -> None:
    document = _shown(_still(reports.PACKETBRIDGE))
    assert document.title == "packetbridge - l3dsr"
    assert "VIPs of bridge address 192.168.33.20" in document.texts
    assert ["192.168.33.10:80", "1", "192.168.33.30:80", "12", ""] in document.rows
    assert ["handoffs refused: bad tag", "6", NOTHING] in document.rows
    assert ["waiting memory", "2.92 kB"] in document.rows
    at = document.texts.index("Sent to clients")
    assert document.texts[at + 2] == "1.00 MB so far"


def test_report_without_errors_says_so() -> None:
    document = _shown(_still(BalancerReport("0.1.0", "raw", 0.5, 1, [], {}, {})))
    assert "None so far." in document.texts
    assert "Total" not in document.texts


def test_daemon_that_does_not_answer_is_shown_as_such() -> None:
    async def broken() -> Report:
        raise RuntimeError("no report")

    document = _shown(broken)
    assert "The daemon does not answer." in document.texts
    assert "no answer" in document.texts
    assert "live" not in document.texts


def test_daemon_that_falls_silent_leaves_old_figures_marked_as_old() -> None:
    asked = 0

    async def once() -> Report:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise RuntimeError("no report any more")
        return reports.BALANCER

    document = _shown(once)
    (said,) = [text for text in document.texts if text.startswith("The daemon does not answer.")]
    assert said.startswith("The daemon does not answer. The figures below are ")
    assert said.endswith(" old.")
    assert "✕ down" in " ".join(document.texts)


def test_names_are_text_whatever_they_hold() -> None:
    service = reports.BALANCER.services[0]
    node = msgspec.structs.replace(reports.NODE1, name=HOSTILE, version=HOSTILE)
    hostile = msgspec.structs.replace(
        reports.BALANCER,
        services=[msgspec.structs.replace(service, name=HOSTILE, nodes=[node])],
        warnings=[HOSTILE],
    )
    document = _shown(_still(hostile))
    assert document.title == "balancer - l3dsr"
    assert "img" not in document.tags
    assert document.texts.count(HOSTILE) == 3


def test_page_asks_nobody_else() -> None:
    html = page.html()
    assert b"http://" not in html.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in html
    assert "unsafe" not in page.security_policy(html)


def test_picture_in_the_documents_is_a_png() -> None:
    picture = Path(__file__).parents[2] / "docs" / "live-page.png"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
