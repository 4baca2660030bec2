from hypothesis import given
from hypothesis import strategies as st

from common.deadlines import Deadlines
from tests.unit.wire.packets import quickly


def test_key_falls_due_at_its_time_and_up_to_one_resolution_later() -> None:
    deadlines: Deadlines[str] = Deadlines(1.0)
    deadlines.set("a", 10.2)
    assert deadlines.next() == 11.0
    assert deadlines.due(10.9) == []
    assert deadlines.due(11.0) == ["a"]
    assert deadlines.next() is None


def test_later_setting_takes_the_place_of_the_earlier_whichever_way_it_moves() -> None:
    deadlines: Deadlines[str] = Deadlines(1.0)
    deadlines.set("a", 10.0)
    deadlines.set("b", 10.0)
    deadlines.set("a", 20.0)
    deadlines.set("b", 5.0)
    assert deadlines.due(5.0) == ["b"]
    assert deadlines.due(19.0) == []
    assert deadlines.due(20.0) == ["a"]


def test_what_was_cancelled_never_falls_due_and_is_not_waited_for() -> None:
    deadlines: Deadlines[str] = Deadlines(1.0)
    deadlines.set("a", 10.0)
    deadlines.set("b", 20.0)
    deadlines.cancel("a")
    deadlines.cancel("never set")
    assert deadlines.next() == 20.0
    assert deadlines.due(30.0) == ["b"]


def test_keys_fall_due_earliest_first() -> None:
    deadlines: Deadlines[int] = Deadlines(0.5)
    for number in (3, 1, 2):
        deadlines.set(number, float(number))
    assert deadlines.due(10.0) == [1, 2, 3]


def test_key_that_fell_due_can_be_set_again() -> None:
    deadlines: Deadlines[str] = Deadlines(1.0)
    deadlines.set("a", 1.0)
    assert deadlines.due(1.0) == ["a"]
    deadlines.set("a", 1.0)
    assert deadlines.due(1.0) == ["a"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 5), st.floats(0, 100)),
            st.tuples(st.just("cancel"), st.integers(0, 5), st.none()),
            st.tuples(st.just("pass"), st.just(0), st.floats(0, 10)),
        ),
        max_size=60,
    )
)
@quickly
def test_nothing_falls_due_early_or_more_than_a_resolution_late(
    steps: list[tuple[str, int, float | None]],
) -> None:
    deadlines: Deadlines[int] = Deadlines(0.25)
    expected: dict[int, float] = {}
    now = 0.0
    for name, key, number in steps:
        if name == "set" and number is not None:
            deadlines.set(key, now + number)
            expected[key] = now + number
        elif name == "cancel":
            deadlines.cancel(key)
            expected.pop(key, None)
        elif number is not None:
            now += number
            due = set(deadlines.due(now))
            assert {key for key, at in expected.items() if at <= now - 0.25} <= due
            assert due <= {key for key, at in expected.items() if at <= now}
            expected = {key: at for key, at in expected.items() if key not in due}
        following = deadlines.next()
        assert (following is None) == (not expected)
        assert following is None or min(expected.values()) <= following <= min(expected.values()) + 0.25
