"""The life of a flow on the node, as a table.

    UNKNOWN      there is no entry
    OPENING      a valid handoff came; the backend's SYN-ACK has not
    ECHOING      spliced, but the client still echoes a TSval of the balancer, which the backend never sent
    ESTABLISHED  spliced: packets are rewritten by plan
    ENDED        only a tombstone is left

FIN and RST do not stand here: what they do to a flow's idle time is `common.tcp.activity`. The engine works
out the event, runs the rule's action (`actions`), and then brings tables, tombstones and journal to the next
state. A pair that is not listed cannot come about; it would be counted as "event_out_of_place".
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import NamedTuple


class State(Enum):
    UNKNOWN = auto()
    OPENING = auto()
    ECHOING = auto()
    ESTABLISHED = auto()
    ENDED = auto()


class Event(Enum):
    HANDOFF = auto()
    """Valid, of an unknown flow."""
    SAME_HANDOFF = auto()
    """Of this very connection: the client's first payload again."""
    NEWER_HANDOFF = auto()
    """Of a later connection with the same addresses and ports."""
    OLDER_HANDOFF = auto()
    REPLAYED_HANDOFF = auto()
    """Of a connection that has ended: there is a tombstone."""
    CLIENT_SEGMENT = auto()
    NEW_ECHO = auto()
    """A client's segment that echoes a TSval which came through the splice."""
    CLIENT_RST_IN_ORDER = auto()
    CLIENT_RST_ELSEWHERE = auto()
    SYN_ACK = auto()
    """Acknowledges the SYN of this flow; neither side uses timestamps."""
    SYN_ACK_WITH_TIMESTAMPS = auto()
    SYN_ACK_LACKS_TIMESTAMPS = auto()
    """The client uses timestamps, the backend does not."""
    SYN_ACK_AGAIN = auto()
    """The backend has not taken the handshake's end, its accept queue being full."""
    SYN_ACK_RENUMBERED = auto()
    """Answers our SYN with another ISN than the one that is spliced."""
    SYN_ACK_OF_REPLACED = auto()
    """Acknowledges the SYN of the flow that this one replaced."""
    SYN_ACK_OF_OTHER = auto()
    """Acknowledges what we never sent: a direct connection has these addresses and ports."""
    BACKEND_SEGMENT = auto()
    BACKEND_REFUSAL = auto()
    """RST that acknowledges our SYN: the port is closed."""
    BACKEND_RST = auto()
    IDLE = auto()
    IDLE_CLOSED = auto()
    """Idle after both sides have finished."""
    SOCKET_EXISTS = auto()
    SOCKET_GONE = auto()


class Rule(NamedTuple):
    next: State
    action: str
    """A name in `actions.ACTIONS`."""


_SPLICED: Mapping[Event, Rule] = {
    Event.NEWER_HANDOFF: Rule(State.OPENING, "open"),
    Event.SYN_ACK_OF_OTHER: Rule(State.ENDED, "pass_untouched"),
    Event.BACKEND_RST: Rule(State.ENDED, "forward_to_client"),
    Event.IDLE_CLOSED: Rule(State.ENDED, "ignore"),
    Event.SOCKET_GONE: Rule(State.ENDED, "ignore"),
}
"""How a spliced flow ends, with a last echo of the balancer's TSval or without."""


def _spliced(state: State, forward: str) -> dict[tuple[State, Event], Rule]:
    stays = {
        Event.SAME_HANDOFF: forward,
        Event.OLDER_HANDOFF: "ignore",
        Event.REPLAYED_HANDOFF: "ignore",
        Event.CLIENT_SEGMENT: forward,
        Event.CLIENT_RST_IN_ORDER: forward,
        Event.CLIENT_RST_ELSEWHERE: forward,
        Event.SYN_ACK_AGAIN: "acknowledge_backend",
        Event.SYN_ACK_RENUMBERED: "reset_backend",
        Event.BACKEND_SEGMENT: "forward_to_client",
        Event.IDLE: "ask_kernel",
        Event.SOCKET_EXISTS: "revive",
    }
    kept = {(state, event): Rule(state, action) for event, action in stays.items()}
    return kept | {(state, event): rule for event, rule in _SPLICED.items()}


RULES: Mapping[tuple[State, Event], Rule] = {
    (State.UNKNOWN, Event.HANDOFF): Rule(State.OPENING, "open"),
    (State.UNKNOWN, Event.REPLAYED_HANDOFF): Rule(State.UNKNOWN, "ignore"),
    (State.UNKNOWN, Event.CLIENT_SEGMENT): Rule(State.UNKNOWN, "remember_stranger"),
    (State.UNKNOWN, Event.CLIENT_RST_ELSEWHERE): Rule(State.UNKNOWN, "ignore"),
    (State.OPENING, Event.SAME_HANDOFF): Rule(State.OPENING, "send_syn_again"),
    (State.OPENING, Event.NEWER_HANDOFF): Rule(State.OPENING, "open"),
    (State.OPENING, Event.OLDER_HANDOFF): Rule(State.OPENING, "ignore"),
    (State.OPENING, Event.REPLAYED_HANDOFF): Rule(State.OPENING, "ignore"),
    (State.OPENING, Event.CLIENT_SEGMENT): Rule(State.OPENING, "let_wait"),
    (State.OPENING, Event.CLIENT_RST_IN_ORDER): Rule(State.ENDED, "abort_opening"),
    (State.OPENING, Event.CLIENT_RST_ELSEWHERE): Rule(State.OPENING, "ignore"),
    (State.OPENING, Event.SYN_ACK): Rule(State.ESTABLISHED, "splice"),
    (State.OPENING, Event.SYN_ACK_WITH_TIMESTAMPS): Rule(State.ECHOING, "splice"),
    (State.OPENING, Event.SYN_ACK_LACKS_TIMESTAMPS): Rule(State.ENDED, "reset_both"),
    (State.OPENING, Event.SYN_ACK_OF_REPLACED): Rule(State.OPENING, "reset_and_retry"),
    # Nothing was delivered, so no tombstone: the client's retransmission may try again.
    (State.OPENING, Event.SYN_ACK_OF_OTHER): Rule(State.UNKNOWN, "pass_untouched"),
    (State.OPENING, Event.BACKEND_SEGMENT): Rule(State.OPENING, "reset_and_retry"),
    (State.OPENING, Event.BACKEND_REFUSAL): Rule(State.ENDED, "refuse_client"),
    (State.OPENING, Event.BACKEND_RST): Rule(State.OPENING, "ignore"),
    (State.OPENING, Event.IDLE): Rule(State.UNKNOWN, "ignore"),
    **_spliced(State.ECHOING, "forward_with_known_echo"),
    (State.ECHOING, Event.NEW_ECHO): Rule(State.ESTABLISHED, "settle"),
    **_spliced(State.ESTABLISHED, "forward_to_backend"),
}
