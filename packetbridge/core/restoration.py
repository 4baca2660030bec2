"""Taking up flows of an earlier packetbridge, on either data plane.

While there was none, replies left the node with the backend's address, and a RST that a client sent to that
address may still be on its way when the kernel is asked for the socket; and a probe may be lost. So each
restored flow is looked at again a few times.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from common.counters import Counters
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
from packetbridge.core.strangers import Strangers

VISIT_SECONDS = (1.0, 2.0)
"""How long after the restoration, and then after the visit before."""


class Table(NamedTuple):
    """A data plane's flows, as a restoration needs them."""

    knows: Callable[[FlowRecord], bool]
    """Whether any flow has the record's addresses and ports."""
    take_up: Callable[[Flow, float], bool]
    """False where the flow's place is taken, or there is no room."""
    end: Callable[[FlowRecord, float], bool]
    """Leaves a tombstone. False where the flow is not spliced, or is of another connection."""
    bury: Callable[[FlowRecord, float], None]
    """Leave a tombstone of a flow that there is not."""
    forget: Callable[[FlowKey], None]
    """The record is of no use to a later restoration."""


class Restoration:
    def __init__(
        self, services: Mapping[int, Service], table: Table, strangers: Strangers, counters: Counters[str]
    ) -> None:
        """``services`` by their VIP's index; they may change."""
        self._services = services
        self._table = table
        self._strangers = strangers
        self._counters = counters
        self._records: dict[FlowKey, tuple[FlowRecord, int]] = {}
        """Those that are to be visited, after so many visits."""
        self._probed: set[FlowKey] = set()
        """Of these, those that were lost at some time."""
        self._deadlines: Deadlines[FlowKey] = Deadlines(resolution=0.5)

    def restore(self, saved: FlowRecord, now: float, socket_exists: bool) -> list[Packet]:
        """Take up a flow of an earlier life, if the kernel has a socket for it.

        Where it has none the client is made to show itself, so that its answer gets an exact RST. What
        no longer fits the services or the tables is counted and left out.
        """
        served = self._services.get(saved.vip_index)
        if served is None or not self._is_served(saved):
            self._counters["restored_of_unknown_service"] += 1
            if not socket_exists:
                self._table.forget(saved.key)
            return []
        if not socket_exists:
            self._counters["restored_without_socket"] += 1
            self._table.bury(saved, now)
            self._plan(saved, now, 0)
            return self._probe(saved, now)
        if not self._table.take_up(flow_of(served, saved, now), now):
            self._counters["restored_in_vain"] += 1
            return []
        self._counters["restored"] += 1
        self._plan(saved, now, 0)
        return []

    def due(self, now: float) -> list[FlowKey]:
        """Flows for whose sockets the kernel is to be asked again."""
        return self._deadlines.due(now)

    def visit(self, key: FlowKey, exists: bool, now: float) -> list[Packet] | None:
        """The kernel's answer, and what to send then; None where no visit of this flow is to come.

        A restored flow whose socket has died since is lost, too; a probe that was lost is repeated.
        """
        if key not in self._records:
            return None
        saved, visits = self._records.pop(key)
        self._probed.discard(key)
        if not self._is_served(saved):
            self._table.forget(key)
            return []
        self._plan(saved, now, visits + 1)
        if not self._table.knows(saved):
            if key not in self._records:
                self._table.forget(key)
            return self._probe(saved, now) if self._strangers.expects(key) else []
        if exists or not self._table.end(saved, now):
            return []
        self._counters["restored_in_vain"] += 1
        return self._probe(saved, now)

    def lost(self) -> list[FlowRecord]:
        """Those without flow whose clients are still to be probed: another restoration may have to do it."""
        probed = [self._records[key][0] for key in self._probed]
        return [saved for saved in probed if self._is_served(saved) and not self._table.knows(saved)]

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def _is_served(self, saved: FlowRecord) -> bool:
        served = self._services.get(saved.vip_index)
        return served is not None and saved.is_of(served)

    def _plan(self, saved: FlowRecord, now: float, visits: int) -> None:
        """The next visit, after so many."""
        if visits < len(VISIT_SECONDS):
            self._records[saved.key] = (saved, visits)
            self._deadlines.set(saved.key, now + VISIT_SECONDS[visits])

    def _probe(self, saved: FlowRecord, now: float) -> list[Packet]:
        self._strangers.expect(saved.key, now)
        if saved.key in self._records:
            self._probed.add(saved.key)
        return [probe(self._services[saved.vip_index], saved)]


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
