"""Behaviour as data: packets that come, time that passes, and what both data planes must make of them.

A packet is described (`tests.unit.wire.packets.Described`) and built by scapy, or stands there as bytes.
What is expected is written down or computed apart from the code under test (`oracle`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto

from balancer.core.service import Limits as BalancerLimits
from balancer.core.service import Service as BalancerService
from packetbridge.core.service import Limits as BridgeLimits
from tests.conformance.differences import Difference
from tests.unit.wire.packets import Described, built

Packets = tuple[bytes, ...]
ByPrograms = tuple[Difference, Iterable[Described | bytes]]
"""What they send instead of what the core sends, and because of what."""


class Way(Enum):
    IN = auto()
    """At ingress: from a client, or from the balancer."""
    OUT = auto()
    """From the backend."""
    TIME = auto()
    KERNEL = auto()
    """The answer to a question for a socket."""


@dataclass(frozen=True)
class Step:
    way: Way
    packet: bytes = b""
    sends: Packets | None = ()
    """In this order. None: it is left to the host as it is."""
    counts: tuple[str, ...] = ()
    """Counters that this step adds to."""
    seconds: float = 0.0
    asks: Packets = ()
    """Flow keys, backend to client, whose sockets the kernel is asked for."""
    key: bytes = b""
    exists: bool = False
    by_programs: Packets | None = None
    """What they send instead, because of ``difference``."""
    difference: Difference | None = None


@dataclass(frozen=True)
class Vector:
    """``name`` is the behaviour."""

    name: str
    steps: tuple[Step, ...]
    passes_up: bool = False
    """Whether the programs leave packets of it to Python. Otherwise they must not."""
    service: BalancerService | None = None
    """Where this and the next two are None, it is what is usual."""
    limits: BalancerLimits | None = None
    bridge_limits: BridgeLimits | None = None


def as_bytes(packet: Described | bytes) -> bytes:
    return packet if isinstance(packet, bytes) else built(packet)


def arrives(
    packet: Described | bytes,
    *sends: Described | bytes,
    counts: str = "",
    programs: ByPrograms | None = None,
) -> Step:
    """``counts`` names counters, with spaces between them."""
    return _step(Way.IN, packet, sends, counts, programs)


def leaves(
    packet: Described | bytes,
    *sends: Described | bytes,
    counts: str = "",
    programs: ByPrograms | None = None,
) -> Step:
    return _step(Way.OUT, packet, sends, counts, programs)


def not_ours(packet: Described | bytes) -> Step:
    """It arrives, and is left to the host."""
    return Step(Way.IN, as_bytes(packet), sends=None)


def passes(packet: Described | bytes, counts: str = "") -> Step:
    """It leaves untouched."""
    return Step(Way.OUT, as_bytes(packet), sends=None, counts=tuple(counts.split()))


def time(
    seconds: float,
    *sends: Described | bytes,
    asks: tuple[bytes, ...] = (),
    counts: str = "",
    programs: ByPrograms | None = None,
) -> Step:
    """It passes; ``asks`` are the flows whose sockets the kernel is asked for."""
    return replace(_step(Way.TIME, b"", sends, counts, programs), seconds=seconds, asks=asks)


def kernel(key: bytes, *, exists: bool, counts: str = "") -> Step:
    """The kernel says whether the backend has a socket for the flow ``key``, backend to client."""
    return Step(Way.KERNEL, key=key, exists=exists, counts=tuple(counts.split()))


def _step(
    way: Way,
    packet: Described | bytes,
    sends: tuple[Described | bytes, ...],
    counts: str,
    programs: ByPrograms | None,
) -> Step:
    return Step(
        way,
        as_bytes(packet),
        tuple(map(as_bytes, sends)),
        tuple(counts.split()),
        by_programs=programs and tuple(map(as_bytes, programs[1])),
        difference=programs and programs[0],
    )
