"""The backend leg's handshake, opened as the client would have opened it (RFC 9293 section 3.5).

The SYN repeats what the client negotiated: its ISN, MSS, window scale, SACK-permitted and TSval. The
handoff's payload and whatever the client sends meanwhile wait for the SYN-ACK and then end the handshake. The
client's retransmissions serve as the timer of the SYN.
"""

from common.tcp import reset
from common.tcp.activity import Activity
from common.wire import segment, seq, tcp, tcp_options
from common.wire.handoff import Handoff
from common.wire.offload import Packet
from common.wire.segment import Segment
from common.wire.tcp_options import SynOptions, Timestamps
from packetbridge.core.admission import Admitted
from packetbridge.core.flow import Flow, Opening, pack_origin
from packetbridge.core.machine import State
from packetbridge.core.service import Service
from packetbridge.core.step import Received

MAX_RETRIES = 3
"""How often an older connection on the backend is reset for one flow."""


def begin(service: Service, admitted: Admitted, first: Received, replaced: Flow | None, now: float) -> Flow:
    """A new flow whose ``first`` segment waits, in the place of ``replaced``."""
    offered, origin = admitted
    packet, received = first
    client = Activity(received.seq, now)
    client.observe(received, now)
    replaced_isn = replaced.origin.client_isn if replaced else None
    return Flow(
        service=service,
        key=service.backend_key(offered.client, offered.client_port),
        packed_origin=pack_origin(origin),
        state=State.OPENING,
        client=client,
        backend=Activity(0, now),
        to_backend=None,
        to_client=None,
        prelude=Opening(offered._replace(payload=b""), (packet,), len(packet.data), replaced_isn),
    )


def first_segment(handoff: Handoff, received: Segment) -> Segment:
    """The client's segment that the handoff ``received`` was made from."""
    scale = handoff.window_scale or 0
    made = received._replace(
        seq=seq.add(handoff.seq, 1),
        ack=seq.add(handoff.ack, 1),
        flags=tcp.ACK | tcp.PSH | (tcp.FIN if handoff.fin else 0),
        window=handoff.window >> scale,
        options=tcp_options.emit_timestamps(handoff.timestamps),
    )
    return segment.with_checksum_of(made, received)


def syn(flow: Flow) -> Packet:
    handoff = flow.opening.handoff
    stamps = Timestamps(handoff.timestamps.value, 0) if handoff.timestamps else None
    said = SynOptions(handoff.mss, handoff.window_scale, handoff.sack_permitted, stamps)
    options = tcp_options.emit_syn(said)
    asking = _to_backend(flow, flow.origin.client_isn, tcp.SYN)
    return segment.emit(asking._replace(window=handoff.window, options=options))


def handshake_ack(flow: Flow, syn_ack: Segment) -> Packet:
    """What the backend that repeats its SYN-ACK waits for.

    How large the client's window is is not known here. It is said to be 0, because a larger one than the
    client's would stand until the client's acknowledgment moves on.
    """
    said = tcp_options.syn_options(tcp_options.parse_untrusted(syn_ack.options))
    stamps = Timestamps(said.timestamps.echo, said.timestamps.value) if said.timestamps else None
    answer = _to_backend(flow, syn_ack.ack, tcp.ACK)
    options = tcp_options.emit_timestamps(stamps)
    return segment.emit(answer._replace(ack=seq.add(syn_ack.seq, 1), options=options))


def abort(flow: Flow) -> Packet:
    """The client's RST, for a backend that has seen no more than the SYN."""
    return segment.emit(_to_backend(flow, seq.add(flow.origin.client_isn, 1), tcp.RST))


def answer_with_reset(received: Segment) -> list[Packet]:
    """What a client in SYN-SENT answers to a segment of an older connection (RFC 9293 section 3.10.7.3)."""
    answer = reset.answer(received)
    return [segment.emit(answer)] if answer else []


def refusal(flow: Flow) -> Packet:
    """The RST that tells the client, in the VIP's name, that nobody serves it."""
    origin = flow.origin
    return segment.emit(
        to_client(flow, seq.add(origin.balancer_isn, 1), seq.add(origin.client_isn, 1), tcp.RST | tcp.ACK)
    )


def to_client(flow: Flow, number: int, acknowledged: int, flags: int) -> Segment:
    """A segment of our own in the VIP's name, numbered as the client knows it."""
    client, client_port = _client(flow)
    service = flow.service
    return Segment(service.vip, client, service.vip_port, client_port, number, acknowledged, flags, window=0)


def _to_backend(flow: Flow, number: int, flags: int) -> Segment:
    client, client_port = _client(flow)
    service = flow.service
    return Segment(client, service.backend, client_port, service.backend_port, number, 0, flags, window=0)


def _client(flow: Flow) -> tuple[bytes, int]:
    return flow.key[4:8], segment.key_ports(flow.key)[1]
