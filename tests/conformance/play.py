"""A vector on a data plane."""

from collections import Counter

from scapy.layers.inet import IP

from tests.conformance.plane import Plane, comparable
from tests.conformance.vector import Packets, Step, Vector, Way


def play(vector: Vector, plane: Plane, *, is_programs: bool) -> None:
    """AssertionError where a step does not do what the vector says."""
    for number, step in enumerate(vector.steps, start=1):
        before = plane.counters
        try:
            _take(step, plane, is_programs=is_programs)
            _check_counters(step, plane.counters - before)
        except AssertionError as error:
            raise AssertionError(f"step {number} of {vector.name!r}: {error}") from error
        if is_programs and not vector.passes_up:
            assert not plane.passed_up, f"step {number} of {vector.name!r} was passed up to Python"
    if is_programs and vector.passes_up:
        assert plane.passed_up, f"nothing of {vector.name!r} was passed up to Python"


def _take(step: Step, plane: Plane, *, is_programs: bool) -> None:
    expected = step.by_programs if is_programs and step.by_programs is not None else step.sends
    match step.way:
        case Way.IN:
            _check(plane.arrive(step.packet), expected)
        case Way.OUT:
            _check(plane.leave(step.packet), expected)
        case Way.TIME:
            waited = plane.wait(step.seconds)
            _check(waited.packets, expected)
            assert sorted(waited.questions) == sorted(step.asks), f"asked for {waited.questions}"
        case Way.KERNEL:
            plane.answer({step.key: step.exists})


def _check(made: list[bytes] | None, expected: Packets | None) -> None:
    if made is None or expected is None:
        assert made is None, f"sent {shown(made)}, though not ours"
        assert expected is None, f"not ours, instead of {shown(expected)}"
        return
    same = [comparable(each) for each in made] == [comparable(each) for each in expected]
    assert same, f"sent\n    {shown(made)}, not\n    {shown(expected)}"


def _check_counters(step: Step, counted: Counter[str]) -> None:
    missing = [name for name in step.counts if not counted[name]]
    assert not missing, f"{missing} not counted, but {dict(counted)}"


def shown(packets: list[bytes] | Packets | None) -> str:
    if packets is None:
        return "nothing, as not ours"
    return "\n    ".join(f"{packet.hex()}\n    {IP(packet)!r}" for packet in packets) or "nothing"
