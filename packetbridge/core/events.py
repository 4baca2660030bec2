"""Which event of the state machine a segment is, given the flow it belongs to."""

from common.wire import seq, tcp, tcp_options
from common.wire.errors import WireError
from common.wire.segment import Segment
from packetbridge.core import splice
from packetbridge.core.flow import Flow
from packetbridge.core.machine import Event, State

_CONTROL = tcp.SYN | tcp.ACK | tcp.RST | tcp.FIN
_CLIENT_CONTROL = frozenset((tcp.ACK, tcp.ACK | tcp.FIN, tcp.RST, tcp.RST | tcp.ACK))
_BACKEND_CONTROL = _CLIENT_CONTROL | {tcp.SYN | tcp.ACK}


def of_client(flow: Flow | None, received: Segment) -> Event:
    """For a segment of the client that is no handoff. Raises WireError for flags that make no sense."""
    if received.flags & _CONTROL not in _CLIENT_CONTROL:
        raise WireError("absurd_flags")
    if received.flags & tcp.RST:
        in_order = flow is not None and received.seq == flow.client.next
        return Event.CLIENT_RST_IN_ORDER if in_order else Event.CLIENT_RST_ELSEWHERE
    if flow is not None and flow.state is State.ECHOING:
        echo = splice.echo_of(received)
        if echo is not None and seq.ge(seq.add(echo, -flow.splice.value_delta), flow.echoing.floor):
            return Event.NEW_ECHO
    return Event.CLIENT_SEGMENT


def of_backend(flow: Flow, received: Segment) -> Event:
    """Raises WireError for flags that make no sense."""
    if received.flags & _CONTROL not in _BACKEND_CONTROL:
        raise WireError("absurd_flags")
    acknowledges_syn = bool(received.flags & tcp.ACK) and received.ack == seq.add(flow.origin.client_isn, 1)
    if received.flags & tcp.RST:
        refused = flow.state is State.OPENING and acknowledges_syn
        return Event.BACKEND_REFUSAL if refused else Event.BACKEND_RST
    if not received.flags & tcp.SYN:
        return Event.BACKEND_SEGMENT
    if flow.state is State.OPENING:
        return _syn_ack_in_opening(flow, received, acknowledges_syn)
    if not acknowledges_syn:
        return Event.SYN_ACK_OF_OTHER
    return Event.SYN_ACK_AGAIN if received.seq == flow.backend_isn else Event.SYN_ACK_RENUMBERED


def _syn_ack_in_opening(flow: Flow, received: Segment, acknowledges_syn: bool) -> Event:
    begun = flow.opening
    if acknowledges_syn:
        if begun.handoff.timestamps is None:
            return Event.SYN_ACK
        said = tcp_options.syn_options(tcp_options.parse_untrusted(received.options))
        return Event.SYN_ACK_WITH_TIMESTAMPS if said.timestamps else Event.SYN_ACK_LACKS_TIMESTAMPS
    if begun.replaced_isn is not None and received.ack == seq.add(begun.replaced_isn, 1):
        return Event.SYN_ACK_OF_REPLACED
    return Event.SYN_ACK_OF_OTHER
