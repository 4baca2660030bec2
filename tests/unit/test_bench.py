"""The benchmark's arithmetic and its report; no figure of any machine is asserted."""

import json

import pytest

from bench.contestants import field_of
from bench.effort import QUICK
from bench.errors import BenchError
from bench.measurement import Comparison, Measure, Observation, Quantity, Reading, Spread, Threshold, spread
from bench.report import Result, as_json, markdown
from bench.workloads import parse_wrk
from lab import load

WRK_SAYS = """\
Running 1s test @ http://192.168.33.30:80/1k
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   496.18us  329.71us   8.21ms   91.71%
    Req/Sec    32.91k     2.29k   36.24k    54.55%
  36021 requests in 1.10s, 44.42MB read
{failures}Requests/sec:  32745.51
Transfer/sec:     40.38MB
"""


def comparison(threshold: Threshold) -> Comparison:
    return Comparison(
        Quantity("work", "ms", 1, threshold),
        "direct",
        {
            "direct": [Reading(10), Reading(20), Reading(40)],
            "ours": [Reading(5), Reading(16, failures=2), Reading(24, failures=1)],
            "again": [Reading(11), Reading(20), Reading(38)],
        },
    )


def test_ratios_are_those_within_each_round() -> None:
    compared = comparison(Threshold(Measure.RATIO, 0.5, at_most=False))
    assert compared.ratios("ours") == [0.5, 0.8, 0.6]
    assert compared.ratios("direct") == [1, 1, 1]
    assert spread(compared.ratios("ours")) == Spread(0.5, 0.6, 0.8)


@pytest.mark.parametrize(
    ("measure", "judged"), [(Measure.RATIO, 0.6), (Measure.VALUE, 16), (Measure.EXCESS, -5)]
)
def test_a_threshold_is_held_against_the_median_over_the_rounds(measure: Measure, judged: float) -> None:
    compared = comparison(Threshold(measure, 0, at_most=True))
    assert compared.judged("ours") == judged


def test_a_threshold_is_reached_by_its_limit_itself_and_on_its_own_side_only() -> None:
    assert comparison(Threshold(Measure.RATIO, 0.6, at_most=False)).reached("ours")
    assert not comparison(Threshold(Measure.RATIO, 0.61, at_most=False)).reached("ours")
    assert comparison(Threshold(Measure.VALUE, 16, at_most=True)).reached("ours")
    assert not comparison(Threshold(Measure.VALUE, 15.9, at_most=True)).reached("ours")


def test_failed_requests_of_all_rounds_are_counted() -> None:
    compared = comparison(Threshold(Measure.RATIO, 0, at_most=False))
    assert (compared.failures("ours"), compared.failures("direct")) == (3, 0)


def test_the_rate_is_what_wrk_prints() -> None:
    assert parse_wrk(WRK_SAYS.format(failures="")) == Reading(32745.51, 0)


def test_all_of_wrks_failures_count() -> None:
    failures = (
        "  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 50000\n"
    )
    assert parse_wrk(WRK_SAYS.format(failures=failures)) == Reading(32745.51, 54321)


def test_output_without_a_rate_is_an_error_that_shows_it() -> None:
    with pytest.raises(BenchError, match="unable to connect"):
        parse_wrk("unable to connect to 192.168.33.30:80 Connection refused\n")


def test_direct_is_measured_before_and_after_the_balancer() -> None:
    field = field_of(load())
    assert [each.name for each in field.in_turn] == ["direct", "l3dsr-raw", "direct again"]
    assert field.balanced.url("/1k") == "http://192.168.33.10:80/1k"
    assert field.direct.url("/1k") == field.again.url("/1k") == "http://192.168.33.40:80/1k"


@pytest.fixture
def result() -> Result:
    return Result(
        effort=QUICK,
        judged="ours",
        comparisons=[comparison(Threshold(Measure.RATIO, 0.7, at_most=False))],
        observations=[
            Observation(Quantity("start", "s", 2, Threshold(Measure.VALUE, 1, at_most=True)), [0.5, 0.25])
        ],
        seconds=12.3,
    )


def test_the_table_has_ratios_absolute_figures_noise_and_what_was_reached(result: Result) -> None:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(result).splitlines()]
    assert ["work", "direct", "1.00", "1.00", "1.00", "20.0 ms", "0", "", ""] in cells
    assert ["", "ours", "0.50", "0.60", "0.80", "16.0 ms", "3", "ratio at least 0.7", "NO"] in cells
    assert ["", "again", "0.95", "1.00", "1.10", "20.0 ms", "0", "", ""] in cells
    assert ["start", "0.25 s", "0.38 s", "0.50 s", "at most 1 s", "yes"] in cells


def test_all_rows_of_a_table_have_as_many_cells_as_its_head(result: Result) -> None:
    counts = [line.count("|") for line in markdown(result).splitlines() if line.startswith("|")]
    assert counts == [10] * 5 + [7] * 3


def test_the_json_document_has_every_reading(result: Result) -> None:
    document = json.loads(as_json(result))
    (compared,) = document["comparisons"]
    assert compared["values"] == {"direct": [10, 20, 40], "ours": [5, 16, 24], "again": [11, 20, 38]}
    assert compared["failures"] == {"direct": 0, "ours": 3, "again": 0}
    assert compared["reached"] is False
    assert compared["threshold"] == {"measure": "ratio to direct", "limit": 0.7, "at_most": False}
    (observed,) = document["observations"]
    assert (observed["values"], observed["reached"]) == ([0.5, 0.25], True)
