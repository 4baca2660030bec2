"""What one end's packets tell of a flow's life: when it was heard of, and whether it has closed.

Anybody can forge a FIN or a RST, so neither ends a flow. At the sequence number that is expected they make
its idle time shorter; a later packet that contradicts them makes it long again. A FIN that overtook lost data
counts once what stands around it shows that it was real. Numbers beyond `REACH` of what is expected count
for nothing.
"""

from collections.abc import Mapping
from enum import Enum, auto

from common.wire import seq, tcp
from common.wire.segment import Segment


class Phase(Enum):
    OPEN = auto()
    """Nothing but data and acknowledgments: the packets need no state machine."""
    FIN_AHEAD = auto()
    """A FIN came that may be forged: beyond the expected sequence number, or contradicted since."""
    FINISHED = auto()
    """A FIN came in order."""
    RESET = auto()
    """A RST came in order."""


class Sign(Enum):
    """What a segment says about its sender, compared with what was expected."""

    DATA = auto()
    FIN_IN_ORDER = auto()
    FIN_AHEAD = auto()
    BEHIND_FIN = auto()
    """Its sequence number follows the remembered FIN, or its bytes reach to it: the FIN was real."""
    INSTEAD_OF_FIN = auto()
    """Its bytes reach beyond the FIN: the FIN was forged."""
    BEFORE_FIN = auto()
    """An acknowledgment from before the FIN: the FIN has overtaken it, or was forged."""
    RST_IN_ORDER = auto()
    RST_ELSEWHERE = auto()


PHASES: Mapping[tuple[Phase, Sign], Phase] = {
    (Phase.OPEN, Sign.FIN_IN_ORDER): Phase.FINISHED,
    (Phase.OPEN, Sign.FIN_AHEAD): Phase.FIN_AHEAD,
    (Phase.OPEN, Sign.RST_IN_ORDER): Phase.RESET,
    (Phase.FIN_AHEAD, Sign.FIN_IN_ORDER): Phase.FINISHED,
    (Phase.FIN_AHEAD, Sign.BEHIND_FIN): Phase.FINISHED,
    (Phase.FIN_AHEAD, Sign.INSTEAD_OF_FIN): Phase.OPEN,
    (Phase.FIN_AHEAD, Sign.RST_IN_ORDER): Phase.RESET,
    (Phase.FINISHED, Sign.INSTEAD_OF_FIN): Phase.OPEN,
    (Phase.FINISHED, Sign.BEFORE_FIN): Phase.FIN_AHEAD,
    (Phase.FINISHED, Sign.RST_IN_ORDER): Phase.RESET,
    (Phase.RESET, Sign.DATA): Phase.OPEN,
    (Phase.RESET, Sign.INSTEAD_OF_FIN): Phase.OPEN,
    (Phase.RESET, Sign.BEFORE_FIN): Phase.FIN_AHEAD,
    (Phase.RESET, Sign.FIN_IN_ORDER): Phase.FINISHED,
    (Phase.RESET, Sign.FIN_AHEAD): Phase.FIN_AHEAD,
    (Phase.RESET, Sign.BEHIND_FIN): Phase.FINISHED,
}
"""Pairs that are not listed leave the phase as it is."""

IDLE_SECONDS: Mapping[Phase, float] = {
    Phase.OPEN: 7500.0,  # RFC 5382 section 5: at least 2 hours 4 minutes
    Phase.FIN_AHEAD: 7500.0,
    Phase.FINISHED: 60.0,
    Phase.RESET: 10.0,
}

REACH = 1 << 24
"""How far in front of the expected sequence number a segment may stand: more than a window that is in use."""


class Activity:
    """One end of one flow. A cell that any packet may overwrite; no choice of a node depends on it."""

    __slots__ = ("fin", "next", "phase", "seen")

    def __init__(self, next_seq: int, now: float) -> None:
        self.seen = now
        """When its last packet came."""
        self.next = next_seq
        """The sequence number behind the newest byte, SYN or FIN that it sent."""
        self.phase = Phase.OPEN
        self.fin: int | None = None
        """Where a FIN stood that came, as long as it may be real."""

    def observe(self, segment: Segment, now: float) -> None:
        """Take note of a segment that this end sent."""
        self.phase = PHASES.get((self.phase, self._sign(segment)), self.phase)
        if self.phase is Phase.OPEN:
            self.fin = None
        self.seen = now

    def idle_deadline(self, idle: float = IDLE_SECONDS[Phase.OPEN]) -> float:
        """``idle`` is how many seconds an open flow may be silent; one that has ended never lives longer."""
        if self.phase in (Phase.OPEN, Phase.FIN_AHEAD):
            return self.seen + idle
        return self.seen + min(IDLE_SECONDS[self.phase], idle)

    def _sign(self, segment: Segment) -> Sign:
        start = segment.seq
        end = seq.add(start, len(segment.payload))
        if segment.flags & tcp.RST:
            return Sign.RST_IN_ORDER if start in (self.next, self.fin) else Sign.RST_ELSEWHERE
        if segment.flags & tcp.FIN:
            return self._sign_of_fin(start, end)
        fin = self.fin
        if fin is None or abs(seq.distance(self.next, end)) >= REACH:
            self._advance(end)
            return Sign.DATA
        if start == seq.add(fin, 1) or (start != end and end == fin):
            self.next = seq.add(fin, 1)
            return Sign.BEHIND_FIN
        if start == end and seq.le(end, fin):
            return Sign.BEFORE_FIN
        if seq.gt(end, fin):
            self.next = end
            return Sign.INSTEAD_OF_FIN
        self._advance(end)
        return Sign.DATA

    def _sign_of_fin(self, start: int, end: int) -> Sign:
        behind = seq.add(end, 1)
        if seq.lt(behind, self.next) or seq.distance(self.next, start) >= REACH:
            return Sign.DATA
        self.fin = end
        if seq.gt(start, self.next):
            return Sign.FIN_AHEAD
        self._advance(behind)
        return Sign.FIN_IN_ORDER

    def _advance(self, end: int) -> None:
        if 0 < seq.distance(self.next, end) < REACH:
            self.next = end
