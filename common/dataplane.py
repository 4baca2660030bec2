"""The raw data plane: one loop that both daemons run, each around its own core.

A port (tap or TUN) fills one receive buffer. The core has a plan for a packet of an established flow, which
is then rewritten in place and written to the TUN; every other packet is given to the core as a value.

Ports may come and go while it runs.

A packet that brings a bug of ours to light must not end the service of all others: it is dropped and
counted, and the first one at each place in the code is logged with its traceback. A host on which nothing
can be sent any more ends the loop with `HostError`.
"""

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address
from typing import NamedTuple, Protocol

import trio

from common.net.buffer import IP_AT, VNET_AT, new_buffer
from common.net.errors import HostError
from common.net.tun import Tun
from common.wire import offload, rewrite
from common.wire.offload import Packet
from common.wire.rewrite import Rewrite
from common.wire.segment import FLOW_KEY_AT, FLOW_KEY_END, key_ports

BATCH = 64
"""Packets taken from one port before others have their turn."""
TIMER_PAUSE_SECONDS = 0.001
"""Timers that fall due within it are run together."""


def wall_clock() -> int:
    """Seconds since the epoch."""
    return int(time.time())


class Port(Protocol):
    """What packets come from: `Tap` or `Tun`."""

    def fileno(self) -> int: ...

    def receive_into(self, buffer: bytearray) -> int:
        """Bytes of the next IP packet, which then is at `IP_AT`; 0 for one to skip. Or BlockingIOError."""
        ...


class Feed(NamedTuple):
    """A port, and which of the core's functions take what comes from it."""

    port: Port
    plan: Callable[[bytearray, int, int, float], Rewrite | None]
    receive: Callable[[Packet, float], list[Packet]]
    answers_at_once: bool = True
    """Whether what another feed has had sent may have been answered here by the time that it is sent.

    A server on this host has answered a SYN when the write to the TUN returns.
    """


class Timed(Protocol):
    """The core's timers, in seconds of `time.monotonic`."""

    def next_deadline(self) -> float | None: ...

    def on_timeout(self, now: float) -> list[Packet]: ...


class PacketLoop:
    """Moves packets until cancelled. ``tun`` takes everything that is sent."""

    def __init__(self, tun: Tun, feeds: Iterable[Feed], timed: Timed, logger: logging.Logger) -> None:
        self.failures = 0
        """Packets and timers that were given up because of a bug."""
        self._tun = tun
        self._feeds = {feed.port: feed for feed in feeds}
        self._scopes: dict[Port, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._timed = timed
        self._logger = logger
        self._logged: set[tuple[str, int | None]] = set()
        self._buffer = new_buffer()
        self._alarm = trio.CancelScope()
        self._alarm_at = math.inf

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._keep_time)
                for feed in self._feeds.values():
                    self._nursery.start_soon(self._pump, feed)
        finally:
            self._nursery = None

    def add(self, feed: Feed) -> None:
        """Take packets from one more port, now or as soon as the loop runs."""
        self._feeds[feed.port] = feed
        if self._nursery is not None:
            self._nursery.start_soon(self._pump, feed)

    def remove(self, port: Port) -> None:
        """Touch ``port``, which was added and is open, no more from now on."""
        del self._feeds[port]
        if port in self._scopes:
            self._scopes[port].cancel()

    def send(self, packets: Iterable[Packet]) -> None:
        for packet in packets:
            self._tun.send_packet(packet.data, offload.emit(packet.offload))

    async def _pump(self, feed: Feed) -> None:
        """Until removed: take what comes, and what others have by now if the core has sent something."""
        with trio.CancelScope() as self._scopes[feed.port]:
            while feed.port in self._feeds:
                await trio.lowlevel.wait_readable(feed.port)
                if feed.port not in self._feeds:  # removed since it became readable
                    break
                now = time.monotonic()
                if self._take(feed, now):
                    for other in list(self._feeds.values()):
                        if other.answers_at_once and other is not feed:
                            self._take(other, now)
                self._advance_alarm(now)
        del self._scopes[feed.port]

    def _take(self, feed: Feed, now: float) -> bool:
        """`_drain`, and then on, whatever a packet has brought to light."""
        try:
            return self._drain(feed, now)
        except HostError:
            raise
        except Exception as error:  # noqa: BLE001 - see the module's head
            self._give_up(error, {"connection": _connection_of(self._buffer)})
            return False

    def _drain(self, feed: Feed, now: float) -> bool:
        """Whether the core has sent something, beyond what went by plan."""
        has_sent = False
        port, plan_for, receive, _ = feed
        receive_into, send, apply, buffer = port.receive_into, self._tun.send, rewrite.apply, self._buffer
        for _ in range(BATCH):
            try:
                length = receive_into(buffer)
            except BlockingIOError:
                break
            if not length:
                continue
            plan = plan_for(buffer, IP_AT, length, now)
            if plan is not None:
                apply(plan, buffer, IP_AT)
                send(buffer, length)
            else:
                said = offload.parse(memoryview(buffer)[VNET_AT:IP_AT])
                packet = Packet(bytes(buffer[IP_AT : IP_AT + length]), said)
                packets = receive(packet, now)
                self.send(packets)
                has_sent = has_sent or bool(packets)
        return has_sent

    async def _keep_time(self) -> None:
        while True:
            self._alarm, self._alarm_at = trio.CancelScope(), math.inf
            self._advance_alarm(time.monotonic())
            with self._alarm:
                await trio.sleep_forever()
            try:
                self.send(self._timed.on_timeout(time.monotonic()))
            except HostError:
                raise
            except Exception as error:  # noqa: BLE001 - see the module's head
                self._give_up(error, {})

    def _advance_alarm(self, now: float) -> None:
        """To the core's next deadline, where that is earlier; one that moved later costs one vain wake-up."""
        deadline = self._timed.next_deadline()
        if deadline is not None and deadline < self._alarm_at:
            self._alarm_at = deadline
            self._alarm.deadline = trio.current_time() + max(deadline - now, TIMER_PAUSE_SECONDS)

    def _give_up(self, error: Exception, fields: Mapping[str, str]) -> None:
        self.failures += 1
        where = traceback.extract_tb(error.__traceback__)[-1]
        if (where.filename, where.lineno) not in self._logged:
            self._logged.add((where.filename, where.lineno))
            self._logger.error(
                "a bug: packet dropped, more from the same place only count", exc_info=error, extra=fields
            )


def _connection_of(buffer: bytearray) -> str:
    """Both ends of the packet in it, as it says; of what is not TCP, the ports mean nothing."""
    key = bytes(buffer[IP_AT + FLOW_KEY_AT : IP_AT + FLOW_KEY_END])
    source_port, destination_port = key_ports(key)
    return f"{IPv4Address(key[:4])}:{source_port} > {IPv4Address(key[4:8])}:{destination_port}"
