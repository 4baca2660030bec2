"""The packetbridge's end of the channel (docs/channel.md): answers balancers, remembers none of them."""

import errno
import logging
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address

import msgspec
import trio

from common.counters import Counters
from common.keyring import KeySource
from common.limit import TokenBucket
from common.net.errors import HostError
from common.reports import FlowReport
from common.wire import channel
from common.wire.channel import FlowAnswer, Kind, Message, NodeFacts, Reason, Report
from common.wire.errors import WireError

Find = Callable[[bytes, int, int], FlowReport | None]
"""The flow of a client's address (4 bytes) and port to a VIP index."""

ANSWERS_PER_SECOND = 500.0
REFUSALS_PER_SECOND = 10.0
_BATCH = 64
_IP_FREEBIND = 15
_IP_RECVTOS = 13
_MILLISECOND_NS = 1_000_000


class Server:
    """Owns a UDP socket at the bridge address, from the start to `close`.

    The socket is bound whether the host has the address at the moment or not, and hears again once the
    address is back. ``source`` and ``find`` are asked once per answer, within `ANSWERS_PER_SECOND`; a bug in
    them costs that answer. ``counters`` gets `channel_reports`, `channel_flows`, and what was refused or
    dropped.
    """

    def __init__(
        self,
        bridge: IPv4Address,
        keys: KeySource,
        source: Callable[[], NodeFacts],
        find: Find,
        counters: Counters[str],
        logger: logging.Logger,
        *,
        port: int = channel.PORT,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`HostError` where the port is taken."""
        self._node = bridge.packed
        self._keys = keys
        self._source = source
        self._find = find
        self._counters = counters
        self._logger = logger
        self._wall_ns = wall_ns
        self._answers = TokenBucket(ANSWERS_PER_SECOND, ANSWERS_PER_SECOND)
        self._refusals = TokenBucket(REFUSALS_PER_SECOND, 2 * REFUSALS_PER_SECOND)
        self._logged: set[str] = set()
        self._socket = _bound(bridge, port)

    def close(self) -> None:
        self._socket.close()

    async def run(self) -> None:
        """Answer for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            for _ in range(_BATCH):
                try:
                    self._serve_one()
                except BlockingIOError:
                    break
            await trio.lowlevel.checkpoint()

    def _serve_one(self) -> None:
        """Answer the next datagram; BlockingIOError: there is none."""
        try:
            data, ancillary, _, sender = self._socket.recvmsg(channel.DATAGRAM_SIZE + 1, socket.CMSG_SPACE(1))
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EBADF:
                raise
            self._counters["channel_errors"] += 1
            return
        tos = next((value[0] for level, _, value in ancillary if level == socket.IPPROTO_IP), 0)
        answer = self.answer(data, tos, time.monotonic())
        if answer is None:
            return
        try:
            self._socket.sendto(answer, sender)
        except OSError:
            self._counters["channel_unsent"] += 1

    def answer(self, data: bytes, tos: int, now: float) -> bytes | None:
        """What to say to a datagram that came with this TOS byte; None: nothing."""
        try:
            request = channel.parse_untrusted(data)
            return self._answer(data, request, tos, now)
        except channel.UnknownVersionError as error:
            return self._refuse(Reason.UNKNOWN_VERSION, error.nonce, now)
        except WireError as error:
            self._counters[error.reason] += 1
            return None
        except Exception as error:  # noqa: BLE001 - a question must not end the service of all flows
            self._give_up(error)
            return None

    def _answer(self, data: bytes, request: Message, tos: int, now: float) -> bytes | None:
        """The steps of docs/channel.md, from the tag on."""
        if request.kind not in (Kind.ASK_REPORT, Kind.ASK_FLOW):
            raise WireError("bad_channel_message")
        key = channel.key_of(data, self._keys.keyring.channel_keys())
        if key is None:
            return self._refuse(Reason.BAD_TAG, request.nonce, now)
        seconds, rest = divmod(self._wall_ns(), 1000 * _MILLISECOND_NS)
        if abs(channel.age(request, seconds)) > channel.MAX_AGE_SECONDS:
            return self._refuse(Reason.TOO_OLD, request.nonce, now)
        if request.node != self._node:
            self._counters["channel_other_node"] += 1
            return None
        if not self._answers.take(now):
            self._counters["channel_limited"] += 1
            return None
        if request.kind is Kind.ASK_REPORT:
            report = Report(self._source(), tos, rest // _MILLISECOND_NS)
            kind, body = Kind.REPORT, channel.emit_report(report)
            self._counters["channel_reports"] += 1
        else:
            question = channel.parse_flow_question_untrusted(request.body)
            found = self._find(question.client, question.client_port, question.vip_index)
            kind, body = Kind.FLOW, channel.emit_flow(_flow_answer(found))
            self._counters["channel_flows"] += 1
        return channel.seal(kind, body, key, time=seconds, nonce=request.nonce, node=self._node)

    def _refuse(self, reason: Reason, nonce: int, now: float) -> bytes | None:
        self._counters[f"channel_{reason.name.lower()}"] += 1
        if not self._refusals.take(now):
            return None
        seconds = self._wall_ns() // (1000 * _MILLISECOND_NS)
        return channel.refuse(reason, time=seconds, nonce=nonce, node=self._node)

    def _give_up(self, error: Exception) -> None:
        """Count a bug of ours, and log it once for each place in the code."""
        self._counters["channel_bugs"] += 1
        place = str(traceback.extract_tb(error.__traceback__)[-1])
        if place not in self._logged:
            self._logged.add(place)
            self._logger.error("a request on the channel is not answered because of a bug", exc_info=error)


def _flow_answer(found: FlowReport | None) -> FlowAnswer:
    """With as many of the details, in their order, as a datagram has room for."""
    if found is None:
        return channel.UNKNOWN_FLOW
    details = dict(found.details)
    while len(text := msgspec.json.encode(details)) > channel.MAX_DETAILS:
        details.popitem()
    return FlowAnswer(found.state, found.age or 0.0, found.idle or 0.0, text if details else b"")


def _bound(bridge: IPv4Address, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listening.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        listening.bind((str(bridge), port))
    except OSError as error:
        with suppress(OSError):
            listening.close()
        raise HostError(
            f"cannot listen on {bridge} UDP port {port} for balancers: {error.strerror}; end what listens"
            " there, or choose another --channel-port, the same on balancer and nodes"
        ) from error
    return listening
