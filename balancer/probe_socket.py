"""How health checks leave this host and how their answers come back, for one address of the host.

They leave by a raw socket, so the kernel routes them and knows nothing of their connections. The answers are
taken by taps, before any data plane and the host's own rules see them, and dropped behind the taps: the
kernel would answer with a RST. The loopback device is tapped, too: the kernel's own ICMP errors come from it.
"""

import errno
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Address

import trio

from balancer.core.probe import Probe
from balancer.probe_ports import ProbePorts
from common.counters import Counters
from common.net.buffer import IP_AT, VNET_AT, new_buffer
from common.net.errors import HostError
from common.net.intake import of_health_checks
from common.net.interfaces import Interface, interfaces
from common.net.ownership import OwnedTable, drop_rules
from common.net.packet_socket import Tap
from common.net.taps import Taps, wanted
from common.wire import icmp, ipv4, offload, segment
from common.wire.errors import WireError
from common.wire.offload import Packet

_BATCH = 64
_IP_FREEBIND = 15
_NO_TUN = 0
"""No interface has this index."""
_FULL = (errno.EAGAIN, errno.ENOBUFS)


class Pending:
    """A check that is under way."""

    def __init__(self, probe: Probe, port: int) -> None:
        self.probe = probe
        self.port = port
        self.woken = trio.Event()
        """Set when `Probe.result`, or whether it is closed, may have changed."""


class ProbeSocket:
    """Owns socket, taps and table until `close`. ``counters`` gets the reasons of what was not understood."""

    def __init__(
        self,
        address: IPv4Address,
        ports: range,
        first: int,
        start: Callable[[Callable[[Tap], Awaitable[None]], Tap], None],
        counters: Counters[str],
    ) -> None:
        """``first`` is where in ``ports`` to begin; ``start`` has a coroutine function run for a tap.

        `HostError` where the host does not allow it.
        """
        self.address = address
        self.ports = ProbePorts(ports, first)
        self.used_at = time.monotonic()
        self._intake = of_health_checks(address, ports)
        self._counters = counters
        self._start = start
        self._heard: set[Tap] = set()
        self._pending: dict[int, Pending] = {}
        self._buffer = new_buffer()
        self._socket = _raw_socket(address)
        self._taps = Taps(self._intake, self._hear, self._forsake)
        self._table: OwnedTable | None = None
        try:
            self._taps.open(_tapped(interfaces(), ()))
            self._table = OwnedTable(self._intake.name, drop_rules(self._intake, self._taps.interfaces))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """May be called more than once."""
        self._taps.close()
        self._socket.close()
        if self._table:
            self._table.close()

    def tend(self, found: Iterable[Interface]) -> list[str]:
        """Follow the host's interfaces; says what was done. `HostError`."""
        before = {tapped.index for tapped in self._taps.interfaces}
        said = self._taps.follow(_tapped(found, self._taps.interfaces))
        after = self._taps.interfaces
        if self._table and before != {tapped.index for tapped in after}:
            self._table.replace(drop_rules(self._intake, after))
        return [f"health checks from {self.address}: {line}" for line in said]

    def enter(self, pending: Pending) -> None:
        """From now on it gets what comes to its port, until another check gets the port."""
        self._pending[pending.port] = pending

    def send(self, pending: Pending, packets: Iterable[Packet], node: bytes) -> None:
        """To the node. What this host does not let out is the check's end."""
        self.used_at = time.monotonic()
        for packet in packets:
            try:
                self._socket.sendto(packet.data, (str(IPv4Address(node)), 0))
            except OSError as error:
                if error.errno in _FULL:
                    self._counters["probe_not_sent"] += 1
                    continue
                pending.probe.not_sent(_said(error), time.monotonic())
                pending.woken.set()
                return

    def _hear(self, tap: Tap) -> None:
        self._heard.add(tap)
        self._start(self._pump, tap)

    def _forsake(self, tap: Tap) -> None:
        self._heard.remove(tap)
        trio.lowlevel.notify_closing(tap)

    async def _pump(self, tap: Tap) -> None:
        """Take what comes from one tap, until it is closed."""
        with suppress(trio.ClosedResourceError):
            while tap in self._heard:
                await trio.lowlevel.wait_readable(tap)
                self._drain(tap)

    def _drain(self, tap: Tap) -> None:
        for _ in range(_BATCH):
            try:
                length = tap.receive_into(self._buffer)
            except BlockingIOError:
                return
            if not length:
                continue
            said = offload.parse(memoryview(self._buffer)[VNET_AT:IP_AT])
            try:
                self._take(Packet(bytes(self._buffer[IP_AT : IP_AT + length]), said))
            except WireError as error:
                self._counters[error.reason] += 1

    def _take(self, packet: Packet) -> None:
        now = time.monotonic()
        if ipv4.carries(packet.data, ipv4.PROTOCOL_ICMP):
            header = ipv4.parse_untrusted(packet.data)
            error = icmp.parse_untrusted(packet.data[header.size : header.total_length])
            if pending := self._pending.get(int.from_bytes(error.quoted_key[8:10], "big")):
                packets = pending.probe.receive_error(error, header.source, now)
                self.send(pending, packets, pending.probe.check.node)
                pending.woken.set()
            return
        came = segment.parse_untrusted(packet)
        if pending := self._pending.get(came.destination_port):
            self.send(pending, pending.probe.receive(came, now), pending.probe.check.node)
            pending.woken.set()


def _tapped(found: Iterable[Interface], tapped: Iterable[Interface]) -> list[Interface]:
    """Which interfaces to tap now, if some are tapped already."""
    found = list(found)
    loopback = [interface for interface in found if interface.is_loopback and interface.is_up]
    others = wanted(found, (interface for interface in tapped if not interface.is_loopback), _NO_TUN)
    return [*others, *loopback]


def _raw_socket(address: IPv4Address) -> socket.socket:
    """Bound, so that the routing rules for the address hold; the host need not have it."""
    try:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    except OSError as error:
        raise HostError(f"cannot open a raw socket for health checks: {error.strerror}") from error
    try:
        made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        made.bind((str(address), 0))
    except OSError as error:
        made.close()
        raise HostError(f"cannot check nodes from {address}: {error.strerror}") from error
    return made


def _said(error: OSError) -> str:
    said = f"this host cannot send to it: {os.strerror(error.errno or 0)}"
    if error.errno == errno.EPERM:
        said += " (does a rule of its firewall drop it?)"
    return said
