"""How clients learn that their flows have been forgotten (RFC 9293 sections 3.5.2 and 3.8.4).

Where the server's stream stands only its node knows, and a RST counts only there. So a client is made to
speak up: a segment with one byte from before its window, as in a keepalive probe, has it acknowledge what it
expects. That is a segment of an unknown flow, whose answer is a RST at this very number. The byte is
needed: Linux does not answer a bare ACK from before the window whose timestamp is too old.

A client that has heard nothing yet might be quicker than that, send its first payload again, and be given
another node, as its handshake still counts. It is where a RST can hit at once: behind the balancer's ISN.
"""

from collections.abc import Iterable, Iterator

from balancer.core.connection import Flow
from balancer.core.handshake import clock_ticks
from common.tcp.activity import Phase
from common.wire import segment as segments
from common.wire import syncookie, tcp, tcp_options
from common.wire.offload import Packet
from common.wire.segment import FlowKey, Segment, key_ports
from common.wire.tcp_options import Timestamps

_TURNS = {Phase.OPEN: 0, Phase.FIN_AHEAD: 0, Phase.FINISHED: 1}


def farewells(flows: Iterable[tuple[FlowKey, Flow]], now: float) -> list[Packet]:
    """To the clients of ``flows``, those that may still speak first, since they may be sent slowly; none to
    those that have reset their flow.
    """
    waiting = [(key, flow) for key, flow in flows if flow.activity.phase in _TURNS]
    waiting.sort(key=lambda entry: _TURNS[entry[1].activity.phase])
    return [segments.emit(segment) for key, flow in waiting for segment in farewell(key, flow, now)]


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
