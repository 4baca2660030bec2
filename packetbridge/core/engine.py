"""The packetbridge's core: the tables of flows, and the two ways of a packet through them.

A packet of an established flow costs one look into a table and gets its rewrite plan. Every other one is
parsed, turned into an event of its flow (`events`), and run through the state machine (`machine`, `actions`).

From the balancer (client to bridge, DSCP = VIP index) a flow is looked up in its service's table, as one
client port may talk to two VIPs of one bridge. From the backend one table serves all services.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from common.counters import Counters
from common.deadlines import Deadlines, earliest
from common.reports import FlowReport
from common.tcp.activity import REACH, Phase
from common.wire import dscp, ipv4, segment, seq, tcp
from common.wire.buffer import Buffer
from common.wire.errors import WireError
from common.wire.handoff import Handoff
from common.wire.offload import Packet
from common.wire.plain import payload_size
from common.wire.rewrite import Rewrite
from common.wire.segment import FLOW_KEY_AT, FlowKey, Segment
from packetbridge.core import departure, events, icmp_passage, opening, record, report, rounds, service
from packetbridge.core.actions import ACTIONS
from packetbridge.core.admission import Admission, Admitted
from packetbridge.core.flow import Flow
from packetbridge.core.flows import Flows
from packetbridge.core.machine import RULES, Event, State
from packetbridge.core.record import Ended, FlowRecord, JournalEvent, Opened
from packetbridge.core.restoration import Restoration, Table
from packetbridge.core.rounds import Rounds
from packetbridge.core.service import Limits, Service, Timeouts
from packetbridge.core.step import Received, Step
from packetbridge.core.strangers import Strangers

QUESTION_SECONDS = 10.0
"""How long the kernel's answer may take before it is asked again."""

_KEY_AND_SEQ = struct.Struct(">12sI")
_MASK = seq.MODULUS - 1
_SPLICED = (State.ECHOING, State.ESTABLISHED)


class Due(NamedTuple):
    packets: list[Packet]
    questions: list[FlowKey]
    """Flows, backend to client: has the kernel still a socket? To be answered by `socket_exists`."""


class PacketbridgeCore:
    """All packets that it hands out go to the TUN; their destination says where they leave."""

    def __init__(
        self,
        services: Sequence[Service],
        verify: Callable[[Handoff], bool],
        wall_clock: Callable[[], int],
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """``verify`` checks a handoff's tag; ``wall_clock`` gives seconds since the epoch.

        Raises ValueError where two services have one index or one backend.
        """
        service.check(services)
        self.counters: Counters[str] = Counters()
        """Events of the state machine, and reasons for which packets were dropped."""
        self.bytes_to_backends = self.bytes_to_clients = 0
        """IP bytes of what went by plan; those of other packets are in `counters`, by these names."""
        self.journal: list[JournalEvent] = []
        """What became of established flows since the shell last emptied it."""
        self._limits = limits or Limits()
        self._timeouts = timeouts or Timeouts()
        self._wall_clock = wall_clock
        self._services = {served.vip_index: served for served in services}
        self._flows = Flows(self._limits.flows)
        self._admission = Admission(verify, wall_clock, self._limits.tombstones)
        self._strangers = Strangers(self._limits.strangers, self._limits.resets_per_second, self.counters)
        self._restoration = Restoration(self._services, self._table(), self._strangers, self.counters)
        self._idle: Deadlines[FlowKey] = Deadlines(resolution=1.0)
        self._rounds = Rounds()

    @property
    def sizes(self) -> dict[str, int]:
        """How much is remembered at the moment."""
        return {
            "flows": len(self._flows),
            "tombstones": len(self._admission),
            "strangers": len(self._strangers),
            "waiting_bytes": self._flows.waiting_bytes,
        }

    @property
    def counts(self) -> Counters[str]:
        """All `counters`."""
        by_plan = {"bytes_to_backends": self.bytes_to_backends, "bytes_to_clients": self.bytes_to_clients}
        counts = Counters(self.counters)
        counts.update(by_plan)
        return counts

    # --- what is served

    def serve(self, services: Sequence[Service], now: float) -> int:
        """Serve these from now on. Flows of all others are forgotten; returns how many were not over.

        Raises ValueError as the constructor; then nothing was changed.
        """
        service.check(services)
        open_before = sum(self._flows.open_of_vips)
        kept = set(services)
        for flow in self._flows.all():
            if flow.service not in kept:
                self._remove(flow, now)
        self._services.clear()
        self._services.update({served.vip_index: served for served in services})
        return open_before - sum(self._flows.open_of_vips)

    def flows_of_vips(self) -> dict[int, int]:
        """By VIP index, how many flows there are that are not over."""
        return {index: self._flows.open_of_vips[index] for index in self._services}

    def flows(self, now: float) -> Iterator[FlowReport]:
        wall_seconds = self._wall_clock()
        return (report.of(flow, now, wall_seconds) for flow in self._flows.all())

    def find(self, client: bytes, client_port: int, vip_index: int, now: float) -> FlowReport | None:
        served = self._services.get(vip_index)
        flow = self._flows.of_backend(served.backend_key(client, client_port)) if served else None
        return report.of(flow, now, self._wall_clock()) if flow else None

    # --- the hot paths

    def plan_from_balancer(self, buffer: Buffer, at: int, length: int, now: float) -> Rewrite | None:
        """The plan for the packet of ``length`` bytes at ``at``; None where `from_balancer` must see it."""
        payload = payload_size(buffer, at, length)
        if payload is None:
            return None
        key, start = _KEY_AND_SEQ.unpack_from(buffer, at + FLOW_KEY_AT)
        flow = self._flows.of_client[buffer[at + 1] >> 2](key)
        if flow is None:
            return None
        plan, client = flow.to_backend, flow.client
        if plan is None or client.phase is not Phase.OPEN:
            return None
        client.seen = now
        self.bytes_to_backends += length
        end = start + payload & _MASK
        if end - client.next & _MASK < REACH:
            client.next = end
        return plan

    def plan_from_backend(self, buffer: Buffer, at: int, length: int, now: float) -> Rewrite | None:
        """The plan for the packet of ``length`` bytes at ``at``; None where `from_backend` must see it."""
        payload = payload_size(buffer, at, length)
        if payload is None:
            return None
        key, start = _KEY_AND_SEQ.unpack_from(buffer, at + FLOW_KEY_AT)
        flow = self._flows.of_backend(key)
        if flow is None:
            return None
        plan, backend = flow.to_client, flow.backend
        if plan is None or backend.phase is not Phase.OPEN:
            return None
        backend.seen = now
        self.bytes_to_clients += length
        end = start + payload & _MASK
        if end - backend.next & _MASK < REACH:
            backend.next = end
        return plan

    # --- packets that need more than a plan

    def from_balancer(self, packet: Packet, now: float) -> list[Packet]:
        """What follows from a tagged packet. What is not as it should be is counted and dropped."""
        try:
            if ipv4.carries(packet.data, ipv4.PROTOCOL_ICMP):
                return self._icmp(packet)
            return self._client(Received(packet, segment.parse_untrusted(packet)), now)
        except WireError as error:
            self.counters[error.reason] += 1
            return []

    def from_backend(self, packet: Packet, now: float) -> list[Packet]:
        """What follows from a packet of the backend's address; untouched where no flow of ours has it."""
        try:
            key = departure.key_of(packet.data)
            flow = self._flows.of_backend(key) if key else None
            if flow is None:
                return [packet]
            if ipv4.carries(packet.data, ipv4.PROTOCOL_ICMP):
                raise WireError("icmp_from_backend")
            received = Received(packet, segment.parse_untrusted(packet))
            event = events.of_backend(flow, received.segment)
            return self._run(event, flow, self._step(flow, received, now))
        except WireError as error:
            self.counters[error.reason] += 1
            return []

    def _client(self, received: Received, now: float) -> list[Packet]:
        came = received.segment
        served = self._served(came.tos, came.destination)
        if came.destination_port != served.vip_port:
            raise WireError("wrong_port")
        if came.flags & tcp.SYN:
            if came.flags != tcp.SYN:
                raise WireError("absurd_flags")
            return self._handoff(served, came, now)
        flow = self._flows.of_client[served.vip_index](came.key)
        event = events.of_client(flow, came)
        step = self._step(flow, received, now)
        packets = self._run(event, flow, step)
        if step.is_stranger:
            key = served.backend_key(came.source, came.source_port)
            packets += self._strangers.meet(key, served, came, now)
        return packets

    def _handoff(self, served: Service, came: Segment, now: float) -> list[Packet]:
        admitted = self._admission.admit(came)
        first = opening.first_segment(admitted.handoff, came)
        received = Received(segment.emit(first), first)
        known = self._flows.of_client[served.vip_index](admitted.handoff.key)
        event = self._handoff_event(served, known, admitted, now)
        step = self._step(known, received, now)
        if event in (Event.HANDOFF, Event.NEWER_HANDOFF):
            self._make_room(known, len(received.packet.data), now)
            step.flow = opening.begin(served, admitted, received, known, now)
        packets = self._run(event, known, step)
        if known is None and event is Event.REPLAYED_HANDOFF:
            packets += self._refuse_replay(served, admitted, first, now)
        return packets

    def _refuse_replay(self, served: Service, admitted: Admitted, first: Segment, now: float) -> list[Packet]:
        """The server gets nothing. A client that still asks has lost the RST that ended its flow."""
        offered, origin = admitted
        self._admission.bury(served.backend_key(offered.client, offered.client_port), origin, now)
        return self._strangers.reset(served, first, now)

    def _handoff_event(self, served: Service, known: Flow | None, admitted: Admitted, now: float) -> Event:
        offered, origin = admitted
        if known is not None and known.origin.is_same(origin):
            return Event.SAME_HANDOFF
        key = served.backend_key(offered.client, offered.client_port)
        if self._admission.is_buried(key, origin, now):
            return Event.REPLAYED_HANDOFF
        if known is None:
            return Event.HANDOFF
        return Event.OLDER_HANDOFF if origin.time < known.origin.time else Event.NEWER_HANDOFF

    def _make_room(self, replaced: Flow | None, waiting_bytes: int, now: float) -> None:
        """For one more flow, or one in the place of another; raises WireError where there is none."""
        freed = replaced.waiting_bytes if replaced else 0
        if self._flows.waiting_bytes - freed + waiting_bytes > self._limits.waiting_in_all:
            raise WireError("waiting_full")
        if replaced is None and len(self._flows) >= self._flows.capacity:
            closed = self._flows.longest_closed()
            if closed is None:
                raise WireError("flows_full")
            self._remove(closed, now)

    def _icmp(self, packet: Packet) -> list[Packet]:
        header, error = icmp_passage.parse_untrusted(packet)
        served = self._served(header.tos, header.destination)
        flow = self._flows.of_backend(icmp_passage.backend_key(served, error))
        if flow is None or flow.state not in _SPLICED:
            raise WireError("icmp_of_unknown_flow")
        self.counters["icmp_passed"] += 1
        return [icmp_passage.to_backend(header, error, served, flow.splice.seq_delta)]

    def _served(self, tos: int, destination: bytes) -> Service:
        served = self._services.get(dscp.index_of(tos))
        if served is None:
            raise WireError("unknown_dscp")
        if destination != served.bridge:
            raise WireError("wrong_destination")
        return served

    # --- time

    def next_deadline(self) -> float | None:
        """When `on_timeout` has something to do."""
        return earliest(
            self._idle.next(),
            self._rounds.next_deadline(),
            self._strangers.next_deadline(),
            self._restoration.next_deadline(),
        )

    def on_timeout(self, now: float) -> Due:
        due = Due(self._strangers.due(now), self._restoration.due(now))
        for key in self._rounds.due(now):
            if flow := self._flows.of_backend(key):
                self._rounds.add(key, now)
                self._set_idle(flow, flow.idle_deadline(self._timeouts), now)
        for key in self._idle.due(now):
            flow = self._flows.of_backend(key)
            if flow is None:
                continue
            if (deadline := flow.idle_deadline(self._timeouts)) > now:
                self._set_idle(flow, deadline, now)
                continue
            step = self._step(flow, None, now)
            self._run(Event.IDLE_CLOSED if flow.is_closed else Event.IDLE, flow, step)
            if step.is_question:
                due.questions.append(key)
        return due

    def socket_exists(self, key: FlowKey, exists: bool, now: float) -> list[Packet]:
        """The kernel's answer to a question of `on_timeout`. Returns packets to send."""
        packets = self._restoration.visit(key, exists, now)
        if packets is not None:
            return packets
        flow = self._flows.of_backend(key)
        if flow is None or flow.state not in _SPLICED or flow.idle_deadline(self._timeouts) > now:
            return []
        event = Event.SOCKET_EXISTS if exists else Event.SOCKET_GONE
        return self._run(event, flow, self._step(flow, None, now))

    # --- what outlives the process

    def restore(self, saved: FlowRecord, now: float, socket_exists: bool) -> list[Packet]:
        """As `Restoration.restore`."""
        return self._restoration.restore(saved, now, socket_exists)

    def _table(self) -> Table:
        return Table(
            knows=lambda saved: self._flows.of_backend(saved.key) is not None,
            take_up=self._take_up,
            end=self._end,
            bury=lambda saved, now: self._admission.bury(saved.key, saved.origin, now),
            forget=lambda key: self.journal.append(Ended(key)),
        )

    def _take_up(self, flow: Flow, now: float) -> bool:
        if self._flows.of_backend(flow.key) or len(self._flows) >= self._flows.capacity:
            return False
        self._flows.put(flow, None)
        self._rounds.add(flow.key, now)
        return True

    def _end(self, saved: FlowRecord, now: float) -> bool:
        flow = self._flows.of_backend(saved.key)
        if flow is None or flow.state not in _SPLICED or not flow.origin.is_same(saved.origin):
            return False
        self._run(Event.SOCKET_GONE, flow, self._step(flow, None, now))
        return True

    # --- the state machine

    def _step(self, flow: Flow | None, received: Received | None, now: float) -> Step:
        waiting = flow.waiting_bytes if flow else 0
        room = min(
            self._limits.waiting_per_flow - waiting,
            self._limits.waiting_in_all - self._flows.waiting_bytes,
        )
        return Step(flow, received, now, self.counters, room)

    def _run(self, event: Event, flow: Flow | None, step: Step) -> list[Packet]:
        """Run the rule for ``event`` of ``flow``; afterwards the tables are in the rule's next state."""
        rule = RULES.get((flow.state if flow else State.UNKNOWN, event))
        if rule is None:
            self.counters["event_out_of_place"] += 1
            return []
        self.counters[event.name.lower()] += 1
        ACTIONS[rule.action](step)
        if rule.next in (State.UNKNOWN, State.ENDED):
            if flow is not None:
                self._remove(flow, step.now, leaves_tombstone=rule.next is State.ENDED)
        else:
            self._keep(step, flow, rule.next)
        return step.packets

    def _keep(self, step: Step, before: Flow | None, state: State) -> None:
        """Bring tables, tombstones, journal and timers to the flow that the step left."""
        flow, now = step.flow, step.now
        if flow.state is not state:
            flow = flow._replace(state=state)
        if flow is not before:
            self._flows.put(flow, before)
        if before is None:
            self._strangers.forget(flow.key)
            self._rounds.add(flow.key, now)
        elif not before.origin.is_same(flow.origin):
            self._bury(before, now)
        if state in _SPLICED and (before is None or before.state is State.OPENING):
            self.journal.append(Opened(record.of(flow)))
        self._flows.note_phases(flow)
        deadline = now + QUESTION_SECONDS if step.is_question else flow.idle_deadline(self._timeouts)
        self._set_idle(flow, deadline, now)

    def _set_idle(self, flow: Flow, deadline: float, now: float) -> None:
        """See to the flow at ``deadline``; as long as that is far away, its rounds remember it."""
        if deadline > now + rounds.ROUND_SECONDS:
            self._idle.cancel(flow.key)
        else:
            self._idle.set(flow.key, deadline)

    def _remove(self, flow: Flow, now: float, *, leaves_tombstone: bool = True) -> None:
        self._flows.remove(flow)
        self._idle.cancel(flow.key)
        if leaves_tombstone:
            self._bury(flow, now)

    def _bury(self, flow: Flow, now: float) -> None:
        self._admission.bury(flow.key, flow.origin, now)
        if flow.state in _SPLICED:
            self.journal.append(Ended(flow.key))
