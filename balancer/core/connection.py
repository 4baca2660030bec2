"""What the balancer remembers of a connection, one immutable value per state."""

import math
from typing import NamedTuple

from balancer.core.service import Node
from common.tcp.activity import Activity
from common.wire import seq
from common.wire.rewrite import Rewrite
from common.wire.segment import Segment
from common.wire.tcp_options import SynOptions

SEGMENT_OVERHEAD = 512
"""Bytes that a segment takes in memory besides its payload."""


class Hello(NamedTuple):
    """A half-open connection: what its SYN said, for what the cookie cannot carry."""

    client_isn: int
    options: SynOptions


class Handshake(NamedTuple):
    """A three-way handshake that the client has completed, and what it negotiated."""

    client_isn: int
    isn: int
    """Ours."""
    mss: int
    window_scale: int | None
    """The client's; None, False and False where the option is off for this connection."""
    sack_permitted: bool
    timestamps: bool

    @property
    def first(self) -> int:
        """Sequence number of the client's first byte."""
        return seq.add(self.client_isn, 1)

    @property
    def acknowledged(self) -> int:
        """What the client acknowledges until somebody has answered it."""
        return seq.add(self.isn, 1)


class Collecting(NamedTuple):
    """A connection whose first bytes have come in part."""

    handshake: Handshake
    segments: tuple[Segment, ...] = ()
    """In the order in which they came."""
    prefix: bytes = b""
    """The stream's start without gaps; of bytes that came twice, those that came first."""
    deadline: float = math.inf
    """When waiting for more ends."""

    @property
    def size(self) -> int:
        """Bytes of memory, roughly."""
        return sum(len(segment.payload) + SEGMENT_OVERHEAD for segment in self.segments)


class Flow(NamedTuple):
    """A connection that has its node."""

    handshake: Handshake
    node: Node
    activity: Activity
    begun: float
    """When it got its node."""
    plan: Rewrite | None
    """The node's plan; None while a SYN may have begun another connection of the same 4-tuple."""
    contested_until: float = 0.0


class Answered(NamedTuple):
    """A connection that the balancer has answered and closed by itself."""

    handshake: Handshake
    payload: bytes
    """The answer, empty where the client closed without a word; FIN stands behind it."""
    next: int
    """What is acknowledged: the client's contiguous bytes and its FIN."""

    @property
    def closed(self) -> int:
        """What the client acknowledges once it has the answer and the FIN."""
        return seq.add(self.handshake.acknowledged, len(self.payload) + 1)
