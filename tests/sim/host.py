"""A host of the simulation: connections, listeners, half-open requests and TIME-WAIT, as Linux keeps them.

The rules are those of tcp_check_req for the packet that completes a handshake, and of
tcp_timewait_state_process for a SYN that meets a connection in TIME-WAIT.
"""

import random
from collections.abc import Callable

from common.wire.offload import Packet
from tests.sim import icmp
from tests.sim.endpoint import Application, Connection, Profile, State
from tests.sim.segment import ACK, MASK, RST, SYN, Options, Segment, Socket, emit, parse, steps
from tests.sim.timeline import Alarm, Timeline

Pair = tuple[Socket, Socket]
"""Local and remote end."""

TIME_WAIT_SECONDS = 60.0
_MAX_SYN_ACKS = 6


class Listener:
    def __init__(self, application: Callable[[], Application], profile: Profile) -> None:
        self.application = application
        self.profile = profile
        self.accept_queue_is_full = False
        self.isn: Callable[[], int] | None = None
        """Chooses ISNs instead of chance."""

    def drain(self) -> None:
        self.accept_queue_is_full = False


class Request:
    """A half-open connection of a listener: Linux's request sock."""

    def __init__(self, host: "Host", listener: Listener, syn: Segment, isn: int) -> None:
        self.host, self.listener, self.syn, self.isn = host, listener, syn, isn
        self.pair: Pair = (syn.destination, syn.source)
        profile = listener.profile
        self.connection = Connection(host, *self.pair, profile, isn, listener.application())
        self.connection.agree(syn)
        self.window = self.connection.receiver.offer(1)
        self.recent_stamp = syn.options.stamps[0] if syn.options.stamps else 0
        self.sent = 0
        self._alarm = Alarm(host.timeline, self._on_alarm)

    def send_syn_ack(self) -> None:
        connection, profile, theirs = self.connection, self.listener.profile, self.syn.options
        stamp = self.host.ticks() & MASK
        connection.scrutiny.stamps_sent.add(stamp)
        options = Options(
            profile.mss,
            profile.scale if theirs.scale is not None else None,
            connection.sack,
            (stamp, self.recent_stamp) if connection.timestamps else None,
        )
        ack = self.syn.seq + 1 & MASK
        window = min(self.window << connection.receiver.scale, 0xFFFF)
        self.host.transmit(Segment(*self.pair, self.isn, ack, SYN | ACK, window, options))

    def start(self) -> None:
        self.send_syn_ack()
        self.sent = 1
        self._alarm.set(self.host.timeline.now + 1.0)

    def drop(self) -> None:
        self._alarm.set(None)
        self.host.requests.pop(self.pair, None)

    def _on_alarm(self) -> None:
        if self.sent >= _MAX_SYN_ACKS:
            self.drop()
            return
        self.sent += 1
        self.host.syn_ack_retransmissions += 1
        self.send_syn_ack()
        self._alarm.set(self.host.timeline.now + 2.0 ** (self.sent - 1))

    def check(self, segment: Segment) -> None:
        """tcp_check_req: the segment completes the handshake, is answered, or is dropped."""
        flags, stamps, connection = segment.flags, segment.options.stamps, self.connection
        ahead = steps(self.syn.seq + 1 & MASK, segment.seq)
        paws = connection.timestamps and stamps is not None and steps(self.recent_stamp, stamps[0]) < -1
        if flags & (SYN | ACK | RST) == SYN and segment.seq == self.syn.seq and not paws:
            self.host.syn_ack_retransmissions += 1
            self.send_syn_ack()
            return
        if flags & ACK and segment.ack != (self.isn + 1) & MASK:
            self.host.answer_with_reset(segment)
            return
        strange_echo = connection.timestamps and (
            stamps is None or stamps[1] not in connection.scrutiny.stamps_sent
        )
        out_of_window = not 0 <= ahead <= (self.window << connection.receiver.scale)
        if paws or (strange_echo and flags & ACK) or out_of_window:
            if strange_echo and not paws and not out_of_window:
                self.host.report(f"completes the handshake with timestamps {stamps}")
            if not flags & RST:
                self._answer_out_of_window()
            return
        if flags & (RST | SYN):
            self.drop()
            if not flags & RST:
                self.host.answer_with_reset(segment)
        elif flags & ACK and not self.listener.accept_queue_is_full:
            self.drop()
            self.host.connections[self.pair] = connection
            connection.accepted(segment)

    def _answer_out_of_window(self) -> None:
        stamps = (self.host.ticks() & MASK, self.recent_stamp) if self.connection.timestamps else None
        ack = self.syn.seq + 1 & MASK
        number = self.isn + 1 & MASK
        self.host.transmit(Segment(*self.pair, number, ack, ACK, self.window, Options(stamps=stamps)))


class TimeWait:
    """What is left of a connection that was closed from here first."""

    def __init__(self, host: "Host", connection: Connection) -> None:
        self.host = host
        self.pair: Pair = (connection.local, connection.remote)
        self.next_received = connection.receiver.wire(connection.receiver.nxt)
        self.next_sent = connection.sender.wire(connection.sender.nxt)
        self.stamp = connection.recent_stamp if connection.timestamps else None
        self._alarm = Alarm(host.timeline, self.drop)
        self._alarm.set(host.timeline.now + TIME_WAIT_SECONDS)

    def drop(self) -> None:
        self._alarm.set(None)
        self.host.waiting.pop(self.pair, None)

    def accepts_syn(self, segment: Segment) -> bool:
        """Whether a new connection may take the 4-tuple's place."""
        if segment.flags & (SYN | ACK | RST) != SYN or self._is_old(segment):
            return False
        newer_stamp = False
        if self.stamp is not None and segment.options.stamps is not None:
            newer_stamp = steps(self.stamp, segment.options.stamps[0]) > 0
        return steps(self.next_received, segment.seq) > 0 or newer_stamp

    def receive(self, segment: Segment) -> None:
        if segment.flags & RST:
            if segment.seq == self.next_received:
                self.drop()
            return
        if self._is_old(segment) or segment.flags & ACK:
            self._alarm.set(self.host.timeline.now + TIME_WAIT_SECONDS)
        if segment.seq == self.next_received and not segment.length and not self._is_old(segment):
            return
        stamps = None if self.stamp is None else (self.host.ticks() & MASK, self.stamp)
        self.host.transmit(
            Segment(*self.pair, self.next_sent, self.next_received, ACK, 0xFFFF, Options(stamps=stamps))
        )

    def _is_old(self, segment: Segment) -> bool:
        stamps = segment.options.stamps
        return self.stamp is not None and stamps is not None and steps(self.stamp, stamps[0]) < -1


class Host:
    """``send`` takes what goes out. ``first_tick`` is what its clock of timestamps shows at time 0."""

    def __init__(
        self,
        timeline: Timeline,
        chance: random.Random,
        name: str,
        send: Callable[[Packet], None],
        first_tick: int = 0,
    ) -> None:
        self.timeline, self.name = timeline, name
        self.violations: list[str] = []
        self.connections: dict[Pair, Connection] = {}
        self.requests: dict[Pair, Request] = {}
        self.waiting: dict[Pair, TimeWait] = {}
        self.listeners: dict[Socket, Listener] = {}
        self.closed: list[Connection] = []
        self.expected_sources: set[bytes] | None = None
        """Of packets, unless they belong to what `connect` began; None: any."""
        self.damaged = self.resets_sent = self.resets_received = self.syn_ack_retransmissions = 0
        self.icmp_taken = self.icmp_ignored = 0
        self.keeps_order = True
        self._connected: set[Pair] = set()
        self._chance = chance
        self._send = send
        self._first_tick = first_tick

    def ticks(self) -> int:
        return self._first_tick + int(self.timeline.now * 1000)

    def report(self, violation: str) -> None:
        self.violations.append(f"{self.timeline.now:.4f} {self.name}: {violation}")

    def transmit(self, segment: Segment) -> None:
        self._send(emit(segment))

    def listen(self, at: Socket, application: Callable[[], Application], profile: Profile) -> Listener:
        self.listeners[at] = Listener(application, profile)
        return self.listeners[at]

    def connect(
        self, local: Socket, remote: Socket, app: Application, profile: Profile, isn: int | None = None
    ) -> Connection:
        chosen = self._chance.getrandbits(32) if isn is None else isn
        connection = Connection(self, local, remote, profile, chosen, app)
        connection.scrutiny.is_ordered = self.keeps_order
        wait = self.waiting.get((local, remote))
        if wait is not None:
            wait.drop()
        self.connections[local, remote] = connection
        self._connected.add((local, remote))
        connection.open()
        return connection

    def forget(self, connection: Connection) -> None:
        pair = (connection.local, connection.remote)
        if self.connections.get(pair) is connection:
            del self.connections[pair]
        self.closed.append(connection)
        if connection.state is State.TIME_WAIT:
            self.waiting[pair] = TimeWait(self, connection)

    def has_socket(self, pair: Pair) -> bool:
        """What sock_diag would say."""
        return pair in self.connections or pair in self.requests or pair in self.waiting

    def receive(self, packet: Packet) -> None:
        if packet.data[9] == icmp.PROTOCOL:
            self._receive_icmp(packet)
            return
        segment = parse(packet)
        if segment.damaged:
            self.damaged += 1
            return
        if not self._expects(segment):
            self.report(f"packet from {'.'.join(map(str, segment.source[0]))}")
        if segment.tos >> 2:
            self.report(f"DSCP {segment.tos >> 2}")
        self.resets_received += bool(segment.flags & RST)
        self._dispatch(segment)

    def _expects(self, segment: Segment) -> bool:
        pair = (segment.destination, segment.source)
        if self.expected_sources is None or segment.source[0] in self.expected_sources:
            return True
        return pair in self._connected

    def _dispatch(self, segment: Segment) -> None:
        pair = (segment.destination, segment.source)
        if pair in self.connections:
            self.connections[pair].receive(segment)
        elif pair in self.requests:
            self.requests[pair].check(segment)
        elif pair in self.waiting:
            wait = self.waiting[pair]
            if segment.destination in self.listeners and wait.accepts_syn(segment):
                wait.drop()
                self._receive_at_listener(segment, wait.next_sent + 65537 & MASK)
            else:
                wait.receive(segment)
        elif segment.destination in self.listeners:
            self._receive_at_listener(segment, None)
        else:
            self.answer_with_reset(segment)

    def _receive_at_listener(self, segment: Segment, isn: int | None) -> None:
        listener = self.listeners[segment.destination]
        if segment.flags & (SYN | ACK | RST) != SYN:
            if not segment.flags & RST:
                self.answer_with_reset(segment)
            return
        if isn is None:
            isn = listener.isn() if listener.isn else self._chance.getrandbits(32)
        request = Request(self, listener, segment, isn)
        request.connection.scrutiny.is_ordered = self.keeps_order
        self.requests[request.pair] = request
        request.start()

    def answer_with_reset(self, segment: Segment) -> None:
        if segment.flags & RST:
            return
        self.resets_sent += 1
        ends = (segment.destination, segment.source)
        if segment.flags & ACK:
            self.transmit(Segment(*ends, segment.ack, 0, RST, 0))
        else:
            self.transmit(Segment(*ends, 0, segment.seq + segment.length & MASK, RST | ACK, 0))

    def _receive_icmp(self, packet: Packet) -> None:
        error = icmp.parse(packet)
        if not error.is_intact:
            self.report("damaged ICMP error")
        connection = self.connections.get((error.source, error.destination))
        if connection is None:
            self.report(f"ICMP error about {error.source}")
            return
        offset = connection.sender.offset(error.seq)
        if not connection.sender.una <= offset < connection.sender.nxt:
            self.icmp_ignored += 1
            return
        self.icmp_taken += 1
        connection.shrink(error.mtu)
