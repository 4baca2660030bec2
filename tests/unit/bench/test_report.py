from pathlib import Path

import pytest

from bench import output, publish, thresholds
from bench.errors import BenchError
from bench.report import markdown
from bench.results import load
from tests.unit.bench.figures_of_a_run import RESULTS


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_report_has_ratios_values_and_failures_of_each_contestant() -> None:
    found = cells(markdown(RESULTS))
    assert ["", "1 download", "fresh connection, p50"] in found
    assert ["direct", "1.00", "1.00"] in found
    assert ["l3dsr-raw", "0.65 (0.50, 0.80)", "3.50 (2.00, 5.00)"] in found
    assert ["l3dsr-raw", "10.5 Gbit/s, 2 failed", "1.12 ms"] in found
    assert ["HAProxy", "0.15 (0.10, 0.20)", "-"] in found


def test_report_has_processor_time_over_direct_and_bytes_through_the_balancer() -> None:
    found = cells(markdown(RESULTS))
    assert ["", "1 download s/GB", "fresh connection s/1000 requests"] in found
    assert ["l3dsr-raw", "0.750 (0.500, 1.000)", "0.300 (0.200, 0.400)"] in found
    assert ["l3dsr-raw", "0.00200", "0.00000"] in found


def test_report_has_counters_that_are_not_zero_only() -> None:
    rows = [row for row in cells(markdown(RESULTS)) if row[0] == "1 download" and len(row) > 3]
    assert rows == [
        ["1 download", "direct", "0", "0", "0", "2", "0", ""],
        ["1 download", "l3dsr-raw", "0", "0", "0", "3", "0", "retransmissions"],
        ["1 download", "direct again", "0", "0", "0", "1", "0", ""],
    ]


def test_report_says_who_was_absent_and_why() -> None:
    text = markdown(RESULTS)
    assert "- l3dsr-ebpf: ours in the kernel. Not measured, or not to the end: no program for it\n" in text
    assert "Used by others before each lab was made: 1%, 25%." in text


def test_all_rows_of_a_table_have_as_many_cells_as_its_head() -> None:
    tables = [block.splitlines() for block in markdown(RESULTS).split("\n\n") if block.startswith("|")]
    assert tables
    for lines in tables:
        assert {line.count("|") for line in lines} == {lines[0].count("|")}


# what is wanted


def verdict(contestant: str, subject: str, measure: str) -> tuple[float | None, bool]:
    (found,) = [
        each
        for each in thresholds.judge(RESULTS)
        if (each.threshold.contestant, each.threshold.subject, each.threshold.measure)
        == (contestant, subject, measure)
    ]
    return found.value, found.reached


@pytest.mark.parametrize(
    ("subject", "measure", "value", "reached"),
    [
        ("1 download, superpackets", "rate, ratio to direct", 0.65, True),
        ("fresh connection", "p50, ms over direct", 0.75, True),
        ("1 download, superpackets", "balancer's bytes per byte delivered", 0.002, True),
        ("start to first answered SYN", "median", 0.5, True),
        ("1 download, MTU-sized packets", "balancer's bytes per byte delivered", None, False),
    ],
)
def test_a_threshold_is_held_against_the_median(
    subject: str, measure: str, value: float | None, *, reached: bool
) -> None:
    measured, is_reached = verdict("l3dsr-raw", subject, measure)
    assert measured == pytest.approx(value)
    assert is_reached == reached


def test_what_was_not_measured_is_not_reached() -> None:
    assert verdict("l3dsr-ebpf", "1 download, superpackets", "rate, ratio to direct") == (None, False)


@pytest.mark.parametrize(
    ("at_most", "value", "reached"), [(True, 1, True), (True, 2, False), (False, 1, True)]
)
def test_a_limit_itself_is_reached(value: float, *, at_most: bool, reached: bool) -> None:
    threshold = thresholds.Threshold("ours", "work", "median", 1, at_most, lambda _: value)
    assert thresholds.Verdict(threshold, value).reached == reached


# files


def test_a_run_leaves_readings_report_and_figures(tmp_path: Path) -> None:
    output.write(RESULTS, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    figures = {f"{stem}.{kind}" for stem in ("ratios", "processor-time") for kind in ("png", "svg")}
    assert names == {"readings.json", "report.md"} | figures
    assert load((tmp_path / "run" / "readings.json").read_text()) == RESULTS
    assert "![processor time](processor-time.svg)" in (tmp_path / "run" / "report.md").read_text()


def test_a_figure_is_the_same_each_time_it_is_drawn(tmp_path: Path) -> None:
    for name in ("first", "second"):
        output.write(RESULTS, tmp_path / name)
    first, second = (tmp_path / name / "ratios.svg" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


PAGE = f"Before.\n{publish.BEGIN}old\n{publish.END}After.\n"


def test_publishing_puts_report_and_copies_into_the_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE)
    monkeypatch.setattr(publish, "PAGE", page)
    monkeypatch.setattr(publish, "COPIES", tmp_path / "performance")
    output.write(RESULTS, tmp_path / "run")
    publish.publish(tmp_path / "run")
    text = page.read_text()
    assert text.startswith(f"Before.\n{publish.BEGIN}\nMachine: ")
    assert text.endswith(f"\n{publish.END}After.\n")
    assert "old" not in text
    assert "![ratios](performance/ratios.svg)" in text
    assert {path.name for path in (tmp_path / "performance").iterdir()} == {
        *("readings.json", "ratios.png", "ratios.svg", "processor-time.png", "processor-time.svg"),
    }


def test_the_page_of_the_documents_has_a_place_for_the_report() -> None:
    assert f"{publish.BEGIN}\nreport\n\n{publish.END}" in publish.replaced(
        publish.PAGE.read_text(), "report\n"
    )


@pytest.mark.parametrize("page", ["no marks\n", publish.BEGIN, PAGE + PAGE, publish.END + publish.BEGIN])
def test_a_page_without_one_place_for_the_report_is_refused(page: str) -> None:
    with pytest.raises(BenchError, match="bench: begin"):
        publish.replaced(page, "report\n")


def test_publishing_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"report\.md is missing: run `make bench` first"):
        publish.publish(tmp_path)
