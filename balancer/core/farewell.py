"""How clients and nodes learn that flows have been forgotten (RFC 9293 sections 3.5.2 and 3.8.4).

Where the server's stream stands only its node knows, and a RST counts only there. So a client is made to
speak up: a segment with one byte from before its window, as in a keepalive probe, has it acknowledge what it
expects. That is a segment of an unknown flow, whose answer is a RST at this very number. The byte is
needed: Linux does not answer a bare ACK from before the window whose timestamp is too old.

A client that has heard nothing yet might be quicker than that, send its first payload again, and be given
another node, as its handshake still counts. It is where a RST can hit at once: behind the balancer's ISN.

The node, if it still hears, gets a RST of the client's at the sequence number that it expects next, as far as
the balancer has seen it, and its server is rid of the connection.
"""

from collections.abc import Callable, Iterable, Iterator

from balancer.core.connection import Flow
from balancer.core.handshake import clock_ticks
from common.tcp.activity import Phase
from common.wire import rewrite, syncookie, tcp, tcp_options
from common.wire import segment as segments
from common.wire.offload import Packet
from common.wire.segment import FlowKey, Segment, key_ports
from common.wire.tcp_options import Timestamps

_TURNS = {Phase.OPEN: 0, Phase.FIN_AHEAD: 0, Phase.FINISHED: 1}


def farewells(
    flows: Iterable[tuple[FlowKey, Flow]], has_another: Callable[[FlowKey], bool], now: float
) -> Iterator[Packet]:
    """To clients and nodes of ``flows``, where a client may still speak first, since they may be sent slowly;
    none where it has reset its flow, or ``has_another`` by the time. ``flows`` is read at once, each packet
    made when it is asked for.
    """
    waiting = [(key, flow) for key, flow in flows if flow.activity.phase in _TURNS]
    waiting.sort(key=lambda entry: _TURNS[entry[1].activity.phase])
    return (packet for key, flow in waiting if not has_another(key) for packet in _farewells(key, flow, now))


def _farewells(key: FlowKey, flow: Flow, now: float) -> Iterator[Packet]:
    yield rewrite.applied(flow.node.plan, segments.emit(reset_of_client(key, flow)))
    for segment in farewell(key, flow, now):
        yield segments.emit(segment)


def reset_of_client(key: FlowKey, flow: Flow) -> Segment:
    """To the VIP, to be rewritten for the flow's node."""
    client_port, service_port = key_ports(key)
    return Segment(
        source=key[:4],
        destination=key[4:8],
        source_port=client_port,
        destination_port=service_port,
        seq=flow.activity.next,
        ack=0,
        flags=tcp.RST,
        window=0,
    )


def farewell(key: FlowKey, flow: Flow, now: float) -> Iterator[Segment]:
    """As the VIP, to the client of ``key``, which is client to VIP."""
    handshake = flow.handshake
    client_port, service_port = key_ports(key)
    reset = Segment(
        source=key[4:8],
        destination=key[:4],
        source_port=service_port,
        destination_port=client_port,
        seq=handshake.acknowledged,
        ack=0,
        flags=tcp.RST,
        window=0,
    )
    if now - flow.begun < syncookie.LIFETIME_SECONDS:
        yield reset
    stamps = Timestamps(clock_ticks(now), 0) if handshake.timestamps else None
    yield reset._replace(
        seq=handshake.isn,
        ack=handshake.first,
        flags=tcp.ACK,
        options=tcp_options.emit_timestamps(stamps),
        payload=b"\0",
    )
