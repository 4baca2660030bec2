"""The two daemons' shells without Linux: a receive buffer in front of a real core, a timer behind it.

As the raw data plane does, each packet is put into the one receive buffer behind its virtio_net_hdr. What
has a plan is rewritten there and sent; everything else goes to the core as a packet of its own.
"""

from collections.abc import Callable
from typing import Protocol

from balancer.core.engine import BalancerCore
from common.wire import offload, rewrite
from common.wire.offload import Packet
from common.wire.rewrite import Rewrite
from packetbridge.core.engine import PacketbridgeCore
from packetbridge.core.record import Ended, FlowRecord, Opened
from tests.sim.link import Sink
from tests.sim.segment import Socket
from tests.sim.timeline import Alarm, Timeline

Planner = Callable[[bytearray, int, int, float], Rewrite | None]


class Clocked(Protocol):
    def next_deadline(self) -> float | None: ...


class Daemon:
    """``output`` routes by destination."""

    def __init__(self, timeline: Timeline, output: Sink) -> None:
        self.timeline = timeline
        self.planned = self.unplanned = 0
        """Packets that took the hot path, and all others."""
        self.is_alive = True
        self._output = output
        self._buffer = bytearray(b"\xa5" * (1 << 17))
        self._alarm = Alarm(timeline, self._wake)

    def stop(self) -> None:
        self.is_alive = False
        self._alarm.set(None)

    def _pass(
        self, packet: Packet, planner: Planner, otherwise: Callable[[Packet, float], list[Packet]]
    ) -> None:
        if not self.is_alive:
            return
        now, at, size = self.timeline.now, offload.SIZE, len(packet.data)
        self._buffer[: at + size] = offload.emit(packet.offload) + packet.data
        plan = planner(self._buffer, at, size, now)
        if plan is not None:
            self.planned += 1
            rewrite.apply(plan, self._buffer, at)
            self._output(Packet(bytes(self._buffer[at : at + size]), packet.offload))
        else:
            self.unplanned += 1
            self._send(otherwise(packet, now))
        self._rearm()

    def _send(self, packets: list[Packet]) -> None:
        for packet in packets:
            self._output(packet)

    def _rearm(self) -> None:
        self._alarm.set(self._core().next_deadline())

    def _wake(self) -> None:
        self._on_timeout(self.timeline.now)
        deadline = self._core().next_deadline()
        if deadline is not None and deadline <= self.timeline.now:
            raise AssertionError(f"a deadline that was met at {self.timeline.now} stands again at {deadline}")
        self._rearm()

    def _core(self) -> Clocked:
        raise NotImplementedError

    def _on_timeout(self, now: float) -> None:
        raise NotImplementedError


class Balancer(Daemon):
    def __init__(self, timeline: Timeline, output: Sink, core: BalancerCore) -> None:
        super().__init__(timeline, output)
        self.core = core

    def receive(self, packet: Packet) -> None:
        self._pass(packet, self.core.plan, self.core.receive)

    def _core(self) -> Clocked:
        return self.core

    def _on_timeout(self, now: float) -> None:
        self._send(self.core.on_timeout(now))


class Packetbridge(Daemon):
    """``has_socket`` is sock_diag: local and remote end of a socket on the node."""

    def __init__(
        self,
        timeline: Timeline,
        output: Sink,
        core: PacketbridgeCore,
        has_socket: Callable[[tuple[Socket, Socket]], bool],
    ) -> None:
        super().__init__(timeline, output)
        self.core = core
        self.journal: dict[bytes, FlowRecord] = {}
        self._has_socket = has_socket

    def receive_from_balancer(self, packet: Packet) -> None:
        self._pass(packet, self.core.plan_from_balancer, self.core.from_balancer)
        self._keep_journal()

    def receive_from_backend(self, packet: Packet) -> None:
        self._pass(packet, self.core.plan_from_backend, self.core.from_backend)
        self._keep_journal()

    def restore(self, journal: dict[bytes, FlowRecord]) -> None:
        """After a start, what the one before had written down."""
        for key, record in journal.items():
            self._send(self.core.restore(record, self.timeline.now, self._exists(key)))
        self.journal = dict(journal)
        self._keep_journal()
        self._rearm()

    def _keep_journal(self) -> None:
        for event in self.core.journal:
            match event:
                case Opened(record):
                    self.journal[record.key] = record
                case Ended(key):
                    self.journal.pop(key, None)
        self.core.journal.clear()

    def _exists(self, key: bytes) -> bool:
        ports = (int.from_bytes(key[8:10], "big"), int.from_bytes(key[10:12], "big"))
        return self._has_socket(((key[0:4], ports[0]), (key[4:8], ports[1])))

    def _core(self) -> Clocked:
        return self.core

    def _on_timeout(self, now: float) -> None:
        timeouts = self.core.on_timeout(now)
        self._send(timeouts.packets)
        for key in timeouts.questions:
            self._send(self.core.socket_exists(key, self._exists(key), now))
        self._keep_journal()
