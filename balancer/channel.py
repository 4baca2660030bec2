"""The balancer's end of the channel (docs/channel.md): asks nodes for reports, on demand for a flow.

What depends on it (load reports, comparisons, the tool's view of a flow) degrades where a node does not
answer; nothing else does.
"""

import logging
import os
import random
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

import msgspec
import trio

from balancer.core.channel import Conversation, FlowFound, NodeWord, State
from common.counters import Counters
from common.keyring import KeySource
from common.problems import Problems
from common.reports import FlowReport
from common.wire import channel, dscp
from common.wire.channel import FlowAnswer, FlowQuestion

PERIOD_SECONDS = 1.0
_FIRST_PAUSE = 0.25
"""Of a period, or of the time for a question, until it is asked again; each pause is twice the one before."""
_BATCH = 64
_IP_RECVERR = 11
_IP_MTU = 14
_MSG_ERRQUEUE = 0x2000
_ERROR = struct.Struct("=IBBBBII")
_ERROR_ORIGIN_ICMP = 2
_ERRORS_AT_ONCE = 64
_ANCILLARY_SIZE = 512

Details = dict[str, int | float | str | bool | None]


class Peer(NamedTuple):
    name: str
    address: bytes
    """Bridge address."""
    vip_indices: tuple[int, ...]
    """Of all services that have the node."""


class FlowWord(NamedTuple):
    """What a node answered to the question for a flow."""

    report: FlowReport | None
    """None: it knows no such flow."""
    round_trip: float
    """Seconds."""


class Channels:
    """One channel per node, while `run` runs; each owns a UDP socket of its own.

    ``counters`` gets those of `Conversation`.
    """

    def __init__(
        self,
        keys: KeySource,
        on_word: Callable[[str], None],
        counters: Counters[str],
        logger: logging.Logger,
        *,
        port: int = channel.PORT,
        period: float = PERIOD_SECONDS,
        wall: Callable[[], float] = time.time,
        on_ask: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        """``on_word`` is called with a node's name after each of its reports and each change of its state,
        ``on_ask`` each time before it is asked for one, with the time that `NodeWord.asked` will be.
        """
        self._on_ask = on_ask
        self._keys = keys
        self._on_word = on_word
        self._counters = counters
        self._logger = logger
        self._port = port
        self._period = period
        self._wall = wall
        self._lines: dict[str, _Line] = {}
        self._nursery: trio.Nursery | None = None

    def set_nodes(self, peers: Iterable[Peer]) -> None:
        """Talk to these from now on. What is known of those that stay at their address is kept."""
        wanted = {peer.name: peer for peer in peers}
        for name, line in list(self._lines.items()):
            if name not in wanted or wanted[name].address != line.conversation.address:
                line.scope.cancel()
                del self._lines[name]
        for name, peer in wanted.items():
            if name in self._lines:
                self._lines[name].conversation.set_indices(peer.vip_indices)
            else:
                self._lines[name] = self._line_to(peer)
                if self._nursery is not None:
                    self._nursery.start_soon(self._lines[name].run)

    def word(self, name: str) -> NodeWord:
        """KeyError for a node that was not set."""
        return self._lines[name].conversation.word

    async def ask_flow(
        self, name: str, vip_index: int, client: bytes, client_port: int, within: float = 1.0
    ) -> FlowWord | None:
        """What the node knows of a client's flow to a VIP; None: no answer ``within`` seconds.

        KeyError as in `word`.
        """
        line = self._lines[name]
        found = await line.ask_flow(FlowQuestion(vip_index, client, client_port), within)
        if found is None:
            return None
        answer = found.answer
        if not answer.state:
            return FlowWord(None, found.round_trip)
        report = FlowReport(
            client=str(IPv4Address(client)),
            client_port=client_port,
            vip_index=vip_index,
            node=str(IPv4Address(line.conversation.address)),
            state=answer.state,
            age=answer.age,
            idle=answer.idle,
            details=_details(answer),
        )
        return FlowWord(report, found.round_trip)

    async def run(self) -> None:
        """For ever."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for line in self._lines.values():
                    nursery.start_soon(line.run)
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def _channel_keys(self) -> tuple[channel.Key, ...]:
        return self._keys.keyring.channel_keys()

    def _line_to(self, peer: Peer) -> "_Line":
        conversation = Conversation(
            peer.name,
            peer.address,
            peer.vip_indices,
            keys=self._channel_keys,
            draw_nonce=lambda: secrets.randbits(64),
            counters=self._counters,
            now=time.monotonic(),
            port=self._port,
        )
        news = (self._on_ask, self._on_word)
        return _Line(conversation, self._port, self._period, self._wall, *news, self._logger)


class _Question:
    """For a flow; each of its requests has a nonce of its own."""

    def __init__(self) -> None:
        self.nonces: list[int] = []
        self.found: FlowFound | None = None
        self.answered = trio.Event()


class _Line:
    """The socket to one node, connected, so that ICMP errors are told; a new one after each missed period."""

    def __init__(
        self,
        conversation: Conversation,
        port: int,
        period: float,
        wall: Callable[[], float],
        on_ask: Callable[[str, float], None],
        on_word: Callable[[str], None],
        logger: logging.Logger,
    ) -> None:
        self.conversation = conversation
        self._on_ask = on_ask
        self.scope = trio.CancelScope()
        self._port = port
        self._period = period
        self._wall = wall
        self._on_word = on_word
        self._logger = logger
        self._socket: socket.socket | None = None
        self._answered = trio.Event()
        self._questions: dict[int, _Question] = {}
        self._problems = Problems(logger, node=conversation.word.node)

    async def run(self) -> None:
        """Until `scope` is cancelled. Nodes that are set together are not asked all at once."""
        with self.scope:
            await trio.sleep(random.uniform(0, self._period))
            while True:
                await self._ask_until_missed()

    async def ask_flow(self, question: FlowQuestion, within: float) -> FlowFound | None:
        asking = _Question()
        pause = within * _FIRST_PAUSE
        try:
            with trio.move_on_after(within):
                while not asking.answered.is_set():
                    made = self.conversation.ask_flow(question, time.monotonic(), self._wall())
                    if made is None:
                        return None
                    nonce, data = made
                    asking.nonces.append(nonce)
                    self._questions[nonce] = asking
                    self._send(data, dscp.with_index(0, question.vip_index))
                    with trio.move_on_after(pause):
                        await asking.answered.wait()
                    pause *= 2
        finally:
            self.conversation.forget(asking.nonces)
            for nonce in asking.nonces:
                del self._questions[nonce]
        return asking.found

    async def _ask_until_missed(self) -> None:
        try:
            opened = self._connected()
        except OSError as error:
            self._failed(error.errno or 0)
            await self._ask_one_period()
            return
        with opened:
            async with trio.open_nursery() as nursery:
                self._socket = opened
                try:
                    nursery.start_soon(self._listen, opened)
                    while await self._ask_one_period():
                        pass
                finally:
                    self._socket = None
                nursery.cancel_scope.cancel()

    async def _ask_one_period(self) -> bool:
        """Whether there was an answer."""
        end = trio.current_time() + self._period
        pause = self._period * _FIRST_PAUSE
        self._answered = trio.Event()
        tos = self.conversation.begin()
        self._fill_path(tos)
        while trio.current_time() < end and not self._answered.is_set():
            marked = trio.current_time() + pause < end
            now = time.monotonic()
            self._on_ask(self.conversation.word.node, now)
            asked = self.conversation.ask_report(now, self._wall(), marked=marked)
            self._send(asked, tos if marked else 0)
            with trio.move_on_at(min(trio.current_time() + pause, end)):
                await self._answered.wait()
            pause *= 2
        before = self.conversation.word
        self.conversation.end(time.monotonic())
        self._tell(before)
        await trio.sleep_until(end)
        return self.conversation.answered

    async def _listen(self, opened: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(opened)
            self._take_errors(opened)
            for _ in range(_BATCH):
                try:
                    data = opened.recv(channel.DATAGRAM_SIZE + 1)
                except BlockingIOError:
                    break
                except OSError as error:
                    self._failed(error.errno or 0)
                else:
                    self._take(data)
            await trio.lowlevel.checkpoint()

    def _take(self, data: bytes) -> None:
        before = self.conversation.word
        found = self.conversation.receive(data, time.monotonic(), self._wall())
        if found is not None:
            question = self._questions[found.nonce]
            question.found = found
            question.answered.set()
        if self.conversation.word is not before:
            self._answered.set()
            self._tell(before)

    def _take_errors(self, opened: socket.socket) -> None:
        """Empty the error queue, which would else keep the socket readable (IP_RECVERR, ip(7))."""
        for _ in range(_ERRORS_AT_ONCE):
            try:
                _, ancillary, _, _ = opened.recvmsg(1, _ANCILLARY_SIZE, _MSG_ERRQUEUE)
            except OSError:
                return
            for level, kind, value in ancillary:
                if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR) and len(value) >= _ERROR.size:
                    number, origin, *_ = _ERROR.unpack_from(value)
                    offender = value[_ERROR.size + 4 : _ERROR.size + 8]
                    self._failed(number, offender if origin == _ERROR_ORIGIN_ICMP else b"")

    def _send(self, data: bytes, tos: int) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendmsg([data], [(socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", tos))])
        except OSError as error:
            self._failed(error.errno or 0)

    def _fill_path(self, tos: int) -> None:
        if self._socket is None:
            return
        try:
            self._connect(self._socket)  # the route that it keeps may be by an interface that has gone
            path_mtu = self._socket.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        except OSError as error:  # there is no route any more
            self._failed(error.errno or 0)
        else:
            self._send(self.conversation.filler(path_mtu, self._wall()), tos)

    def _failed(self, number: int, offender: bytes = b"") -> None:
        """``offender`` is whose ICMP error it was, 4 bytes or nothing."""
        said = f", says {IPv4Address(offender)}" if len(offender) == 4 else ""
        self.conversation.fail(number, os.strerror(number).lower() + said)

    def _tell(self, before: NodeWord) -> None:
        """Log what has changed, and say that there is news; not of a node that has just been taken away."""
        if self.scope.cancel_called:
            return
        word, fields = self.conversation.word, {"node": self.conversation.word.node}
        if word.state is State.OK and before.state is not State.OK and word.report is not None:
            facts = word.report.facts
            self._logger.info(
                "channel to node %s: release %s, engine %s",
                word.node,
                facts.release,
                facts.engine,
                extra=fields,
            )
        elif word.state is not before.state:
            self._logger.warning("channel to node %s: %s", word.node, word.text, extra=fields)
        self._problems.are(word.marking_problems())
        if word.heard != before.heard or word.state is not before.state:
            self._on_word(word.node)

    def _connected(self) -> socket.socket:
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        opened = socket.socket(socket.AF_INET, kind)
        try:
            opened.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            self._connect(opened)
        except OSError:
            opened.close()
            raise
        return opened

    def _connect(self, opened: socket.socket) -> None:
        opened.connect((str(IPv4Address(self.conversation.address)), self._port))


def _details(answer: FlowAnswer) -> Details:
    """Empty where they are no JSON object of simple values."""
    try:
        return msgspec.json.decode(answer.details, type=Details)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        return {}
