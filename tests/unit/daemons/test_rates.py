"""Rates of counters that are looked at now and then."""

from balancer.rates import WINDOW_SECONDS, Rates


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rates = Rates()
    for second in range(10):
        rates.note({"a": 100 if second < 5 else 100 + (second - 4) * 7}, float(second))
    assert rates.of("a") == 7.0
    assert WINDOW_SECONDS == 5.0


def test_what_begins_anew_has_no_rate_yet() -> None:
    rates = Rates()
    rates.note({"a": 50}, 0.0)
    rates.note({"a": 3}, 1.0)
    assert rates.of("a") == 0.0
    rates.note({"a": 5}, 2.0)
    assert rates.of("a") == 2.0


def test_what_is_not_counted_any_more_is_forgotten() -> None:
    rates = Rates()
    rates.note({"a": 0, "b": 0}, 0.0)
    rates.note({"b": 4}, 1.0)
    rates.note({"a": 90, "b": 8}, 2.0)
    assert (rates.of("a"), rates.of("b"), rates.of("c")) == (0.0, 4.0, 0.0)
