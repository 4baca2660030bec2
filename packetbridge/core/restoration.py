"""Taking up flows of a packetbridge that was killed."""

from common.tcp.activity import Activity
from common.wire import segment, seq, tcp
from common.wire.offload import Packet
from common.wire.segment import Segment, key_ports
from packetbridge.core import splice
from packetbridge.core.flow import Echoing, Flow, pack_origin
from packetbridge.core.machine import State
from packetbridge.core.record import FlowRecord
from packetbridge.core.service import Service


def flow_of(service: Service, saved: FlowRecord, now: float) -> Flow:
    """The flow spliced as it was.

    How far the ends have got is not known; their first packets tell.
    """
    plans = splice.plans(service, saved.splice)
    floor, origin = saved.floor, saved.origin
    backend_isn = seq.add(origin.balancer_isn, -saved.splice.seq_delta)
    return Flow(
        service=service,
        key=saved.key,
        packed_origin=pack_origin(origin),
        state=State.ESTABLISHED if floor is None else State.ECHOING,
        client=Activity(seq.add(origin.client_isn, 1), now),
        backend=Activity(seq.add(backend_isn, 1), now),
        to_backend=plans.to_backend if floor is None else None,
        to_client=plans.to_client,
        prelude=None if floor is None else Echoing(plans.to_backend, floor),
    )


def probe(service: Service, saved: FlowRecord) -> Packet:
    """An ACK below the client's window, which makes it answer with what it expects (RFC 9293 3.10.7.4)."""
    origin = saved.origin
    return segment.emit(
        Segment(
            source=service.vip,
            destination=saved.key[4:8],
            source_port=service.vip_port,
            destination_port=key_ports(saved.key)[1],
            seq=origin.balancer_isn,
            ack=seq.add(origin.client_isn, 1),
            flags=tcp.ACK,
            window=0,
        )
    )
