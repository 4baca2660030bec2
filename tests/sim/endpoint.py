"""One connection of a model TCP: client or server, the same code on both sides once it is open.

It follows RFC 9293, 7323 (timestamps, PAWS, window scale), 2018 and 2883 (SACK) and 5961 (challenge ACKs),
with Linux's choices where these leave one. What a listener does before a connection exists is in `host`.
"""

from enum import Enum, auto
from typing import NamedTuple, Protocol

from tests.sim.receiver import Receiver
from tests.sim.scrutiny import Scrutiny
from tests.sim.segment import ACK, FIN, MASK, PSH, RST, SYN, Options, Segment, Socket, steps
from tests.sim.sender import Range, Sender
from tests.sim.timeline import Alarm, Timeline

DELAYED_ACK = 0.04
MAX_RETRIES = 12
_OUT_OF_WINDOW_INTERVAL = 0.5


class Profile(NamedTuple):
    """How a TCP is configured. None and False leave an option out."""

    mss: int | None = 1460
    scale: int | None = 7
    sack: bool = True
    timestamps: bool = True
    buffer_size: int = 1 << 18
    nagle: bool = True
    delays_ack: bool = True
    defers_ack: bool = False
    """A client that completes the handshake with its first data."""
    burst: int = 1
    """Segments that are handed to the network card as one superpacket."""
    ecn: int = 0
    """ECN bits of all packets but SYNs."""
    dscp: int = 0
    promised_window: int = 0
    promised_mss: int = 0
    """What somebody else may have offered in this endpoint's name."""


class State(Enum):
    SYN_SENT = auto()
    OPEN = auto()
    """ESTABLISHED and all states of closing: what is closed, sender and receiver know."""
    TIME_WAIT = auto()
    CLOSED = auto()


class Application(Protocol):
    def on_open(self, connection: "Connection") -> None: ...
    def on_data(self, connection: "Connection", data: bytes) -> None: ...
    def on_end(self, connection: "Connection") -> None:
        """The peer has closed its side."""
        ...

    def on_reset(self, connection: "Connection") -> None:
        """By a RST, or because nothing was heard for too long."""
        ...


class Owner(Protocol):
    """The host."""

    timeline: Timeline

    def transmit(self, segment: Segment) -> None: ...
    def ticks(self) -> int:
        """The clock of its timestamps, milliseconds."""
        ...

    def forget(self, connection: "Connection") -> None: ...
    def report(self, violation: str) -> None: ...


class Connection:
    def __init__(
        self, owner: Owner, local: Socket, remote: Socket, profile: Profile, isn: int, app: Application
    ) -> None:
        self.owner, self.local, self.remote, self.profile, self.app = owner, local, remote, profile, app
        self.state = State.SYN_SENT
        self.sender = Sender(isn, profile.nagle)
        self.receiver = Receiver(0, profile.buffer_size, 0)
        self.reads = True
        """False where the application leaves all in the receive buffer."""
        self.closed_first = False
        self.timestamps, self.sack = profile.timestamps, profile.sack
        self.peer_scale = 0
        self.recent_stamp = 0
        largest = max(profile.mss or 536, profile.promised_mss)
        self.scrutiny = Scrutiny(self._report, largest, profile.promised_window)
        self._alarm = Alarm(owner.timeline, self._on_alarm)
        self._delayed_ack = Alarm(owner.timeline, self._acknowledge)
        self._unread_end = False
        self._last_out_of_window = -1.0
        self._syn: Segment | None = None
        self._last_update = (0, 0)

    def _report(self, violation: str) -> None:
        self.owner.report(f"{self.local[1]}: {violation}")

    @property
    def now(self) -> float:
        return self.owner.timeline.now

    # The application's side

    def open(self) -> None:
        self._send_syn()

    def write(self, data: bytes) -> None:
        self.sender.data += data
        self.output()

    def close(self) -> None:
        """No more data from here."""
        if self.sender.closing or self.state is not State.OPEN:
            return
        self.sender.closing = True
        self.closed_first = not self.receiver.has_ended
        self.output()

    def abort(self) -> None:
        self._transmit(RST | ACK, self.sender.nxt)
        self._vanish()

    def read(self) -> None:
        """Begin to read again, or read what is there."""
        self.reads = True
        self._deliver()
        if self.state is State.OPEN and self.receiver.nxt + self.receiver.free - self.receiver.edge >= min(
            2 * (self.profile.mss or 536), self.profile.buffer_size // 2
        ):
            self._acknowledge()

    def probe(self, payload: bytes = b"") -> None:
        """A keepalive probe."""
        self._transmit(ACK, self.sender.nxt - 1, payload)

    def vanish(self) -> None:
        """As if the host had lost its power."""
        self._vanish()

    def shrink(self, mtu: int) -> None:
        """The path to the peer takes no larger packets (RFC 1191)."""
        self.sender.shrink(mtu - 40 - (12 if self.timestamps else 0))
        self.output()

    # Opening

    def _send_syn(self) -> None:
        profile = self.profile
        stamps = (self._stamp(), 0) if profile.timestamps else None
        options = Options(profile.mss, profile.scale, profile.sack, stamps)
        window = min(self.receiver.offer(1), 0xFFFF)
        self._syn = Segment(self.local, self.remote, self.sender.isn, 0, SYN, window, options)
        if self.sender.nxt == 0:
            self.sender.syn(self.now)
        self.owner.transmit(self._syn)
        self._alarm.set(self.now + self.sender.timeout())

    def agree(self, theirs: Segment) -> None:
        """Take over what the other side's SYN or SYN-ACK says."""
        options, profile = theirs.options, self.profile
        self.timestamps = profile.timestamps and options.stamps is not None
        self.sack = profile.sack and options.sack_permitted
        scaled = profile.scale is not None and options.scale is not None
        self.peer_scale = min(options.scale or 0, 14) if scaled else 0
        scale = profile.scale or 0 if scaled else 0
        edge = self.receiver.edge
        self.receiver = Receiver(theirs.seq, profile.buffer_size, scale)
        self.receiver.edge = edge
        self.recent_stamp = options.stamps[0] if options.stamps else 0
        mss = min(options.mss or 536, profile.mss or 536)
        self.sender.mss = mss - (12 if self.timestamps else 0)
        self.sender.cwnd = 10 * self.sender.mss
        self.sender.window = self.sender.max_window = theirs.window
        self._last_update = (1, 0)

    def accepted(self, segment: Segment) -> None:
        """The listener's request has become this connection through ``segment``."""
        self.state = State.OPEN
        self.sender.una = self.sender.nxt = 1
        self.app.on_open(self)
        self.receive(segment)

    def _receive_in_syn_sent(self, segment: Segment) -> None:
        flags = segment.flags
        if not flags & ACK or self.sender.offset(segment.ack) != 1:
            if flags & ACK and not flags & RST:
                self.owner.transmit(Segment(self.local, self.remote, segment.ack, 0, RST, 0))
            return
        if flags & RST:
            self._vanish()
            self.app.on_reset(self)
            return
        if not flags & SYN:
            return
        if self._syn is not None:
            self.scrutiny.of_answer(self._syn, segment)
        self.agree(segment)
        self.scrutiny.of_segment(segment, self.sender, self.receiver, self.timestamps, self.sack)
        self.sender.acknowledge(1, [], False, self.now, self.sack)
        self.state = State.OPEN
        if not self.profile.defers_ack:
            self._acknowledge()
        self.app.on_open(self)
        self.output()

    # Receiving

    def receive(self, segment: Segment) -> None:
        if self.state is State.SYN_SENT:
            self._receive_in_syn_sent(segment)
        elif self.state is not State.CLOSED:
            self.scrutiny.of_segment(segment, self.sender, self.receiver, self.timestamps, self.sack)
            if self._is_acceptable(segment):
                self._take_ack(segment)
                self._take_payload(segment)
                self._finish()

    def _is_acceptable(self, segment: Segment) -> bool:
        """Linux's tcp_validate_incoming. Answers what is not acceptable."""
        receiver, stamps, flags = self.receiver, segment.options.stamps, segment.flags
        if self.timestamps and stamps and not flags & RST and steps(self.recent_stamp, stamps[0]) < -1:
            self._answer_out_of_window(segment)
            return False
        start = receiver.offset(segment.seq)
        if start + segment.length < receiver.acknowledged or start > receiver.edge:
            if not flags & RST:
                self._answer_out_of_window(segment)
            return False
        if flags & RST:
            if start == receiver.nxt:
                self._vanish()
                self.app.on_reset(self)
            else:
                self._acknowledge()
            return False
        if flags & SYN:
            self._acknowledge()
            return False
        if self.timestamps and stamps and start <= receiver.acknowledged:
            self.recent_stamp = stamps[0]
        return bool(flags & ACK)

    def _answer_out_of_window(self, segment: Segment) -> None:
        """Without payload at most two a second, so that two ends never answer each other for ever."""
        if not segment.payload or segment.flags & SYN:
            if self.now - self._last_out_of_window < _OUT_OF_WINDOW_INTERVAL:
                return
            self._last_out_of_window = self.now
        start = self.receiver.offset(segment.seq)
        if segment.payload and start + len(segment.payload) <= self.receiver.nxt:
            self.receiver.repeated = (start, start + len(segment.payload))
        self._acknowledge()

    def _take_ack(self, segment: Segment) -> None:
        sender = self.sender
        ack = sender.offset(segment.ack)
        if ack > sender.nxt:
            return
        if ack < sender.una:
            if ack < sender.una - max(sender.max_window, 1 << 16):
                self._acknowledge()
            return
        window = segment.window << self.peer_scale
        blocks = [(sender.offset(a), sender.offset(b)) for a, b in segment.options.blocks]
        is_duplicate = (
            ack == sender.una and not segment.payload and sender.in_flight and window == sender.window
        )
        sender.acknowledge(ack, blocks, is_duplicate, self.now, self.sack)
        start = self.receiver.offset(segment.seq)
        if (start, ack) >= self._last_update or window > sender.window:
            self._last_update = (start, ack)
            sender.window = window
            sender.max_window = max(sender.max_window, window)

    def _take_payload(self, segment: Segment) -> None:
        receiver = self.receiver
        if not segment.length:
            self.output()
            return
        had_gap = receiver.has_gap
        start = receiver.offset(segment.seq)
        unacknowledged = receiver.nxt - receiver.acknowledged
        grew = receiver.accept(start, segment.payload, bool(segment.flags & FIN))
        for conflict in receiver.conflicts:
            self._report(conflict)
        receiver.conflicts.clear()
        if grew:
            self._deliver()
        if self.state is not State.OPEN:
            return
        self.output()
        if receiver.acknowledged == receiver.nxt and grew:
            return
        full = receiver.nxt - receiver.acknowledged >= 2 * self.sender.mss or unacknowledged > 0
        quick = not grew or had_gap or receiver.has_gap or receiver.has_ended or full
        if quick or not self.profile.delays_ack:
            self._acknowledge()
        elif self._delayed_ack.at is None:
            self._delayed_ack.set(self.now + DELAYED_ACK)

    def _deliver(self) -> None:
        if self.reads and (data := self.receiver.take()):
            self.app.on_data(self, data)
        if self.receiver.has_ended and not self._unread_end and self.reads:
            self._unread_end = True
            self.app.on_end(self)

    def _finish(self) -> None:
        if self.state is not State.OPEN or not (self.sender.fin_acknowledged and self.receiver.has_ended):
            return
        if self._delayed_ack.at is not None or self.receiver.acknowledged < self.receiver.nxt:
            self._acknowledge()
        self.state = State.TIME_WAIT if self.closed_first else State.CLOSED
        self._alarm.set(None)
        self.owner.forget(self)

    # Sending

    def output(self) -> None:
        """Whatever may go out now."""
        if self.state is not State.OPEN:
            return
        while part := self.sender.next_lost(self.now) or self.sender.next_new(self.now, self.profile.burst):
            self._transmit_part(part)
        self._arm()

    def _arm(self) -> None:
        if self.sender.in_flight or self.sender.is_blocked:
            self._alarm.set(self.now + self.sender.timeout())
        else:
            self._alarm.set(None)

    def _on_alarm(self) -> None:
        sender = self.sender
        if sender.backoff >= MAX_RETRIES and sender.in_flight:
            self._vanish()
            self.app.on_reset(self)
        elif self.state is State.SYN_SENT:
            sender.backoff += 1
            sender.retransmissions += 1
            self._send_syn()
        elif sender.in_flight:
            sender.time_out()
            self.output()
        elif sender.is_blocked:
            self._probe_window()

    def _probe_window(self) -> None:
        """The persist timer (RFC 9293 section 3.8.6.1), as Linux does it."""
        self.sender.backoff += 1
        part = self.sender.next_new(self.now, 1, forced=True)
        if part:
            self._transmit_part(part)
        else:
            self._transmit(ACK, self.sender.una - 1)
        self._arm()

    def _transmit_part(self, part: Range) -> None:
        payload = self.sender.bytes_of(part)
        flags = ACK | (FIN if self.sender.has_fin(part) else 0)
        if payload and part.end >= 1 + len(self.sender.data):
            flags |= PSH
        self._transmit(flags, part.start, payload)

    def _acknowledge(self) -> None:
        if self.state in (State.OPEN, State.TIME_WAIT):
            self._transmit(ACK, self.sender.nxt)

    def _transmit(self, flags: int, offset: int, payload: bytes = b"") -> None:
        self._delayed_ack.set(None)
        stamps = (self._stamp(), self.recent_stamp) if self.timestamps else None
        blocks: tuple[tuple[int, int], ...] = ()
        if self.sack and not payload:
            blocks = self.receiver.blocks(3 if stamps else 4)
        window = 0 if flags & RST else self.receiver.offer(self.profile.mss or 536)
        self.owner.transmit(
            Segment(
                self.local,
                self.remote,
                self.sender.wire(offset),
                self.receiver.wire(self.receiver.nxt),
                flags,
                window,
                Options(stamps=stamps, blocks=blocks),
                payload,
                tos=self.profile.dscp << 2 | self.profile.ecn,
                gso_size=self.sender.mss if len(payload) > self.sender.mss else 0,
            )
        )

    def _stamp(self) -> int:
        value = self.owner.ticks() & MASK
        self.scrutiny.stamps_sent.add(value)
        return value

    def _vanish(self) -> None:
        self.state = State.CLOSED
        self._alarm.set(None)
        self._delayed_ack.set(None)
        self.owner.forget(self)
