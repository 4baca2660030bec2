"""Both legs of a connection side by side: its seq delta, as a daemon of this host knows it."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from common.control_client import ControlError
from common.reports import FlowSide
from common.wire import seq, tcp
from common.wire.segment import Segment
from l3dsr import sockets
from l3dsr.trace.scope import Connection, Leg

MAX_CONNECTIONS = 4096
RETRY_SECONDS = 0.5
"""A flow whose seq delta was not known is asked for again, after so long."""
QUESTIONS_PER_SECOND = 20
ANSWER_SECONDS = 2.0
"""A balancer waits a second for a node."""
SILENCE_SECONDS = 5.0
"""For how long a daemon that did not answer is left alone."""
SEQ_DELTA = "seq_delta"
_UNASKED: tuple[float, int | None] = (float("-inf"), None)


class Numbers(NamedTuple):
    seq: int
    ack: int | None
    """None without the ACK flag."""


class Both(NamedTuple):
    client_leg: Numbers
    backend_leg: Numbers


def both(segment: Segment, leg: Leg, seq_delta: int) -> Both:
    """The numbers of a segment on either leg; ``seq_delta`` is added to seq from backend to client."""
    has_ack = bool(segment.flags & tcp.ACK)
    here = Numbers(segment.seq, segment.ack if has_ack else None)
    shift = seq_delta if leg.is_backend_leg else -seq_delta
    if leg.is_to_client:
        there = Numbers(seq.add(here.seq, shift), here.ack)
    else:
        there = Numbers(here.seq, None if here.ack is None else seq.add(here.ack, shift))
    return Both(there, here) if leg.is_backend_leg else Both(here, there)


class SeqDeltas:
    """Remembers what was asked; bounded in memory and in questions."""

    def __init__(
        self,
        ask: Callable[[Connection], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``ask`` may raise `ControlError`."""
        self._ask = ask
        self._clock = clock
        self._known: OrderedDict[Connection, tuple[float, int | None]] = OrderedDict()
        self._begun: OrderedDict[Connection, int] = OrderedDict()
        self._silent_until = float("-inf")
        self._next_question = float("-inf")

    def of(self, connection: Connection) -> int | None:
        """None where nobody has told it yet."""
        now = self._clock()
        asked, seq_delta = self._known.get(connection, _UNASKED)
        if seq_delta is not None or now < max(asked + RETRY_SECONDS, self._silent_until, self._next_question):
            return seq_delta
        self._next_question = max(self._next_question, now - 1) + 1 / QUESTIONS_PER_SECOND
        try:
            seq_delta = self._ask(connection)
        except ControlError:
            self._silent_until = now + SILENCE_SECONDS
        self._known[connection] = now, seq_delta
        self._known.move_to_end(connection)
        if len(self._known) > MAX_CONNECTIONS:
            self._known.popitem(last=False)
        return seq_delta

    def begin(self, connection: Connection, isn: int, *, has_node: bool) -> None:
        """A SYN or a handoff was seen; with another ISN than before it begins a new connection.

        What was not known before it had a node is asked for again at its next packet.
        """
        if self._begun.get(connection, isn) != isn or (
            has_node and self._known.get(connection, _UNASKED)[1] is None
        ):
            self._known.pop(connection, None)
        self._begun[connection] = isn
        self._begun.move_to_end(connection)
        if len(self._begun) > MAX_CONNECTIONS:
            self._begun.popitem(last=False)


def ask_daemons(paths: Sequence[Path], connection: Connection) -> int | None:
    client, port = connection
    answers = sockets.ask_running(
        paths, "flow", FlowSide, within=ANSWER_SECONDS, client=str(IPv4Address(client)), port=port
    )
    for side in (side for sides in answers.values.values() for side in sides):
        seq_delta = side.flow.details.get(SEQ_DELTA) if side.flow else None
        if isinstance(seq_delta, int):
            return seq_delta % seq.MODULUS
    if answers.failures:
        raise ControlError(answers.failures[0])
    return None
