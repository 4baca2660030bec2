"""bpf/include/limit.h, clock.h and counters.h."""

import random
from collections.abc import Iterator
from fractions import Fraction

import pytest

from tests.root.bpf.topics import DONE, Question, Topics, topics

pytestmark = pytest.mark.root

SECOND = 10**9
START = 5 * SECOND


@pytest.fixture(scope="module")
def bpf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topics]:
    with topics(tmp_path_factory.mktemp("bpf")) as loaded:
        yield loaded


def take(bpf: Topics, per_second: int, now_ns: int) -> bool:
    return bool(bpf.call("take", Question(number=per_second, now_ns=now_ns)))


@pytest.mark.parametrize("per_second", [1, 3, 7, 1000])
def test_full_second_may_be_taken_at_once_and_no_more(bpf: Topics, per_second: int) -> None:
    bpf.refill_limit()
    assert sum(take(bpf, per_second, START) for _ in range(per_second + 10)) == per_second
    assert not take(bpf, per_second, START + SECOND // per_second - 1)
    assert take(bpf, per_second, START + SECOND // per_second)
    assert not take(bpf, per_second, START + SECOND // per_second)
    later = START + 10 * SECOND
    assert sum(take(bpf, per_second, later) for _ in range(per_second + 10)) == per_second


def test_nothing_may_happen_where_the_limit_is_none(bpf: Topics) -> None:
    bpf.refill_limit()
    assert not any(take(bpf, 0, START + at * SECOND) for at in range(3))


@pytest.mark.parametrize("per_second", [1, 10, 1000])
def test_events_at_any_times_are_let_through_as_by_a_token_bucket(bpf: Topics, per_second: int) -> None:
    chance = random.Random(per_second)
    bpf.refill_limit()
    interval = SECOND // per_second
    tokens, filled = Fraction(per_second), START
    now = START
    for _ in range(3000):
        now += chance.choice((0, 1, interval - 1, interval, chance.randrange(2 * interval), 20 * interval))
        tokens = min(Fraction(per_second), tokens + Fraction(now - filled, interval))
        filled = now
        allowed = tokens >= 1
        tokens -= allowed
        assert take(bpf, per_second, now) == allowed


def test_clock_that_stands_still_is_read_in_all_units(tmp_path_factory: pytest.TempPathFactory) -> None:
    now = (1 << 32) * 10**6 + 7_001_999_999
    with topics(tmp_path_factory.mktemp("bpf"), fixed_now_ns=now) as fixed:
        fixed.set_wall(1_700_000_000 * SECOND)
        assert fixed.call("tell_time") == DONE
        assert fixed.answer()[:3] == (4_294_974, 7001, 1_704_294_974)
        assert fixed.call("tell_time") == DONE
        assert (fixed.counter(2), fixed.counter(3)) == (0, 2)
