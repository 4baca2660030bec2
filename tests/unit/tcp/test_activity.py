from typing import NamedTuple

import pytest

from common.tcp.activity import IDLE_SECONDS, PHASES, REACH, Activity, Phase
from common.wire import tcp
from common.wire.segment import Segment

START = 1000


class Sent(NamedTuple):
    """A segment by its number, flags and size."""

    seq: int
    size: int = 0
    flags: int = tcp.ACK


def after(*sent: Sent, start: int = START) -> Activity:
    """The activity of an end from which these came, one a second."""
    activity = Activity(start, 0.0)
    for second, (number, size, flags) in enumerate(sent, 1):
        activity.observe(
            Segment(bytes(4), bytes(4), 1, 2, number, 0, flags, 0, payload=bytes(size)), float(second)
        )
    return activity


def fin(seq: int, size: int = 0) -> Sent:
    return Sent(seq, size, tcp.ACK | tcp.FIN)


def rst(seq: int) -> Sent:
    return Sent(seq, 0, tcp.RST)


@pytest.mark.parametrize(
    ("sent", "phase", "expected"),
    [
        ([], Phase.OPEN, 1000),
        ([Sent(1000, 10)], Phase.OPEN, 1010),
        ([Sent(1000, 10), Sent(1000, 5), Sent(990, 20)], Phase.OPEN, 1010),
        ([fin(1000)], Phase.FINISHED, 1001),
        ([fin(1000, 10)], Phase.FINISHED, 1011),
        ([fin(1000, 10), fin(1000, 10), Sent(1011)], Phase.FINISHED, 1011),
        ([Sent(1000, 10), fin(1000, 20)], Phase.FINISHED, 1021),
        ([Sent(1010, 10), fin(1020), Sent(1000, 10), Sent(1021)], Phase.FINISHED, 1021),
        ([fin(1010)], Phase.FIN_AHEAD, 1000),
        ([fin(1010), Sent(1000, 5)], Phase.FIN_AHEAD, 1005),
        ([fin(1010), Sent(1000, 10)], Phase.FINISHED, 1011),
        ([fin(1010), Sent(1011)], Phase.FINISHED, 1011),
        ([fin(1010), Sent(1000, 5), fin(1005, 5)], Phase.FINISHED, 1011),
        ([rst(1000)], Phase.RESET, 1000),
        ([fin(1000), rst(1001)], Phase.RESET, 1001),
        ([fin(1010), rst(1000)], Phase.RESET, 1000),
        ([rst(1000), fin(1000)], Phase.FINISHED, 1001),
        ([fin(1000), rst(1001), Sent(1000)], Phase.FIN_AHEAD, 1001),
    ],
)
def test_end_that_closes_is_understood(sent: list[Sent], phase: Phase, expected: int) -> None:
    activity = after(*sent)
    assert (activity.phase, activity.next) == (phase, expected)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([rst(999)], 1000),
        ([rst(1001)], 1000),
        ([fin(900)], 1000),
        ([fin(1000 + REACH)], 1000),
        ([fin((1000 - 2**31) % 2**32)], 1000),
        ([Sent(1000 + REACH, 10)], 1000),
        ([fin(1000), Sent(1000, 10)], 1010),
        ([fin(1000), Sent(995, 10)], 1005),
        ([rst(1000), Sent(1000)], 1000),
        ([rst(1000), Sent(1000, 10)], 1010),
        ([fin(1000), rst(1001), Sent(1000, 10)], 1010),
    ],
)
def test_forged_fin_or_rst_does_not_last(sent: list[Sent], expected: int) -> None:
    activity = after(*sent)
    assert (activity.phase, activity.next) == (Phase.OPEN, expected)
    assert activity.idle_deadline() == len(sent) + 7500.0


OVERTAKEN = (fin(1000), Sent(1000))


@pytest.mark.parametrize(
    "sent", [OVERTAKEN, (fin(5000), Sent(1000)), (fin(5000), Sent(5001), Sent(1000)), (fin(1000), Sent(990))]
)
def test_acknowledgment_from_before_a_fin_leaves_the_fin_in_doubt(sent: tuple[Sent, ...]) -> None:
    activity = after(*sent)
    assert activity.phase is Phase.FIN_AHEAD
    assert activity.idle_deadline() == len(sent) + 7500.0


@pytest.mark.parametrize(
    ("following", "phase"),
    [
        (Sent(1001), Phase.FINISHED),
        (fin(1000), Phase.FINISHED),
        (Sent(1000, 10), Phase.OPEN),
        (rst(1001), Phase.RESET),
        (rst(1000), Phase.RESET),
        (rst(1002), Phase.FIN_AHEAD),
    ],
)
def test_doubt_about_a_fin_is_settled_by_what_comes_next(following: Sent, phase: Phase) -> None:
    assert after(*OVERTAKEN, following).phase is phase


def test_fin_that_was_disproved_is_forgotten() -> None:
    activity = after(fin(1000), Sent(1000, 4000), Sent(1001), Sent(1000))
    assert (activity.phase, activity.next) == (Phase.OPEN, 5000)


def test_numbers_wrap() -> None:
    start = 2**32 - 5
    assert after(Sent(start, 10), fin(5), start=start).phase is Phase.FINISHED
    assert after(fin(3), Sent(4), start=start).phase is Phase.FINISHED
    assert after(Sent(start, 10), rst(5), start=start).phase is Phase.RESET


def test_far_segment_does_not_disturb_a_closed_end() -> None:
    activity = after(fin(1000), Sent(1000 + REACH + 5, 1), Sent(2**31 + 500))
    assert (activity.phase, activity.next) == (Phase.FINISHED, 1001)


def test_idle_time_depends_on_the_phase_and_is_counted_from_the_newest_packet() -> None:
    assert IDLE_SECONDS == {
        Phase.OPEN: 7500.0,
        Phase.FIN_AHEAD: 7500.0,
        Phase.FINISHED: 60.0,
        Phase.RESET: 10.0,
    }
    assert after(Sent(1000, 1)).idle_deadline() == 7501.0
    assert after(Sent(1000, 1), fin(1001)).idle_deadline() == 62.0
    assert after(Sent(1000, 1), fin(1001), rst(1002)).idle_deadline() == 13.0


@pytest.mark.parametrize(
    ("sent", "idle", "deadline"),
    [
        ([Sent(1000, 1)], 100.0, 101.0),
        ([Sent(1000, 1), fin(1001)], 100.0, 62.0),
        ([Sent(1000, 1), fin(1001)], 30.0, 32.0),
        ([Sent(1000, 1), fin(1001), rst(1002)], 5.0, 8.0),
        ([Sent(1000, 1), fin(1005)], 100.0, 102.0),
    ],
)
def test_the_idle_time_of_an_open_flow_is_the_callers_and_no_phase_has_more(
    sent: list[Sent], idle: float, deadline: float
) -> None:
    assert after(*sent).idle_deadline(idle) == deadline


def test_every_phase_can_be_left_for_open() -> None:
    back = {phase for (phase, _), following in PHASES.items() if following is Phase.OPEN}
    assert back == set(Phase) - {Phase.OPEN}
