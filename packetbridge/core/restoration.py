"""Taking up flows of a packetbridge that was killed.

While there was none, replies left the node with the backend's address, and a RST that a client sent to that
address may still be on its way when the kernel is asked for the socket; and a probe may be lost. So each
restored flow is looked at again a few times.
"""

from common.deadlines import Deadlines
from common.tcp.activity import Activity
from common.wire import segment, seq, tcp
from common.wire.offload import Packet
from common.wire.segment import FlowKey, Segment, key_ports
from packetbridge.core import splice
from packetbridge.core.flow import Echoing, Flow, pack_origin
from packetbridge.core.machine import State
from packetbridge.core.record import FlowRecord
from packetbridge.core.service import Service

VISIT_SECONDS = (1.0, 2.0)
"""How long after the restoration, and then after the visit before."""


class Revisits:
    """When to ask the kernel again for the sockets of restored flows."""

    def __init__(self) -> None:
        self._records: dict[FlowKey, tuple[FlowRecord, int]] = {}
        self._deadlines: Deadlines[FlowKey] = Deadlines(resolution=0.5)

    def plan(self, saved: FlowRecord, now: float, visits: int = 0) -> None:
        """The next visit, after so many."""
        if visits < len(VISIT_SECONDS):
            self._records[saved.key] = (saved, visits)
            self._deadlines.set(saved.key, now + VISIT_SECONDS[visits])

    def due(self, now: float) -> list[FlowKey]:
        return self._deadlines.due(now)

    def visit(self, key: FlowKey, now: float) -> FlowRecord | None:
        """The record, if the kernel's answer is one to a visit; the next visit is planned."""
        saved, visits = self._records.pop(key, (None, 0))
        if saved is not None:
            self.plan(saved, now, visits + 1)
        return saved

    def next_deadline(self) -> float | None:
        return self._deadlines.next()


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
