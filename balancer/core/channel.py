"""What is asked of one node over the channel, and what it says of itself (docs/channel.md).

A node is asked for its report once a period, several times if need be, each time with a nonce of its own.
A period without an answer is a miss; after `MISSES` of them in a row the node's word is no longer good, and
says what the last hint was: an ICMP error, a refusal, or silence. Hints can be forged on the way; an answer
cannot, and takes back all of them.

Each period is marked with the DSCP of another of the node's VIPs, and the node says which one arrived. A
period's last request is not marked: what is then answered, but not before, is a DSCP that does not arrive.
"""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from balancer.core.path_mtu import FULL_MTU
from balancer.core.service import Service
from common.counters import Counters
from common.wire import channel, dscp
from common.wire.channel import FlowAnswer, FlowQuestion, Key, Kind, Message, Reason, Report
from common.wire.errors import WireError

MISSES = 3
MAX_FLOW_QUESTIONS = 64
"""Unanswered ones of one node."""
_IP_AND_UDP_SIZE = 28
_LOST_PERIODS = 5
"""Without an answer under one DSCP, while there are answers under others."""


class State(Enum):
    UNKNOWN = "unknown"
    """Neither an answer yet nor `MISSES` misses."""
    OK = "ok"
    SILENT = "silent"
    REFUSED_TAG = "tag refused"
    REFUSED_TIME = "time refused"
    CLOSED = "port closed"
    UNREACHABLE = "unreachable"
    VERSION = "unknown version"


class NodeWord(NamedTuple):
    """What is known of a node by its channel. Times are monotonic seconds."""

    node: str
    state: State
    text: str
    """`ok`, or what is wrong and what to look at."""
    since: float
    """When `state` was reached."""
    report: Report | None = None
    """The last one; it may be old where `state` is not `State.OK`."""
    asked: float | None = None
    """When that was asked for."""
    heard: float | None = None
    """When that came."""
    round_trip: float | None = None
    """Seconds, of the last answer."""
    clock_offset: float | None = None
    """Seconds by which the node's clock is ahead of ours."""
    dscp_seen: Mapping[int, int | None] = {}
    """By the DSCP that was sent, the one that arrived; None: what is sent with it does not arrive."""

    def vip_map_problems(self, services: Iterable[Service]) -> list[str]:
        """Where the node's last report contradicts ``services``, which are those that send it flows."""
        if self.report is None:
            return []
        vips = self.report.facts.vips
        by_index = {vip.vip_index: (vip.address, vip.port) for vip in vips}
        by_endpoint = {(vip.address, vip.port): vip.vip_index for vip in vips}
        problems = []
        for service in services:
            here, index = (service.vip, service.port), service.vip_index
            there = by_index.get(index)
            if there == here:
                continue
            if there is not None:
                said = f"maps DSCP {index} to {_endpoint(there)}, here it is VIP {_endpoint(here)}"
            elif here in by_endpoint:
                said = f"maps VIP {_endpoint(here)} to DSCP {by_endpoint[here]}, here it is DSCP {index}"
            else:
                said = (
                    f"does not serve VIP {_endpoint(here)}: give its packetbridge that VIP with DSCP {index}"
                )
            problems.append(f"node {self.node} {said}")
        return problems

    def release_problems(self, ours: str) -> list[str]:
        """Whether the node, if it answers, runs another release than the balancer, which is ``ours``."""
        if self.state is not State.OK or self.report is None or self.report.facts.release == ours:
            return []
        theirs = self.report.facts.release
        return [f"node {self.node} runs release {theirs}, the balancer {ours}: bring both to the same one"]

    def marking_problems(self) -> list[str]:
        """Which DSCPs do not reach the node as they were sent."""
        return [
            f"what is sent to node {self.node} with DSCP {sent} does not arrive, other packets do:"
            " does a filter on the way drop it?"
            if seen is None
            else f"DSCP {sent} arrives at node {self.node} as DSCP {seen}: a router on the way remarks it"
            for sent, seen in sorted(self.dscp_seen.items())
            if seen != sent
        ]


class FlowFound(NamedTuple):
    """An answer to the question with this nonce."""

    nonce: int
    answer: FlowAnswer
    round_trip: float


class _Hint(NamedTuple):
    state: State
    text: str
    misses: int
    """How many there were in a row when it came."""


class Conversation:
    """With one node. ``now`` is monotonic, ``wall`` wall-clock seconds.

    ``counters`` gets `channel_answers`, `channel_misses`, and what was not believed: `channel_unasked` (late,
    repeated or made up), `channel_bad_tag`, and the reasons of `WireError`.
    """

    def __init__(
        self,
        node: str,
        address: bytes,
        vip_indices: Sequence[int],
        keys: Callable[[], Sequence[Key]],
        draw_nonce: Callable[[], int],
        counters: Counters[str],
        now: float,
        port: int = channel.PORT,
    ) -> None:
        """``keys``: the channel's keys in force, the current one first; ``draw_nonce``: 64 random bits."""
        self.address = address
        self.answered = False
        """Whether a report has come in this period."""
        self.word = NodeWord(node, State.UNKNOWN, "not heard of yet", now)
        self._port = port
        self._keys = keys
        self._draw_nonce = draw_nonce
        self._counters = counters
        self._indices = tuple(vip_indices)
        self._turn = -1
        self._index = 0
        """The one whose DSCP this period has; 0 where the node serves none."""
        self._misses = 0
        self._lost = Counters[int]()
        self._hint: _Hint | None = None
        self._reports_asked: dict[int, float] = {}
        self._unmarked: set[int] = set()
        self._flows_asked: dict[int, float] = {}

    def set_indices(self, vip_indices: Sequence[int]) -> None:
        """The node serves these now."""
        self._indices = tuple(vip_indices)
        seen = {sent: seen for sent, seen in self.word.dscp_seen.items() if sent in self._indices}
        self.word = self.word._replace(dscp_seen=seen)

    def begin(self) -> int:
        """A new period; returns the TOS byte for its requests. What was asked before is given up."""
        self.answered = False
        self._reports_asked.clear()
        self._unmarked.clear()
        self._turn += 1
        self._index = self._indices[self._turn % len(self._indices)] if self._indices else 0
        return dscp.with_index(0, self._index)

    def ask_report(self, now: float, wall: float, *, marked: bool = True) -> bytes:
        """To be sent with the period's TOS byte, or, not ``marked``, with 0."""
        nonce = self._draw_nonce()
        self._reports_asked[nonce] = now
        if not marked:
            self._unmarked.add(nonce)
        return self._sealed(Kind.ASK_REPORT, b"", nonce, wall)

    def filler(self, path_mtu: int, wall: float) -> bytes:
        """A datagram that makes an IP packet of ``path_mtu`` bytes, or as large as the largest handoff. A
        narrower path is told to this host by the ICMP error of a router, which for a client's packet would go
        to the client.
        """
        size = max(min(path_mtu, FULL_MTU) - _IP_AND_UDP_SIZE, channel.HEADER_SIZE)
        return channel.fill(size, time=int(wall), nonce=self._draw_nonce(), node=self.address)

    def ask_flow(self, question: FlowQuestion, now: float, wall: float) -> tuple[int, bytes] | None:
        """Nonce and datagram; None: too many questions are open. `forget` ends what is not answered."""
        if len(self._flows_asked) >= MAX_FLOW_QUESTIONS:
            return None
        nonce = self._draw_nonce()
        self._flows_asked[nonce] = now
        return nonce, self._sealed(Kind.ASK_FLOW, channel.emit_flow_question(question), nonce, wall)

    def forget(self, nonces: Iterable[int]) -> None:
        for nonce in nonces:
            self._flows_asked.pop(nonce, None)

    def receive(self, data: bytes, now: float, wall: float) -> FlowFound | None:
        """Take a datagram; a report changes `word`, what is about a flow is returned."""
        try:
            return self._receive(data, now, wall)
        except WireError as error:
            self._counters[error.reason] += 1
            return None

    def fail(self, error: int, text: str) -> None:
        """Sending has failed, or an ICMP error came: the errno, and how it is said."""
        if error in (errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE):
            return
        if error == errno.ECONNREFUSED:
            self._take_hint(State.CLOSED, f"UDP port {self._port} is closed: the packetbridge does not run")
        else:
            self._take_hint(State.UNREACHABLE, f"unreachable: {text}")

    def end(self, now: float) -> None:
        """The period is over."""
        if self.answered:
            return
        self._counters["channel_misses"] += 1
        self._misses += 1
        if self._misses >= MISSES:
            self._lost.clear()
            state, text, _ = self._current_hint()
            since = self.word.since if state is self.word.state else now
            self.word = self.word._replace(state=state, text=text, since=since)
        else:
            self._lose()

    def _sealed(self, kind: Kind, body: bytes, nonce: int, wall: float) -> bytes:
        return channel.seal(kind, body, self._keys()[0], time=int(wall), nonce=nonce, node=self.address)

    def _receive(self, data: bytes, now: float, wall: float) -> FlowFound | None:
        """The steps of docs/channel.md."""
        message = channel.parse_untrusted(data)
        if message.kind is Kind.REPORT:
            asked = self._reports_asked
        elif message.kind is Kind.FLOW:
            asked = self._flows_asked
        elif message.kind is Kind.REFUSAL:
            asked = {**self._flows_asked, **self._reports_asked}
        else:
            raise WireError("bad_channel_message")
        if message.nonce not in asked or message.node != self.address:
            self._counters["channel_unasked"] += 1
            return None
        if message.kind is Kind.REFUSAL:
            self._refused(message, wall)
            return None
        if channel.key_of(data, self._keys()) is None:
            self._counters["channel_bad_tag"] += 1
            return None
        asked_at = asked[message.nonce]
        found = None
        if message.kind is Kind.REPORT:
            self._reported(message, channel.parse_report_untrusted(message.body), asked_at, now, wall)
        else:
            found = FlowFound(message.nonce, channel.parse_flow_untrusted(message.body), now - asked_at)
        del asked[message.nonce]
        self._counters["channel_answers"] += 1
        return found

    def _reported(self, message: Message, report: Report, asked: float, now: float, wall: float) -> None:
        self.answered = True
        self._misses = 0
        self._hint = None
        round_trip = now - asked
        sent = wall - round_trip / 2
        self.word = self.word._replace(
            state=State.OK,
            text="ok",
            since=self.word.since if self.word.state is State.OK else now,
            report=report,
            asked=asked,
            heard=now,
            round_trip=round_trip,
            clock_offset=report.milliseconds / 1000 - channel.age(message, int(sent)) - sent % 1,
        )
        if message.nonce in self._unmarked:
            self._lose()
        else:
            self._lost[self._index] = 0
            self._see(dscp.index_of(report.tos))

    def _lose(self) -> None:
        """Under the period's DSCP no answer has come, under others it does."""
        self._lost[self._index] += 1
        if self._lost[self._index] >= _LOST_PERIODS:
            self._see(None)

    def _see(self, index: int | None) -> None:
        if self._index in self._indices:
            self.word = self.word._replace(dscp_seen={**self.word.dscp_seen, self._index: index})

    def _refused(self, message: Message, wall: float) -> None:
        reason = channel.parse_refusal_untrusted(message.body)
        self._counters["channel_refusals"] += 1
        if reason is Reason.BAD_TAG:
            self._take_hint(
                State.REFUSED_TAG, "it refuses our tag: is the key file the same on balancer and node?"
            )
        elif reason is Reason.TOO_OLD:
            ahead = -channel.age(message, int(wall))
            direction = "ahead of" if ahead > 0 else "behind"
            self._take_hint(
                State.REFUSED_TIME,
                f"it refuses our time: its clock is {abs(ahead)} s {direction} ours; set the clocks",
            )
        else:
            self._take_hint(
                State.VERSION,
                f"it speaks version {message.version} of the channel, we speak {channel.VERSION}:"
                " run the same release on balancer and node",
            )

    def _take_hint(self, state: State, text: str) -> None:
        self._hint = _Hint(state, text, self._misses)

    def _current_hint(self) -> _Hint:
        """The last one, if it is not older than `MISSES` periods: hints are lost, too. Routers ration what
        they say of unreachable hosts so much that one of that kind holds until something else comes.
        """
        hint = self._hint
        is_old = hint is not None and self._misses - hint.misses > MISSES
        if hint is None or (is_old and hint.state is not State.UNREACHABLE):
            text = f"no answer from UDP port {self._port}: does a filter drop it, or is the host down?"
            return _Hint(State.SILENT, text, self._misses)
        return hint


def _endpoint(endpoint: tuple[bytes, int]) -> str:
    address, port = endpoint
    return f"{'.'.join(map(str, address))}:{port}"
