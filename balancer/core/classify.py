"""Which event a segment is to the connection that it claims to belong to (`machine.Event`)."""

from typing import NamedTuple

from balancer.core.connection import Answered, Flow, Handshake
from balancer.core.connections import Connections
from balancer.core.handshake import Greeter
from balancer.core.machine import Event, State
from balancer.core.preamble import contiguous_end
from balancer.core.service import Service
from common.wire import handoff, seq, tcp
from common.wire.errors import WireError
from common.wire.offload import Packet
from common.wire.segment import FlowKey, Segment

NOBODY = Handshake(0, 0, 0, None, False, False)
"""Stands where a segment proves no handshake."""


class Arrival(NamedTuple):
    """A segment that has come, and what it was recognised as."""

    service: Service
    key: FlowKey
    packet: Packet
    segment: Segment
    state: State
    event: Event
    handshake: Handshake
    now: float


def check_flags(segment: Segment) -> None:
    """Raises `WireError` for combinations that no client's state allows (RFC 9293 section 3.10.7)."""
    flags = segment.flags
    if flags & tcp.SYN and flags & (tcp.ACK | tcp.FIN | tcp.RST):
        raise WireError("bad_flags")
    if flags & tcp.RST and flags & tcp.FIN:
        raise WireError("bad_flags")
    if not flags & (tcp.SYN | tcp.ACK | tcp.RST):
        raise WireError("bad_flags")


def classify(
    connections: Connections,
    greeter: Greeter,
    service: Service,
    packet: Packet,
    segment: Segment,
    now: float,
) -> Arrival:
    """``segment`` is ``packet`` parsed, to ``service``."""
    key = segment.key
    state = connections.state_of(key)
    event, handshake = _event_of(connections, greeter, state, segment, service.preamble_window, now)
    return Arrival(service, key, packet, segment, state, event, handshake, now)


def _event_of(
    connections: Connections, greeter: Greeter, state: State, segment: Segment, window: int, now: float
) -> tuple[Event, Handshake]:
    """``window`` is how many bytes a client may send before a node answers."""
    key = segment.key
    if segment.flags & tcp.SYN:
        return Event.SYN, NOBODY
    if (flow := connections.flows.get(key)) is not None:
        event, known = _of_flow(flow, segment, now), flow.handshake
        doubtful = now < flow.contested_until
    elif (answered := connections.answered.get(key)) is not None:
        event, known = _of_answered(answered, segment, window), answered.handshake
        doubtful = event is Event.STRAY
    else:
        collecting = connections.collecting.get(key)
        known = collecting.handshake if collecting else connections.verified.get(key) or NOBODY
        newest = contiguous_end(collecting) if collecting else known.first
        event = Event.STRAY if known is NOBODY else _of_preamble(known, newest, segment, window)
        doubtful = event is Event.STRAY
    newer = greeter.recognise(segment, now) if doubtful else None
    if newer is None or _is_same(newer, known):
        return event, known
    newer_event = _of_preamble(newer, newer.first, segment, window)
    if state in (State.ESTABLISHED, State.ANSWERED, State.COLLECTING):
        newer_event = _AS_NEWER.get(newer_event, event)
    return newer_event, newer


_AS_NEWER = {
    Event.PAYLOAD: Event.NEW_PAYLOAD,
    **dict.fromkeys((Event.ACK, Event.KEEPALIVE, Event.FIN, Event.RST, Event.IMPLAUSIBLE_RST), Event.NEW_ACK),
}


def _is_same(one: Handshake, other: Handshake) -> bool:
    return (one.client_isn, one.isn) == (other.client_isn, other.isn)


def _of_preamble(handshake: Handshake, newest: int, segment: Segment, window: int) -> Event:
    """Before anybody has answered the client, whose contiguous bytes reach to ``newest``."""
    at = seq.distance(handshake.first, segment.seq)
    if segment.flags & tcp.RST:
        return Event.RST if segment.seq in (handshake.first, newest) else Event.IMPLAUSIBLE_RST
    if segment.ack != handshake.acknowledged:
        return Event.STRAY
    if at == -1 and len(segment.payload) <= 1 and not segment.flags & tcp.FIN:
        return Event.KEEPALIVE
    if not 0 <= at <= window - len(segment.payload):
        return Event.STRAY
    if segment.length == 0:
        return Event.ACK
    return Event.PAYLOAD if segment.payload or at else Event.FIN


def _of_flow(flow: Flow, segment: Segment, now: float) -> Event:
    """A first payload that comes very late is data: a node that does not know the flow shall not begin it."""
    handshake = flow.handshake
    is_first = segment.seq == handshake.first and segment.ack == handshake.acknowledged
    is_late = now - flow.begun > handoff.MAX_AGE_SECONDS
    return Event.AGAIN if is_first and segment.payload and not is_late else Event.SEGMENT


def _of_answered(answered: Answered, segment: Segment, window: int) -> Event:
    acknowledged = answered.handshake.acknowledged
    if segment.flags & tcp.RST:
        return Event.RST if segment.seq == answered.next else Event.IMPLAUSIBLE_RST
    in_answer = seq.le(acknowledged, segment.ack) and seq.le(segment.ack, answered.closed)
    near = abs(seq.distance(answered.next, segment.seq)) <= window + len(segment.payload)
    return Event.SEGMENT if in_answer and near else Event.STRAY
