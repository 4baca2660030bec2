"""The states of a connection at the balancer, as a table.

A half-open connection is UNKNOWN: the SYN cookie remembers it. `RULES` names for each state and event what
is done; the action itself says in which state the connection is afterwards, which is one of the rule's
``outcomes``.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class State(Enum):
    UNKNOWN = "unknown"
    VERIFIED = "verified"
    """The handshake is complete and the client has said nothing yet."""
    COLLECTING = "collecting"
    """Its first bytes do not tell the hash key yet."""
    ESTABLISHED = "established"
    """It has a node."""
    ANSWERED = "answered"
    """The balancer has answered and closed it."""


class Event(Enum):
    """What a segment is to the handshake that it belongs to."""

    SYN = "SYN"
    ACK = "ACK"
    """Nothing but the handshake's last part, perhaps again."""
    KEEPALIVE = "keepalive probe"
    PAYLOAD = "payload"
    """Bytes at the start of the stream or within the preamble window, or a FIN behind them."""
    FIN = "FIN"
    """Where the stream would start: the client has nothing to say."""
    RST = "RST"
    """At the expected sequence number."""
    IMPLAUSIBLE_RST = "RST elsewhere"
    AGAIN = "first payload again"
    """A retransmission of the stream's start on a flow that has its node."""
    SEGMENT = "segment"
    """Anything else of an established or answered connection."""
    NEW_ACK = "ACK of a new handshake"
    """On a 4-tuple whose old connection still stands; or a probe, FIN or RST, which replace it no more."""
    NEW_PAYLOAD = "payload of a new handshake"
    STRAY = "stray"
    """Belongs to nothing that is known here."""
    TIMEOUT = "timeout"


class Action(Enum):
    """Each is a method of the engine."""

    ANSWER_SYN = "answer_syn"
    REMEMBER = "remember"
    ANSWER_PROBE = "answer_probe"
    COLLECT = "collect"
    CLOSE = "close"
    FORGET = "forget"
    IGNORE = "ignore"
    RESET = "reset"
    CONTEST = "contest"
    HAND_OFF_AGAIN = "hand_off_again"
    FORWARD = "forward"
    START_OVER = "start_over"
    ANSWER_AGAIN = "answer_again"
    GIVE_UP_KEY = "give_up_key"


class Rule(NamedTuple):
    action: Action
    outcomes: tuple[State, ...]


_U, _V, _C, _E, _A = State
_DECIDED = (_U, _C, _E, _A)

RULES: Mapping[tuple[State, Event], Rule] = {
    (_U, Event.SYN): Rule(Action.ANSWER_SYN, (_U,)),
    (_U, Event.ACK): Rule(Action.REMEMBER, (_V, _U)),
    (_U, Event.KEEPALIVE): Rule(Action.ANSWER_PROBE, (_U,)),
    (_U, Event.PAYLOAD): Rule(Action.COLLECT, _DECIDED),
    (_U, Event.FIN): Rule(Action.CLOSE, (_A, _U)),
    (_U, Event.RST): Rule(Action.IGNORE, (_U,)),
    (_U, Event.IMPLAUSIBLE_RST): Rule(Action.IGNORE, (_U,)),
    (_U, Event.STRAY): Rule(Action.RESET, (_U,)),
    (_V, Event.SYN): Rule(Action.ANSWER_SYN, (_V,)),
    (_V, Event.ACK): Rule(Action.REMEMBER, (_V,)),
    (_V, Event.KEEPALIVE): Rule(Action.ANSWER_PROBE, (_V,)),
    (_V, Event.PAYLOAD): Rule(Action.COLLECT, (_V, *_DECIDED)),
    (_V, Event.FIN): Rule(Action.CLOSE, (_A, _U)),
    (_V, Event.RST): Rule(Action.FORGET, (_U,)),
    (_V, Event.IMPLAUSIBLE_RST): Rule(Action.IGNORE, (_V,)),
    (_V, Event.STRAY): Rule(Action.IGNORE, (_V,)),
    (_V, Event.TIMEOUT): Rule(Action.FORGET, (_U,)),
    (_C, Event.SYN): Rule(Action.ANSWER_SYN, (_C,)),
    (_C, Event.ACK): Rule(Action.IGNORE, (_C,)),
    (_C, Event.KEEPALIVE): Rule(Action.ANSWER_PROBE, (_C,)),
    (_C, Event.PAYLOAD): Rule(Action.COLLECT, _DECIDED),
    (_C, Event.FIN): Rule(Action.IGNORE, (_C,)),
    (_C, Event.RST): Rule(Action.FORGET, (_U,)),
    (_C, Event.IMPLAUSIBLE_RST): Rule(Action.IGNORE, (_C,)),
    (_C, Event.STRAY): Rule(Action.IGNORE, (_C,)),
    (_C, Event.NEW_ACK): Rule(Action.IGNORE, (_C,)),
    (_C, Event.NEW_PAYLOAD): Rule(Action.START_OVER, _DECIDED),
    (_C, Event.TIMEOUT): Rule(Action.GIVE_UP_KEY, _DECIDED),
    (_E, Event.SYN): Rule(Action.CONTEST, (_E,)),
    (_E, Event.AGAIN): Rule(Action.HAND_OFF_AGAIN, (_E,)),
    (_E, Event.SEGMENT): Rule(Action.FORWARD, (_E,)),
    (_E, Event.NEW_ACK): Rule(Action.IGNORE, (_E,)),
    (_E, Event.NEW_PAYLOAD): Rule(Action.START_OVER, _DECIDED),
    (_E, Event.TIMEOUT): Rule(Action.FORGET, (_U,)),
    (_A, Event.SYN): Rule(Action.ANSWER_SYN, (_A,)),
    (_A, Event.SEGMENT): Rule(Action.ANSWER_AGAIN, (_A,)),
    (_A, Event.RST): Rule(Action.FORGET, (_U,)),
    (_A, Event.IMPLAUSIBLE_RST): Rule(Action.IGNORE, (_A,)),
    (_A, Event.NEW_ACK): Rule(Action.IGNORE, (_A,)),
    (_A, Event.NEW_PAYLOAD): Rule(Action.START_OVER, _DECIDED),
    (_A, Event.STRAY): Rule(Action.IGNORE, (_A,)),
    (_A, Event.TIMEOUT): Rule(Action.FORGET, (_U,)),
}
"""The pairs that can occur. Where several outcomes stand, the action decides."""
