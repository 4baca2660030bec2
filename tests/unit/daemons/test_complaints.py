"""What a daemon tells its operator of counters that should not grow."""

import logging
from collections import Counter

import pytest
import trio
import trio.testing

from common.daemon import SILENCE_SECONDS, WATCH_SECONDS, complain
from common.problems import Problems

LOGGER = logging.getLogger("daemon")
COMPLAINTS = {"bad_tag": "wrong tags: look at the key", "full": "no room"}


def messages(caplog: pytest.LogCaptureFixture, *steps: tuple[float, str]) -> list[str]:
    """What is logged while counters grow by one each, seconds later than the one before."""
    counted = Counter({"bad_tag": 7})

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(complain, lambda: dict(counted), COMPLAINTS, LOGGER)
            for seconds, name in steps:
                await trio.sleep(seconds)
                counted[name] += 1
            await trio.sleep(2 * WATCH_SECONDS)
            nursery.cancel_scope.cancel()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    return caplog.messages


def test_what_was_counted_before_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    assert messages(caplog) == []


def test_growth_is_told_once_with_its_number(caplog: pytest.LogCaptureFixture) -> None:
    many = [(0.6, "bad_tag")] * 100
    assert messages(caplog, *many) == ["wrong tags: look at the key (bad_tag=10)"]


def test_counters_complain_independently_and_others_never(caplog: pytest.LogCaptureFixture) -> None:
    assert messages(caplog, (1, "bad_tag"), (4, "full"), (4, "harmless")) == [
        "wrong tags: look at the key (bad_tag=8)",
        "no room (full=1)",
    ]


def test_growth_after_a_long_silence_is_told_again(caplog: pytest.LogCaptureFixture) -> None:
    assert messages(caplog, (1, "full"), (SILENCE_SECONDS + WATCH_SECONDS, "full")) == [
        "no room (full=1)",
        "no room (full=2)",
    ]


def test_problems_are_told_when_they_begin_and_when_they_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    problems = Problems(LOGGER, node="node1")
    for found in (["a", "b"], ["b", "a"], ["b"], []):
        problems.are(found)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("WARNING", "a"),
        ("WARNING", "b"),
        ("INFO", "no longer: a"),
        ("INFO", "no longer: b"),
    ]
    assert {record.__dict__["node"] for record in caplog.records} == {"node1"}
