"""One health check: a tiny HTTP client that enters a node as clients' connections do, by a handoff.

The handoff's client is an address and port of the balancer itself. Both initial sequence numbers are the
caller's choice, so there is no handshake to make: the node answers as the VIP, and what it says is believed
if it comes from there and acknowledges exactly the request. So a check passes only if everything works that a
client needs: key, VIP map, DSCP, backend, and the way from the node to whoever asks.

The connection ends by a RST, once the backend has finished or at once where the check has failed. Whatever
still comes then is answered by the same RST, so that neither node nor backend keeps anything.
"""

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import NamedTuple

from balancer.core.answer import Answer
from balancer.core.hearsay import Failure, Hearsay, explain_silence
from common.wire import dscp, handoff, icmp, seq, tcp
from common.wire import segment as segments
from common.wire.handoff import Handoff
from common.wire.icmp import IcmpError
from common.wire.offload import Packet
from common.wire.segment import Segment

WINDOW = 8192
"""Bytes that the backend may send ahead."""
MSS = 1424
MAX_READ = 65536
"""Bytes that are read for the sake of the backend's access log; a longer answer is cut off by the RST."""
_HANDOFFS = 4
"""How often the handoff is sent within the timeout."""

_UNREACHABLE_CODES = {
    0: "there is no route to its network",
    1: "there is no such host",
    4: "the way to it is too narrow for a handoff (path MTU)",
    9: "a filter forbids it",
    10: "a filter forbids it",
    13: "a filter forbids it",
}
"""ICMP type 3 (RFC 792, RFC 1812 section 5.2.7.1)."""


class Check(NamedTuple):
    """Whom to ask for what."""

    vip: bytes
    vip_port: int
    vip_index: int
    node: bytes
    """Bridge address."""
    request: bytes
    """As `make_request` gives it."""
    expect: tuple[range, ...]
    """Status codes that are good."""
    timeout: float


class CheckResult(NamedTuple):
    ok: bool
    failure: Failure | None
    """None where it is ok."""
    text: str
    """In the operator's words, without the node's name."""
    seconds: float
    """From the first handoff to the verdict."""


def make_request(path: str, host: str, version: str) -> bytes:
    """The request's bytes, which travel in the handoff. ValueError where they do not fit into it."""
    fields = (f"Host: {host}", f"User-Agent: l3dsr-health/{version}", "Connection: close")
    request = "".join(f"{line}\r\n" for line in (f"GET {path} HTTP/1.1", *fields, "")).encode()
    if len(request) > handoff.MAX_PAYLOAD:
        raise ValueError(f"a health check of {len(request)} bytes is longer than {handoff.MAX_PAYLOAD}")
    return request


class Probe:
    """Give it every TCP segment that comes to its port, whoever has sent it.

    Times are seconds of the caller's monotonic clock. The packets returned are to be sent as they are.
    """

    def __init__(
        self,
        check: Check,
        source: tuple[bytes, int],
        isns: tuple[int, int],
        sign: Callable[[Handoff], Handoff],
        wall_clock: Callable[[], int],
    ) -> None:
        """``source`` is the balancer's own address and port, ``isns`` the client's ISN and the balancer's."""
        self.result: CheckResult | None = None
        self.is_silent = False
        """Nothing has come of a packetbridge: `explain` is to be called, with what it says elsewhere."""
        self.is_closed = False
        """There is a verdict, and nothing more is awaited."""
        self.icmp_error = ""
        """What an ICMP error said that decided, in words."""
        self.check = check
        self._source, self._port = source
        self._isn, self._balancer_isn = isns
        self._sign, self._wall_clock = sign, wall_clock
        self._begun = self._deadline = 0.0
        self._handoffs = 0
        self._answer = Answer(WINDOW)
        self._is_taken = False
        self._damaged = 0
        self._was_reset_ahead = False
        self._said_by_host = ""

    # --- what the caller does

    def begin(self, now: float) -> list[Packet]:
        self._begun, self._deadline = now, now + self.check.timeout
        return [self._handoff()]

    def receive(self, segment: Segment, now: float) -> list[Packet]:
        if not segments.checksum_holds(segment):
            self._damaged += 1
            return []
        if self.is_closed:
            is_late = not segment.flags & tcp.RST and self._acknowledges(segment)
            return [self._segment(tcp.RST | tcp.ACK)] if is_late else []
        if (segment.source, segment.source_port) != (self.check.vip, self.check.vip_port):
            return self._from_elsewhere(segment, now)
        if segment.flags & tcp.RST and not self.is_silent:
            return self._from_reset(segment, now)
        if segment.flags & (tcp.SYN | tcp.ACK) != tcp.ACK or segment.ack != self._next:
            return []
        if self.is_silent and not self.result:
            text = f"the backend answered only after {now - self._begun:.1f} s"
            return self._fail(Failure.BACKEND_SILENT, text, now)
        self._is_taken = True
        if not segment.length:  # an acknowledgment, or a probe that wants one
            return [] if segment.seq == self._expected else [self._segment(tcp.ACK)]
        at = seq.distance(self._first, segment.seq)
        self._answer.take(at, segment.payload, fin=bool(segment.flags & tcp.FIN))
        return self._judge(now)

    def receive_error(self, error: IcmpError, reporter: bytes, now: float) -> list[Packet]:
        """An ICMP error from ``reporter`` (4 bytes). One that does not quote what was sent is nobody's."""
        ours = (self._source, self.check.node)
        if self.result or (error.quoted[12:16], error.quoted[16:20]) != ours:
            return []
        if error.quoted_seq not in (self._isn, self._next):
            return []
        said = {icmp.TIME_EXCEEDED: "the way to it is too long (a loop?)"}.get(error.type, "it is refused")
        if error.type == icmp.UNREACHABLE:
            said = _UNREACHABLE_CODES.get(error.code, said)
        self.icmp_error = f"{said}, says {IPv4Address(reporter)} (ICMP type {error.type} code {error.code})"
        return self._fail(Failure.NODE_UNREACHABLE, self.icmp_error, now)

    def not_sent(self, text: str, now: float) -> None:
        """Our own host does not let the packets out."""
        if not self.result:
            self._decide(Failure.NODE_UNREACHABLE, text, now)
        self.is_closed = True

    def explain(self, hearsay: Hearsay, now: float) -> list[Packet]:
        """The verdict on a silence, or on an answer that the node's host gave instead of a packetbridge."""
        if self.result:
            return []
        if self._said_by_host:
            return self._fail(Failure.BRIDGE_SILENT, "; ".join((self._said_by_host, *hearsay.problems)), now)
        return self._fail(*explain_silence(hearsay, self._vip), now)

    def abandon(self) -> list[Packet]:
        """End it, with or without a verdict."""
        return [] if self.is_closed else self._close()

    def next_deadline(self) -> float | None:
        """When `on_timeout` is to be called."""
        if self.is_closed or self.is_silent:
            return None
        if self.result or self._is_taken or self._handoffs >= _HANDOFFS:
            return self._deadline
        return self._begun + self._handoffs * self.check.timeout / _HANDOFFS

    def on_timeout(self, now: float) -> list[Packet]:
        deadline = self.next_deadline()
        if deadline is None or now < deadline:
            return []
        if now < self._deadline:
            return [self._handoff()]
        if self.result:
            return self._close()
        if self._damaged and not self._is_taken:
            text = f"what comes from {self._vip} is damaged: {self._damaged} wrong checksums"
            return self._fail(Failure.ANSWER_LOST, text, now)
        if self._answer.has_hole or self._was_reset_ahead:
            return self._fail(Failure.ANSWER_LOST, "a part of the answer did not arrive", now)
        if self._is_taken:
            return self._fail(
                Failure.BACKEND_SILENT, f"the backend {self._said_so_far} and says no more", now
            )
        self.is_silent = True
        return []

    # --- what comes

    def _from_elsewhere(self, segment: Segment, now: float) -> list[Packet]:
        """Whoever acknowledges our SYN or the request knows this check."""
        if self.result or self._said_by_host:
            return []
        if not self._acknowledges(segment):
            return []
        source = _endpoint(segment.source, segment.source_port)
        if (segment.source, segment.source_port) == (self.check.node, self.check.vip_port):
            does = "refuses" if segment.flags & tcp.RST else "answers"
            self._said_by_host = (
                f"the host {source} {does} by itself: no packetbridge takes what is sent to it"
            )
            self.is_silent = True
            return []
        return self._fail(Failure.NOT_FROM_VIP, f"the answer came from {source}, not from {self._vip}", now)

    def _from_reset(self, segment: Segment, now: float) -> list[Packet]:
        if segment.flags & tcp.ACK and not self._acknowledges(segment):
            return []
        ahead = seq.distance(self._expected, segment.seq)
        if ahead:
            self._was_reset_ahead = self._was_reset_ahead or 0 < ahead <= WINDOW
            return []
        if not self.result and not self._is_taken:
            self._decide(Failure.BACKEND_REFUSED, "the backend refuses connections", now)
        elif not self.result:
            text = f"the backend {self._said_so_far} and reset the connection"
            self._decide(Failure.BAD_ANSWER, text, now)
        self.is_closed = True
        return []

    def _acknowledges(self, segment: Segment) -> bool:
        return bool(segment.flags & tcp.ACK) and segment.ack in (seq.add(self._isn, 1), self._next)

    def _judge(self, now: float) -> list[Packet]:
        answer = self._answer
        if not self.result:
            if answer.is_malformed:
                return self._fail(Failure.BAD_ANSWER, f"the answer is not HTTP: {answer.begin!r}", now)
            if answer.status is not None:
                self._judge_status(answer.status, now)
            elif answer.is_finished:
                text = f"the backend {self._said_so_far} and closed the connection"
                return self._fail(Failure.BAD_ANSWER, text, now)
        if self.result and (answer.is_finished or answer.received > MAX_READ):
            return self._close()
        return [self._segment(tcp.ACK)]

    def _judge_status(self, status: int, now: float) -> None:
        if any(status in good for good in self.check.expect):
            self._decide(None, f"status {status}", now)
        else:
            wanted = ", ".join(_said_range(good) for good in self.check.expect)
            self._decide(Failure.WRONG_STATUS, f"the backend answers with status {status}, not {wanted}", now)
        self._deadline = now + self.check.timeout

    # --- what follows

    def _fail(self, failure: Failure, text: str, now: float) -> list[Packet]:
        self._decide(failure, text, now)
        return self._close()

    def _decide(self, failure: Failure | None, text: str, now: float) -> None:
        self.result = CheckResult(failure is None, failure, text, now - self._begun)

    def _close(self) -> list[Packet]:
        self.is_closed = True
        return [self._segment(tcp.RST | tcp.ACK)]

    @property
    def _said_so_far(self) -> str:
        received = self._answer.received
        return f"sent {received} bytes without a status line" if received else "took the request"

    @property
    def _vip(self) -> str:
        return _endpoint(self.check.vip, self.check.vip_port)

    # --- numbers and packets

    @property
    def _first(self) -> int:
        """Of the answer."""
        return seq.add(self._balancer_isn, 1)

    @property
    def _expected(self) -> int:
        return seq.add(self._first, self._answer.received + self._answer.is_finished)

    @property
    def _next(self) -> int:
        """Behind the request."""
        return seq.add(self._isn, 1 + len(self.check.request))

    def _segment(self, flags: int) -> Packet:
        """As the data plane forwards a client's."""
        return segments.emit(
            Segment(
                source=self._source,
                destination=self.check.node,
                source_port=self._port,
                destination_port=self.check.vip_port,
                seq=self._next,
                ack=self._expected,
                flags=flags,
                window=WINDOW,
                tos=dscp.with_index(0, self.check.vip_index),
            )
        )

    def _handoff(self) -> Packet:
        self._handoffs += 1
        message = Handoff(
            client=self._source,
            node=self.check.node,
            client_port=self._port,
            service_port=self.check.vip_port,
            vip_index=self.check.vip_index,
            seq=self._isn,
            ack=self._balancer_isn,
            window=WINDOW,
            mss=MSS,
            window_scale=None,
            sack_permitted=False,
            timestamps=None,
            promised_scale=0,
            fin=False,
            time=handoff.time_of(self._wall_clock()),
            payload=self.check.request,
        )
        return segments.emit(handoff.emit(self._sign(message)))


def _endpoint(address: bytes, port: int) -> str:
    return f"{IPv4Address(address)}:{port}"


def _said_range(codes: range) -> str:
    first, last = codes[0], codes[-1]
    return f"{first}" if first == last else f"{first}-{last}"
