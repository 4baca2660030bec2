"""What packets pass on their way: devices behind one interface, of which a fault injector is one more.

A `Line` is a direction of the topology: a script of exact faults, then chance, then the wire's latency.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from common.wire.offload import Packet
from tests.sim.timeline import Timeline

Sink = Callable[[Packet], None]
Fault = Callable[[Packet], Sequence[float] | None]
"""Seconds by which each copy of a packet is late; none at all drops it. None: not this fault's business."""


class Device(Protocol):
    def send(self, packet: Packet) -> None: ...


class Wire:
    def __init__(self, timeline: Timeline, latency: float, output: Sink) -> None:
        self._timeline, self._latency, self._output = timeline, latency, output

    def send(self, packet: Packet) -> None:
        self._timeline.after(self._latency, lambda: self._output(packet))


class Weather(NamedTuple):
    """Probabilities for each packet. What is reordered comes up to ``lateness`` seconds late."""

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    lateness: float = 0.02


class Disorder:
    """Loss, duplication and reordering by chance."""

    def __init__(self, timeline: Timeline, chance: random.Random, weather: Weather, output: Device) -> None:
        self._timeline, self._chance, self.weather, self._output = timeline, chance, weather, output

    def send(self, packet: Packet) -> None:
        weather, chance = self.weather, self._chance
        copies = 1 + (chance.random() < weather.duplication)
        for _ in range(copies):
            if chance.random() < weather.loss:
                continue
            if chance.random() < weather.reordering:
                delay = chance.uniform(0, weather.lateness)
                self._timeline.after(delay, lambda: self._output.send(packet))
            else:
                self._output.send(packet)


class Script:
    """Faults that a test has chosen, asked in turn."""

    def __init__(self, timeline: Timeline, output: Device) -> None:
        self._timeline, self._output = timeline, output
        self.faults: list[Fault] = []

    def send(self, packet: Packet) -> None:
        for fault in self.faults:
            delays = fault(packet)
            if delays is None:
                continue
            for delay in delays:
                if delay:
                    self._timeline.after(delay, lambda: self._output.send(packet))
                else:
                    self._output.send(packet)
            return
        self._output.send(packet)


class Line:
    """``alter`` may be replaced: it changes packets as they are put in."""

    def __init__(self, timeline: Timeline, chance: random.Random, latency: float, output: Sink) -> None:
        self.carried: list[tuple[float, Packet]] = []
        """Everything that was put in, with the time."""
        self.alter: Callable[[Packet], Packet] = lambda packet: packet
        self._timeline = timeline
        self._disorder = Disorder(timeline, chance, Weather(), Wire(timeline, latency, output))
        self._script = Script(timeline, self._disorder)

    def send(self, packet: Packet) -> None:
        packet = self.alter(packet)
        self.carried.append((self._timeline.now, packet))
        self._script.send(packet)

    def have(self, weather: Weather) -> None:
        self._disorder.weather = weather

    def add(self, fault: Fault) -> None:
        self._script.faults.append(fault)


def nth(count: int, matches: Callable[[Packet], bool], delays: Sequence[float]) -> Fault:
    """A fault of the ``count``-th packet, from 1, that ``matches``."""
    seen = 0

    def fault(packet: Packet) -> Sequence[float] | None:
        nonlocal seen
        if not matches(packet):
            return None
        seen += 1
        return delays if seen == count else None

    return fault


def every(matches: Callable[[Packet], bool], delays: Sequence[float]) -> Fault:
    """A fault of all packets that match."""
    return lambda packet: delays if matches(packet) else None
