"""Faults on a sequence of packets, drawn from a seed.

Packet in, packets out, with `now` as an argument; no clock and no socket. Every packet that comes draws
the same number of random numbers, so the fate of the n-th packet depends on seed and n alone. Where
nothing is released by time (`hold`, `delay`, `jitter`), the same packets give the same output.
"""

import heapq
import random
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities are 0..1, times are seconds.

    `reorder` holds a packet back until 1..`depth` later ones have overtaken it, at most `hold` seconds;
    `delay` and up to `jitter` more apply to every packet. Of both only one can be had: what is delayed
    overtakes nothing. A copy (`duplicate`) comes right behind, or `duplicate_delay` later.
    Raises ValueError where a value makes no sense.
    """

    seed: int
    drop: float = 0.0
    duplicate: float = 0.0
    duplicate_delay: float = 0.0
    reorder: float = 0.0
    depth: int = 3
    hold: float = 0.05
    delay: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "seed" and value < 0:
                raise ValueError(f"{name} {value} is negative")
        for name in ("drop", "duplicate", "reorder"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} {getattr(self, name)} is no probability")
        if self.depth < 1:
            raise ValueError(f"depth {self.depth} is not at least 1")
        if self.reorder and (self.delay or self.jitter):
            raise ValueError("reorder cannot be combined with delay or jitter")


@dataclass(slots=True)
class Counts:
    received: int = 0
    dropped: int = 0
    duplicated: int = 0
    held: int = 0
    delivered: int = 0


@dataclass(slots=True)
class _Held:
    packet: bytes
    to_pass: int
    deadline: float


class Disorder:
    def __init__(self, faults: Faults) -> None:
        self.counts = Counts()
        self._faults = faults
        self._random = random.Random(faults.seed)
        self._held: list[_Held] = []
        self._delayed: list[tuple[float, int, bytes]] = []

    def receive(self, packet: bytes, now: float) -> list[bytes]:
        """What is to be sent now, in this order."""
        faults = self._faults
        drop, duplicate, reorder, depth, jitter = (self._random.random() for _ in range(5))
        self.counts.received += 1
        if drop < faults.drop:
            self.counts.dropped += 1
            return []
        out: list[bytes] = []
        held = None
        if reorder < faults.reorder:
            self.counts.held += 1
            held = _Held(packet, 1 + int(depth * faults.depth), now + faults.hold)
        elif faults.delay or faults.jitter:
            self._send_at(now + faults.delay + jitter * faults.jitter, packet)
        else:
            out.append(packet)
        if duplicate < faults.duplicate:
            self.counts.duplicated += 1
            if faults.duplicate_delay:
                self._send_at(now + faults.duplicate_delay, packet)
            else:
                out.append(packet)
        if out:
            out += self._overtaken()
        if held:
            self._held.append(held)
        self.counts.delivered += len(out)
        return out

    def next_deadline(self) -> float | None:
        """None while nothing waits."""
        deadlines = [held.deadline for held in self._held]
        if self._delayed:
            deadlines.append(self._delayed[0][0])
        return min(deadlines, default=None)

    def on_timeout(self, now: float) -> list[bytes]:
        """What has waited long enough."""
        due = [(held.deadline, held.packet) for held in self._held if held.deadline <= now]
        self._held = [held for held in self._held if held.deadline > now]
        while self._delayed and self._delayed[0][0] <= now:
            deadline, _, packet = heapq.heappop(self._delayed)
            due.append((deadline, packet))
        self.counts.delivered += len(due)
        return [packet for _, packet in sorted(due, key=lambda entry: entry[0])]

    def flush(self) -> list[bytes]:
        """Everything that still waits."""
        return self.on_timeout(float("inf"))

    def _send_at(self, deadline: float, packet: bytes) -> None:
        heapq.heappush(self._delayed, (deadline, self.counts.received, packet))

    def _overtaken(self) -> list[bytes]:
        """One more packet has passed those that are held."""
        for held in self._held:
            held.to_pass -= 1
        released = [held.packet for held in self._held if held.to_pass == 0]
        self._held = [held for held in self._held if held.to_pass > 0]
        return released
