"""Checks the nodes' health, each by itself and all at different moments (docs/health.md).

For each service and node there is one task: it checks, reports the verdict, and waits for the rest of the
interval, a tenth more or less, so that checks do not fall into step. The first one comes soon, however long
the interval.
"""

import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

import trio

from balancer.core.channel import State
from balancer.core.hearsay import Failure, Hearsay, Knowledge
from balancer.core.probe import Check, CheckResult, Probe
from balancer.probe_ports import find_ports
from balancer.probe_socket import Pending, ProbeSocket
from common.counters import Counters
from common.dataplane import wall_clock
from common.net.errors import HostError
from common.net.interfaces import interfaces
from common.net.packet_socket import Tap
from common.wire.handoff import Handoff

_JITTER = 0.1
_FIRST_WITHIN_SECONDS = 2.0
_INQUIRY_SECONDS = 2.0
_SAY_NOTHING = (State.OK, State.UNKNOWN, State.SILENT)
"""A channel that is in order may have broken a moment ago."""
_IDLE_SECONDS = 120.0
"""After which an address is given up from which no node is checked any more."""


class Target(NamedTuple):
    """One node of one service. Of each pair of VIP index and node address there is at most one."""

    node: str
    """Its name."""
    check: Check
    interval: float
    """Seconds from one check to the next."""
    source: IPv4Address | None = None
    """Where to ask from; None: the address that this host uses on the way to the node."""


_Asker = tuple[str, IPv4Address | None]
"""A node and the `source` that it is checked from: what several of its services may have in common."""
Inquire = Callable[[Target, bytes, int], Awaitable[Hearsay]]
"""What the target's node says of the flow of a client's address (4 bytes) and port, elsewhere."""


class Prober:
    """All methods are for one thread; the host is touched only while `run` runs."""

    def __init__(
        self,
        sign: Callable[[Handoff], Handoff],
        on_result: Callable[[int, bytes, CheckResult], None],
        inquire: Inquire,
        counters: Counters[str],
        logger: logging.Logger,
    ) -> None:
        """``on_result`` is called with VIP index, bridge address and verdict, from the event loop.

        ``counters`` gets `checks_passed`, `checks_failed`, and the reasons of packets not understood.
        """
        self._sign = sign
        self._on_result = on_result
        self._inquire = inquire
        self._counters = counters
        self._logger = logger
        self._targets: dict[tuple[int, bytes], Target] = {}
        self._scopes: dict[tuple[int, bytes], trio.CancelScope] = {}
        self._sockets: dict[IPv4Address, ProbeSocket] = {}
        self._problems: dict[_Asker, str] = {}
        self._asks_from: dict[_Asker, IPv4Address] = {}
        self._icmp_errors: dict[tuple[int, bytes], str] = {}
        """The last one about each target, as long as nothing has come back since: routers ration them, and a
        check that got none of its own is silent for the same reason.
        """
        self._nursery: trio.Nursery | None = None

    def set_targets(self, targets: Iterable[Target]) -> None:
        """Check these from now on. The rhythm of those that stay as they are is not disturbed."""
        wanted = {(target.check.vip_index, target.check.node): target for target in targets}
        for key in [key for key, target in self._targets.items() if wanted.get(key) != target]:
            if scope := self._scopes.pop(key, None):
                scope.cancel()
        fresh = [key for key, target in wanted.items() if self._targets.get(key) != target]
        self._targets = wanted
        self._icmp_errors = {key: said for key, said in self._icmp_errors.items() if key in wanted}
        askers = {_asker(target) for target in wanted.values()}
        self._problems = {asker: text for asker, text in self._problems.items() if asker in askers}
        self._asks_from = {asker: source for asker, source in self._asks_from.items() if asker in askers}
        for key in fresh:
            self._start(key)

    def problems(self) -> list[str]:
        """Why some nodes are not checked at the moment, one line each."""
        return list(self._problems.values())

    def tend(self) -> list[str]:
        """Follow the host's interfaces; says in words what was done.

        To be called every few seconds, and when links or addresses have changed.
        """
        said = []
        now = time.monotonic()
        for address, used in list(self._sockets.items()):
            if now - used.used_at > _IDLE_SECONDS and not used.ports.are_in_use:
                self._sockets.pop(address).close()
        found = interfaces() if self._sockets else []
        for used in self._sockets.values():
            try:
                said += used.tend(found)
            except HostError as error:
                said.append(str(error))
        return said

    async def run(self) -> None:
        """For ever."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for key in self._targets:
                    self._start(key)
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._scopes.clear()
            for used in self._sockets.values():
                used.close()
            self._sockets.clear()

    def _start(self, key: tuple[int, bytes]) -> None:
        if self._nursery is not None:
            self._scopes[key] = trio.CancelScope()
            self._nursery.start_soon(self._watch, self._targets[key], self._scopes[key])

    async def _watch(self, target: Target, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(random.random() * min(target.interval, _FIRST_WITHIN_SECONDS))
            while True:
                following = trio.current_time() + target.interval * random.uniform(1 - _JITTER, 1 + _JITTER)
                await self._check(target)
                await trio.sleep_until(following)

    async def _check(self, target: Target) -> None:
        node = IPv4Address(target.check.node)
        try:
            source = target.source or _address_towards(node)
        except OSError as error:
            text = f"this host cannot send to it: {os.strerror(error.errno or 0)}"
            self._report(target, CheckResult(False, Failure.NODE_UNREACHABLE, text, 0.0))
            return
        if source == node:
            self._complain(target, f"node {target.node} is an address of this host: it is not checked")
            return
        try:
            used = self._socket(source)
            port = used.ports.take(time.monotonic())
        except HostError as error:
            self._complain(target, f"node {target.node} is not checked: {error}")
            return
        if port is None:
            self._complain(target, f"node {target.node} is not checked: all ports for checks are in use")
            return
        self._problems.pop(_asker(target), None)
        if self._asks_from.get(_asker(target)) != source:
            self._asks_from[_asker(target)] = source
            self._logger.info("node %s is checked from %s", target.node, source, extra={"node": target.node})
        isns = secrets.randbits(32), secrets.randbits(32)
        probe = Probe(target.check, (source.packed, port), isns, self._sign, wall_clock)
        pending = Pending(probe, port)
        used.enter(pending)
        try:
            await self._converse(target, used, pending)
        finally:
            used.send(pending, probe.abandon(), target.check.node)
            used.ports.give_back(port, time.monotonic())

    async def _converse(self, target: Target, used: ProbeSocket, pending: Pending) -> None:
        probe, node = pending.probe, target.check.node
        key = target.check.vip_index, node
        is_reported = False
        used.send(pending, probe.begin(time.monotonic()), node)
        while True:
            if probe.is_silent and not probe.result:
                hearsay = Hearsay()
                with trio.move_on_after(_INQUIRY_SECONDS):
                    hearsay = await self._inquire(target, used.address.packed, pending.port)
                is_nothing = hearsay.flow is Knowledge.UNASKED and hearsay.channel in _SAY_NOTHING
                if is_nothing and (said := self._icmp_errors.get(key)):
                    hearsay = Hearsay(State.UNREACHABLE, f"{said}; nothing has come back since")
                used.send(pending, probe.explain(hearsay, time.monotonic()), node)
            if probe.result and not is_reported:
                is_reported = True
                if probe.icmp_error:
                    self._icmp_errors[key] = probe.icmp_error
                elif probe.result.failure is not Failure.NODE_UNREACHABLE:
                    self._icmp_errors.pop(key, None)
                self._report(target, probe.result)
            deadline = probe.next_deadline()
            if deadline is None:
                return
            with trio.move_on_after(max(deadline - time.monotonic(), 0)):
                await pending.woken.wait()
            pending.woken = trio.Event()
            used.send(pending, probe.on_timeout(time.monotonic()), node)

    def _report(self, target: Target, result: CheckResult) -> None:
        self._counters["checks_passed" if result.ok else "checks_failed"] += 1
        if not result.ok:
            self._logger.debug(
                "check of node %s failed: %s", target.node, result.text, extra={"node": target.node}
            )
        self._on_result(target.check.vip_index, target.check.node, result)

    def _complain(self, target: Target, text: str) -> None:
        """Once, as long as it stays the same."""
        if self._problems.get(_asker(target)) != text:
            self._problems[_asker(target)] = text
            self._logger.warning("%s", text, extra={"node": target.node})

    def _socket(self, source: IPv4Address) -> ProbeSocket:
        if source not in self._sockets:
            ports = find_ports(target.check.vip_port for target in self._targets.values())
            first = secrets.randbelow(len(ports))
            self._sockets[source] = ProbeSocket(source, ports, first, self._listen, self._counters)
        return self._sockets[source]

    def _listen(self, pump: Callable[[Tap], Awaitable[None]], tap: Tap) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(pump, tap)


def _asker(target: Target) -> _Asker:
    return target.node, target.source


def _address_towards(node: IPv4Address) -> IPv4Address:
    """The source address that the kernel chooses. OSError where it has no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect((str(node), 9))
        return IPv4Address(asked.getsockname()[0])
