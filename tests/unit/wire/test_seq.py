import pytest

from common.wire import seq

NEWEST = 0xFFFFFFFF


def test_adding_wraps_around_at_two_to_the_32_in_both_directions() -> None:
    assert seq.add(NEWEST, 1) == 0
    assert seq.add(0xFFFFFFF0, 0x20) == 0x10
    assert seq.add(5, -6) == NEWEST
    assert seq.add(7, 0) == 7


@pytest.mark.parametrize(
    ("start", "end", "steps"),
    [
        (10, 15, 5),
        (15, 10, -5),
        (0xFFFFFFFE, 3, 5),
        (3, 0xFFFFFFFE, -5),
        (0, 0x7FFFFFFF, 0x7FFFFFFF),
        (0, 0x80000000, -0x80000000),
    ],
)
def test_distance_is_signed_and_crosses_the_wrap(start: int, end: int, steps: int) -> None:
    assert seq.distance(start, end) == steps


@pytest.mark.parametrize(("earlier", "later"), [(1, 2), (NEWEST, 0), (0xFFFFFF00, 0x100), (0, 0x7FFFFFFF)])
def test_order_holds_across_the_wrap(earlier: int, later: int) -> None:
    assert seq.lt(earlier, later)
    assert seq.le(earlier, later)
    assert seq.gt(later, earlier)
    assert seq.ge(later, earlier)
    assert not seq.lt(later, earlier)
    assert not seq.le(later, earlier)
    assert not seq.gt(earlier, later)
    assert not seq.ge(earlier, later)


def test_a_number_is_neither_before_nor_after_itself() -> None:
    assert not seq.lt(7, 7)
    assert not seq.gt(7, 7)
    assert seq.le(7, 7)
    assert seq.ge(7, 7)
