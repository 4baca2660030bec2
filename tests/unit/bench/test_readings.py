import pytest

from bench import kernel_counters, processor
from bench.processor import Clock
from bench.readings import Spread, spread
from bench.results import dump, load
from tests.unit.bench.figures_of_a_run import DOWNLOADS, FRESH, RESULTS

STAT = """\
cpu  100 2 300 4000 50 6 70 80 9 0
cpu0 50 1 150 2000 25 3 35 40 4 0
intr 12345
"""


def test_ratios_are_those_within_each_round() -> None:
    assert DOWNLOADS.ratios("l3dsr-raw", "rate") == [0.5, 0.8]
    assert DOWNLOADS.ratios("direct", "rate") == [1, 1]
    assert DOWNLOADS.ratios("l3dsr-raw", "rate", against="HAProxy") == [5, 4]


def test_excesses_are_differences_within_each_round() -> None:
    assert FRESH.excesses("l3dsr-raw", "p50") == [0.5, 1.0]


def test_processor_time_over_direct_is_per_gigabyte_or_per_thousand_requests() -> None:
    assert DOWNLOADS.extra_processor_seconds("l3dsr-raw") == [1.0, 0.5]
    assert FRESH.extra_processor_seconds("l3dsr-raw") == pytest.approx([0.2, 0.4])
    assert FRESH.processor_seconds("direct") == [0.1, 0.2]


def test_bytes_on_the_balancers_link_are_counted_per_byte_delivered() -> None:
    assert DOWNLOADS.balancer_bytes("l3dsr-raw") == [0.001, 0.003]


def test_failed_requests_of_all_rounds_are_counted() -> None:
    assert (DOWNLOADS.failures("l3dsr-raw"), DOWNLOADS.failures("direct")) == (2, 0)


def test_a_spread_is_smallest_median_and_largest() -> None:
    assert spread([3, 1, 8, 2]) == Spread(1, 2.5, 8)


def test_readings_survive_their_way_through_json() -> None:
    assert load(dump(RESULTS)) == RESULTS


# kernel counters


def test_counters_are_worse_only_beyond_both_direct_measurements() -> None:
    worse = kernel_counters.tally(DOWNLOADS, "l3dsr-raw")
    assert (worse.counts["retransmissions"], worse.worse) == (3, ("retransmissions",))
    level = kernel_counters.tally(DOWNLOADS, "HAProxy")
    assert (level.counts["retransmissions"], level.worse) == (0, ())


def test_direct_is_not_worse_than_itself() -> None:
    assert kernel_counters.tally(DOWNLOADS, "direct").worse == ()
    assert kernel_counters.tally(DOWNLOADS, "direct").counts["retransmissions"] == 2


def test_counters_of_no_group_are_left_out() -> None:
    changes = {"client": {"TcpInSegs": 9}, "node1": {"TcpRetransSegs": 2, "TcpOutSegs": 9}}
    assert kernel_counters.watched(changes) == {"node1": {"TcpRetransSegs": 2}}


# processor time


def test_time_is_not_busy_when_idle_waiting_or_taken_by_the_hypervisor() -> None:
    assert processor.parse(STAT, 7.0, 100) == Clock(7.0, 41.3)


def test_busy_time_is_what_of_all_cores_is_left() -> None:
    assert processor.busy_seconds(Clock(10, 5), Clock(12, 6), cores=2) == 3.0


def test_busy_time_is_never_negative() -> None:
    assert processor.busy_seconds(Clock(10, 5), Clock(11, 8), cores=2) == 0.0
