"""The balancer's core: packets and the time in, packets out.

The shell asks `BalancerCore.plan` first. A packet of an established flow has a plan, is rewritten in place
and sent; every other packet goes to `receive`, which finds the connection's state and the event that the
segment is to it, and carries out the rule that `machine.RULES` has for the two.
"""

from collections.abc import Callable, Iterable, Iterator

from balancer.core import handover, icmp_errors, preamble, refusal
from balancer.core.choice import Choice
from balancer.core.classify import Arrival, check_flags, classify
from balancer.core.connection import Answered, Collecting, Flow
from balancer.core.connections import Connections
from balancer.core.farewell import farewells
from balancer.core.flow_table import Tables, in_memory
from balancer.core.handshake import Greeter
from balancer.core.loads import CountedLoads, Loads
from balancer.core.machine import RULES, Action, State
from balancer.core.preamble import Verdict
from balancer.core.reports import connection_report, flow_report
from balancer.core.service import DEFAULT_TIMEOUTS, Limits, Service, Services, Timeouts
from common.counters import Counters
from common.deadlines import earliest
from common.limit import TokenBucket
from common.reports import FlowReport
from common.tables import TableFullError
from common.tcp import reset
from common.tcp.activity import REACH, Activity, Phase
from common.wire import ipv4, plain, rewrite, seq, syncookie
from common.wire import segment as segments
from common.wire.errors import WireError
from common.wire.handoff import Handoff
from common.wire.mac import Mac
from common.wire.offload import Packet
from common.wire.rewrite import Rewrite
from common.wire.segment import FlowKey, Segment

CONTESTED_SECONDS = syncookie.LIFETIME_SECONDS
"""After a SYN on a flow's 4-tuple: as long as the cookie that answered it may be good."""
_MASK = seq.MODULUS - 1


class BalancerCore:
    """All services' connections.

    ``services`` are the caller's; `serve` replaces them. ``mac`` keys the SYN cookies, ``sign`` puts key id
    and tag on a handoff, ``wall_clock`` gives seconds since the epoch. ``now`` is seconds of one monotonic
    clock throughout.
    """

    def __init__(
        self,
        services: Services,
        mac: Mac,
        sign: Callable[[Handoff], Handoff],
        wall_clock: Callable[[], int],
        limits: Limits | None = None,
        tables: Tables | None = None,
        loads: Loads | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """``tables`` and ``loads`` are in this process, if nothing else is said."""
        limits = limits or Limits()
        tables = tables or in_memory(limits, timeouts)
        self.services = services
        self.loads = loads or CountedLoads()
        self.bytes_to_nodes = 0
        """Of IP."""
        self._counters: Counters[str] = Counters()
        self._patience = timeouts.preamble
        self._sign = sign
        self._wall_clock = wall_clock
        self._greeter = Greeter(mac, tables.half_open)
        self._connections = Connections(limits, tables)
        self._find_flow = self._connections.flows.get
        self._resets = TokenBucket(limits.resets_per_second, limits.resets_per_second)
        self._actions: dict[Action, Callable[[Arrival], Iterable[Packet]]] = {
            Action.ANSWER_SYN: self._answer_syn,
            Action.REMEMBER: self._remember,
            Action.ANSWER_PROBE: self._answer_probe,
            Action.COLLECT: self._collect,
            Action.START_OVER: self._start_over,
            Action.CLOSE: self._close,
            Action.CONTEST: self._contest,
            Action.FORWARD: self._forward,
            Action.HAND_OFF_AGAIN: self._hand_off_again,
            Action.ANSWER_AGAIN: self._answer_again,
            Action.RESET: lambda arrival: self._reset(arrival.segment, arrival.now),
            Action.FORGET: self._forget,
            Action.IGNORE: lambda _: (),
        }
        self.serve(list(services))

    def plan(self, buffer: bytearray, at: int, length: int, now: float) -> Rewrite | None:
        """The plan for the packet whose IP header stands at ``at``, if it is ordinary data of a flow."""
        flow = self._find_flow(bytes(buffer[at + segments.FLOW_KEY_AT : at + segments.FLOW_KEY_END]))
        if flow is None or flow.plan is None:
            return None
        size = plain.payload_size(buffer, at, length)
        activity = flow.activity
        if size is None or activity.phase is not Phase.OPEN:
            return None
        start = int.from_bytes(buffer[at + 24 : at + 28], "big")
        if size and start == flow.handshake.first:
            return None
        end = start + size & _MASK
        if (end - activity.next) & _MASK < REACH:
            activity.next = end
        activity.seen = now
        self.bytes_to_nodes += length
        return flow.plan

    def receive(self, packet: Packet, now: float) -> list[Packet]:
        """Take any packet for the VIP. Returns packets to be routed by their destination."""
        packet = segments.without_padding(packet)
        try:
            if ipv4.carries(packet.data, ipv4.PROTOCOL_ICMP):
                return self._receive_icmp(packet)
            segment = segments.parse_untrusted(packet)
            check_flags(segment)
        except WireError as error:
            self._counters[f"dropped_{error.reason}"] += 1
            return []
        service = self.services.of_client(segment.key)
        if service is None:
            self._counters["dropped_no_service"] += 1
            return []
        arrival = classify(self._connections, self._greeter, service, packet, segment, now)
        action = RULES[arrival.state, arrival.event].action
        self._counters[action.value] += 1
        return list(self._actions[action](arrival))

    def next_deadline(self) -> float | None:
        """When `on_timeout` wants to be called, if at all."""
        return earliest(self._connections.next_deadline(), self._greeter.next_deadline())

    def on_timeout(self, now: float) -> list[Packet]:
        self._greeter.expire(now)
        packets: list[Packet] = []
        for key in self._connections.expire(now):
            collecting = self._connections.collecting.get(key)
            service = self.services.of_client(key)
            if collecting is not None and service is not None:
                self._counters[Action.GIVE_UP_KEY.value] += 1
                packets += self._give_up_key(service, key, collecting, now)
        return packets

    def owns(self, key: FlowKey) -> bool:
        """Whether the connection is in none of the tables that `Tables` has, but is the core's alone."""
        return self._connections.state_of(key) in (State.COLLECTING, State.ANSWERED)

    def serve(self, services: Iterable[Service]) -> int:
        """These from now on; `reload.refuse_changes` has not refused them.

        Flows stay on their nodes. Connections of a service that is gone are forgotten; returns how many of
        them were flows.
        """
        services = list(services)
        staying = {service.endpoint for service in services}
        gone = [service for service in self.services if service.endpoint not in staying]
        self.services.replace(services)
        forgotten = 0
        if gone:
            forgotten = self._connections.forget_services(gone)
            self._greeter.forget_services(gone)
        for service in gone:
            self.loads.forget(service.vip_index)
        for service in services:
            weights = {node.address: service.weights.get(node.address, 0) for node in service.nodes.values()}
            self.loads.configure(service.vip_index, weights, service.load_factor)
        return forgotten

    def forget_node(self, vip_index: int, node: bytes, now: float) -> Iterator[Packet]:
        """Forget all flows of a VIP index at ``node``, a bridge address, at once.

        What is returned has their clients reset, by what `receive` answers to them.
        """
        service, flows = self.services.of_index(vip_index), self._connections.flows
        forgotten = [
            (key, flow)
            for key, flow in flows.items()
            if flow.node.address == node and service is not None and service.has(key)
        ]
        for key, _ in forgotten:
            flows.delete(key)
        return farewells(forgotten, lambda key: flows.get(key) is not None, now)

    def flows(self, now: float) -> Iterator[FlowReport]:
        """All flows, while they may change."""
        for key, flow in self._connections.flows.items():
            service = self.services.of_client(key)
            if service is not None:
                yield flow_report(service, key, flow, now)

    def find(self, client: bytes, port: int, vip_index: int, now: float) -> FlowReport | None:
        """The connection of a client's address and port to a VIP index, which need have no node yet."""
        service = self.services.of_index(vip_index)
        if service is None:
            return None
        key = segments.flow_key(client, port, service.vip, service.port)
        return connection_report(service, key, self._connections, now)

    @property
    def counters(self) -> Counters[str]:
        """As they are now."""
        return Counters({**self._counters, "bytes_to_nodes": self.bytes_to_nodes})

    @property
    def sizes(self) -> dict[str, int]:
        """Entries of each table."""
        return {"half_open": len(self._greeter), **self._connections.sizes}

    # Handshake

    def _answer_syn(self, arrival: Arrival) -> Iterable[Packet]:
        if not segments.checksum_holds(arrival.segment):
            self._counters["dropped_bad_checksum"] += 1
            return
        yield segments.emit(self._greeter.answer_syn(arrival.service, arrival.segment, arrival.now))

    def _remember(self, arrival: Arrival) -> Iterable[Packet]:
        if self._connections.verified.put(arrival.key, arrival.handshake, arrival.now):
            self._greeter.forget(arrival.key, arrival.handshake)
        else:
            self._counters["verified_table_full"] += 1
        return ()

    def _answer_probe(self, arrival: Arrival) -> Iterable[Packet]:
        yield segments.emit(refusal.acknowledge_nothing(arrival.service, arrival.segment, arrival.handshake))

    def _contest(self, arrival: Arrival) -> Iterable[Packet]:
        """A SYN changes nothing, but what comes next may belong to another connection of the same 4-tuple."""
        flow = self._flow(arrival.key)
        contested = flow._replace(plan=None, contested_until=arrival.now + CONTESTED_SECONDS)
        self._connections.flows.replace(arrival.key, contested)
        return self._answer_syn(arrival)

    def _forget(self, arrival: Arrival) -> Iterable[Packet]:
        self._connections.forget(arrival.key)
        return ()

    # First payload

    def _start_over(self, arrival: Arrival) -> Iterable[Packet]:
        self._connections.forget(arrival.key)
        return self._collect(arrival)

    def _collect(self, arrival: Arrival) -> Iterable[Packet]:
        service, key, segment, now = arrival.service, arrival.key, arrival.segment, arrival.now
        known = self._connections.collecting.get(key) or Collecting(arrival.handshake)
        repeated = preamble.repeats(known, segment)
        collecting = preamble.extended(known, segment, now, self._patience)
        verdict = preamble.judge(service, self.loads, collecting)
        if verdict is None and collecting.prefix:
            if repeated:
                verdict = self._judge_unread(service, collecting, "key_unread_at_retransmission")
            elif preamble.is_complete(collecting, service.preamble_window):
                verdict = self._judge_unread(service, collecting, "key_unread_at_end")
        if verdict is not None:
            return self._carry_out(service, verdict, key, collecting, now)
        if repeated:  # while the stream's start is missing: nothing new
            return ()
        if len(collecting.segments) <= preamble.MAX_SEGMENTS and self._connections.hold(key, collecting):
            self._greeter.forget(key, collecting.handshake)
            return ()
        self._counters["preamble_no_room"] += 1
        if not collecting.prefix:
            return ()
        verdict = self._judge_unread(service, collecting, "key_unread_for_want_of_room")
        return self._carry_out(service, verdict, key, collecting, now)

    def _give_up_key(
        self, service: Service, key: FlowKey, collecting: Collecting, now: float
    ) -> Iterable[Packet]:
        if not collecting.prefix:
            self._connections.forget(key)
            return ()
        verdict = self._judge_unread(service, collecting, "key_unread_in_time")
        return self._carry_out(service, verdict, key, collecting, now)

    def _judge_unread(self, service: Service, collecting: Collecting, reason: str) -> Verdict:
        return preamble.judge_unread(service, self.loads, collecting, reason)

    def _carry_out(
        self, service: Service, verdict: Verdict, key: FlowKey, collecting: Collecting, now: float
    ) -> Iterable[Packet]:
        if verdict.reason:
            self._counters[verdict.reason] += 1
        last = collecting.segments[-1]
        handshake = collecting.handshake
        self._greeter.forget(key, handshake)
        if verdict.choice is not None:
            return self._establish(service, verdict.choice, key, collecting, now)
        if not all(segments.checksum_holds(segment) for segment in collecting.segments):
            self._counters["dropped_bad_checksum"] += 1
            self._connections.forget(key)
            return ()
        if verdict.answer:
            end = preamble.contiguous_end(collecting)
            return self._answer(service, key, last, Answered(handshake, verdict.answer, end), now)
        self._connections.forget(key)
        return self._reset(last, now)

    # Established

    def _establish(
        self, service: Service, choice: Choice, key: FlowKey, collecting: Collecting, now: float
    ) -> Iterable[Packet]:
        handshake, node = collecting.handshake, choice.node
        flow = Flow(handshake, node, Activity(handshake.first, now), now, node.plan)
        if self._greeter.awaits(key):
            flow = flow._replace(plan=None, contested_until=now + CONTESTED_SECONDS)
        try:
            kept = self._connections.establish(key, flow)
        except TableFullError:
            self._counters["flow_table_full"] += 1
            return self._carry_out(service, preamble.unavailable(collecting), key, collecting, now)
        if kept is flow:
            self.loads.count(service.vip_index, node.address)
            if choice.displaced:
                self._counters[choice.displaced] += 1
        return self._hand_off(service, key, kept, collecting.segments, now)

    def _hand_off(
        self, service: Service, key: FlowKey, flow: Flow, held: Iterable[Segment], now: float
    ) -> Iterable[Packet]:
        """The newest segment at the stream's start as handoff, the others behind it as they came."""
        first = flow.handshake.first
        starts = [segment for segment in held if segment.seq == first and segment.payload]
        others = [segment for segment in held if segment.seq != first]
        for segment in (*starts, *others):
            flow.activity.observe(segment, now)
        self._connections.flows.attend(key, flow)
        wall_seconds = self._wall_clock()
        parcel = handover.pack(service, flow.node, flow.handshake, starts[-1], self._sign, wall_seconds)
        if parcel is None:
            self._counters["dropped_bad_checksum"] += 1
            return
        self._counters["handoffs"] += 1
        yield self._to_node(segments.emit(parcel.handoff))
        for segment in (*parcel.rest, *others):
            yield self._to_node(rewrite.applied(flow.node.plan, segments.emit(segment)))

    def _hand_off_again(self, arrival: Arrival) -> Iterable[Packet]:
        key = arrival.key
        return self._hand_off(arrival.service, key, self._flow(key), (arrival.segment,), arrival.now)

    def _forward(self, arrival: Arrival) -> Iterable[Packet]:
        flow = self._flow(arrival.key)
        flow.activity.observe(arrival.segment, arrival.now)
        self._connections.flows.attend(arrival.key, flow)
        if flow.plan is None and arrival.now >= flow.contested_until:
            self._connections.flows.replace(arrival.key, flow._replace(plan=flow.node.plan))
        yield self._to_node(rewrite.applied(flow.node.plan, arrival.packet))

    def _receive_icmp(self, packet: Packet) -> list[Packet]:
        key = icmp_errors.client_key_untrusted(packet)
        flow, service = self._connections.flows.get(key), self.services.of_client(key)
        if flow is None or service is None:
            self._counters["dropped_icmp_of_unknown_flow"] += 1
            return []
        self._counters["forward_icmp"] += 1
        return [self._to_node(icmp_errors.to_node(packet, key[:4], flow.node, service.vip_index))]

    def _to_node(self, packet: Packet) -> Packet:
        self.bytes_to_nodes += len(packet.data)
        return packet

    def _flow(self, key: FlowKey) -> Flow:
        flow = self._connections.flows.get(key)
        if flow is None:
            raise KeyError(key)
        return flow

    # Answers of our own

    def _close(self, arrival: Arrival) -> Iterable[Packet]:
        """The client has closed without a word."""
        handshake = arrival.handshake
        self._greeter.forget(arrival.key, handshake)
        answered = Answered(handshake, b"", seq.add(handshake.first, 1))
        return self._answer(arrival.service, arrival.key, arrival.segment, answered, arrival.now)

    def _answer(
        self, service: Service, key: FlowKey, segment: Segment, answered: Answered, now: float
    ) -> Iterable[Packet]:
        if not self._connections.answer(key, answered, now):
            self._counters["answered_table_full"] += 1
            return self._reset(segment, now)
        return [segments.emit(refusal.answer(service, segment, answered))]

    def _answer_again(self, arrival: Arrival) -> Iterable[Packet]:
        answered = self._connections.answered.get(arrival.key)
        if answered is None:
            raise KeyError(arrival.key)
        answered = refusal.advanced(answered, arrival.segment)
        self._connections.answered.put(arrival.key, answered, arrival.now)
        reply = refusal.reply(arrival.service, arrival.segment, answered)
        return [] if reply is None else [segments.emit(reply)]

    def _reset(self, segment: Segment, now: float) -> Iterable[Packet]:
        made = reset.answer(segment)
        if made is None:
            return
        if self._resets.take(now):
            self._counters["resets_sent"] += 1
            yield segments.emit(made)
        else:
            self._counters["resets_suppressed"] += 1
