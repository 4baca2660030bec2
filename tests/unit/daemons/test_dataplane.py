"""The loop that moves packets, on ports in memory."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import cast

import pytest
import trio
import trio.testing
from scapy.layers.inet import IP, TCP

from common.dataplane import BATCH, Feed, PacketLoop
from common.net.buffer import IP_AT, VNET_AT
from common.net.errors import HostError
from common.net.tun import Tun
from common.wire import rewrite
from common.wire.offload import Packet
from common.wire.rewrite import Rewrite

LOGGER = logging.getLogger("dataplane")
SECONDS = 30.0
"""In which a test must be through."""
OLD, NEW = (bytes((192, 168, 33, 10)), 80), (bytes((192, 168, 33, 20)), 80)
PLAN = Rewrite(rewrite.to_destination(OLD, NEW, index=1))


def tcp(payload: bytes, destination: str = "192.168.33.10", dscp: int = 0) -> bytes:
    header = IP(src="198.51.100.10", dst=destination, tos=dscp << 2)
    return bytes(header / TCP(sport=40000, dport=80, flags="A") / payload)


class Port:
    """What is put into it comes out as packets without offload."""

    def __init__(self) -> None:
        self._packets: deque[bytes] = deque()
        self._readable = os.eventfd(0, os.EFD_NONBLOCK)

    def put(self, packet: bytes) -> None:
        self._packets.append(packet)
        os.eventfd_write(self._readable, 1)

    def fileno(self) -> int:
        return self._readable

    def receive_into(self, buffer: bytearray) -> int:
        if not self._packets:
            os.eventfd_read(self._readable)
            raise BlockingIOError
        packet = self._packets.popleft()
        buffer[VNET_AT : IP_AT + len(packet)] = bytes(IP_AT - VNET_AT) + packet
        return len(packet)

    def close(self) -> None:
        os.close(self._readable)


class Outlet:
    """Stands for the TUN."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_gone = False

    def send(self, buffer: bytearray, length: int) -> None:
        self.send_packet(bytes(buffer[IP_AT : IP_AT + length]))

    def send_packet(self, data: bytes, _vnet: bytes = b"") -> None:
        if self.is_gone:
            raise HostError("the device is gone")
        self.sent.append(data)


class Core:
    """Plans for what has the payload "plan"; answers the rest with itself, and stumbles over "bug"."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.received: list[bytes] = []
        self.timeouts: list[float] = []

    def plan(self, buffer: bytearray, at: int, length: int, _now: float) -> Rewrite | None:
        return PLAN if buffer[at : at + length].endswith(b"plan") else None

    def receive(self, packet: Packet, now: float) -> list[Packet]:
        self.received.append(packet.data)
        if packet.data.endswith(b"bug"):
            raise LookupError("stumbled")
        if packet.data.endswith(b"timer"):
            self.deadline = now + 0.02
        return [packet]

    def next_deadline(self) -> float | None:
        return self.deadline

    def on_timeout(self, now: float) -> list[Packet]:
        self.timeouts.append(now)
        if self.deadline is not None and self.deadline <= now:
            self.deadline = None
            return [Packet(tcp(b"timeout"))]
        return []


class Bench:
    def __init__(self) -> None:
        self.port, self.outlet, self.core = Port(), Outlet(), Core()
        feed = Feed(self.port, self.core.plan, self.core.receive)
        self.plane = PacketLoop(cast(Tun, self.outlet), [feed], self.core, LOGGER)

    def run_until(self, done: Callable[[], bool]) -> None:
        async def run() -> None:
            with trio.fail_after(SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.plane.run)
                    while not done():  # noqa: ASYNC110 - whatever a test waits for
                        await trio.sleep(0.001)
                    nursery.cancel_scope.cancel()

        trio.run(run)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.port.close()


def test_a_packet_with_a_plan_is_rewritten_and_sent(bench: Bench) -> None:
    bench.port.put(tcp(b"plan"))
    bench.run_until(lambda: bool(bench.outlet.sent))
    assert bench.outlet.sent == [tcp(b"plan", "192.168.33.20", dscp=1)]
    assert bench.core.received == []


def test_every_other_packet_is_the_cores(bench: Bench) -> None:
    packets = [tcp(b"%d" % number) for number in range(3)]
    for packet in packets:
        bench.port.put(packet)
    bench.run_until(lambda: len(bench.outlet.sent) == 3)
    assert bench.core.received == bench.outlet.sent == packets


def test_more_packets_than_a_batch_are_all_served(bench: Bench) -> None:
    for _ in range(2 * BATCH + 1):
        bench.port.put(tcp(b"plan"))
    bench.run_until(lambda: len(bench.outlet.sent) == 2 * BATCH + 1)


def test_a_bug_costs_its_packet_only_and_is_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for payload in (b"1", b"bug", b"2", b"bug", b"plan"):
        bench.port.put(tcp(payload))
    bench.run_until(lambda: len(bench.outlet.sent) == 3)
    assert bench.outlet.sent == [tcp(b"1"), tcp(b"2"), tcp(b"plan", "192.168.33.20", dscp=1)]
    assert bench.plane.failures == 2
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)
    assert record.__dict__["connection"] == "198.51.100.10:40000 > 192.168.33.10:80"


def test_a_host_on_which_nothing_can_be_sent_ends_the_loop(bench: Bench) -> None:
    bench.outlet.is_gone = True
    bench.port.put(tcp(b"plan"))
    with pytest.raises(BaseExceptionGroup) as ended:
        bench.run_until(lambda: False)
    assert ended.group_contains(HostError, match="the device is gone")
    assert bench.plane.failures == 0


def test_a_timer_that_is_set_by_a_packet_runs_when_it_is_due(bench: Bench) -> None:
    began = time.monotonic()
    bench.core.deadline = began + 3600
    bench.port.put(tcp(b"timer"))
    bench.run_until(lambda: len(bench.outlet.sent) == 2)
    assert bench.outlet.sent == [tcp(b"timer"), tcp(b"timeout")]
    assert bench.core.timeouts[0] >= began + 0.02


def test_a_timer_that_moved_later_costs_one_wake_up(bench: Bench) -> None:
    """It is moved while the loop sleeps."""
    bench.core.deadline = time.monotonic() + 0.5
    looks = 0

    def moved() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            bench.core.deadline = time.monotonic() + 3600
        return len(bench.core.timeouts) == 1

    bench.run_until(moved)
    assert bench.outlet.sent == []


def test_a_timer_with_a_bug_is_counted_and_does_not_keep_the_loop_busy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(_now: float) -> list[Packet]:
        raise LookupError("stumbled")

    monkeypatch.setattr(bench.core, "on_timeout", stumble)
    bench.core.deadline = 0.0
    began = time.monotonic()
    bench.port.put(tcp(b"plan"))
    bench.run_until(lambda: time.monotonic() > began + 0.05)
    assert len(bench.outlet.sent) == 1
    assert 0 < bench.plane.failures <= (time.monotonic() - began) * 1000 + 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("first", "is_taken"), [(b"ask", True), (b"plan", False)])
def test_what_waits_elsewhere_is_taken_at_once_only_if_the_core_has_sent_something(
    bench: Bench, first: bytes, is_taken: bool
) -> None:
    silent = Port()
    silent._packets.append(tcp(b"answer"))  # without waking anybody
    feeds = [Feed(port, bench.core.plan, bench.core.receive) for port in (bench.port, silent)]
    bench.plane = PacketLoop(cast(Tun, bench.outlet), feeds, bench.core, LOGGER)
    bench.port.put(tcp(first))
    bench.run_until(lambda: len(bench.outlet.sent) == 1 + is_taken)
    assert (tcp(b"answer") in bench.core.received) == is_taken
    silent.close()


def test_a_feed_that_says_so_is_not_looked_at_for_what_others_have_sent(bench: Bench) -> None:
    silent = Port()
    silent._packets.append(tcp(b"later"))  # without waking anybody
    bench.plane.add(Feed(silent, bench.core.plan, bench.core.receive, answers_at_once=False))
    bench.port.put(tcp(b"ask"))
    bench.run_until(lambda: bool(bench.outlet.sent))
    assert bench.core.received == [tcp(b"ask")]
    silent.close()


def test_a_port_is_served_from_when_it_is_added_until_it_is_removed(bench: Bench) -> None:
    before, meanwhile = Port(), Port()

    def feed(port: Port) -> Feed:
        return Feed(port, bench.core.plan, bench.core.receive)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            bench.plane.add(feed(before))
            nursery.start_soon(bench.plane.run)
            before.put(tcp(b"1"))
            await received(1)
            bench.plane.add(feed(meanwhile))
            meanwhile.put(tcp(b"2"))
            await received(2)
            for port in (before, meanwhile):
                bench.plane.remove(port)
                port.close()
            bench.port.put(tcp(b"3"))
            await received(3)
            nursery.cancel_scope.cancel()

    async def received(count: int) -> None:
        while len(bench.core.received) < count:  # noqa: ASYNC110 - whatever a test waits for
            await trio.sleep(0.001)

    async def timely() -> None:
        with trio.fail_after(SECONDS):
            await run()

    trio.run(timely)
    assert bench.core.received == [tcp(b"1"), tcp(b"2"), tcp(b"3")]
    assert bench.plane.failures == 0


@pytest.mark.parametrize("waits", [True, False])
def test_a_port_may_be_closed_as_soon_as_it_is_removed_even_if_it_has_become_readable(
    bench: Bench, waits: bool
) -> None:
    doomed, successor = Port(), None

    async def run() -> None:
        nonlocal successor
        async with trio.open_nursery() as nursery:
            bench.plane.add(Feed(doomed, bench.core.plan, bench.core.receive))
            nursery.start_soon(bench.plane.run)
            if waits:
                await trio.testing.wait_all_tasks_blocked()
            doomed.put(tcp(b"unread"))
            bench.plane.remove(doomed)
            doomed.close()
            successor = Port()  # with the same descriptor
            bench.plane.add(Feed(successor, bench.core.plan, bench.core.receive))
            successor.put(tcp(b"read"))
            with trio.fail_after(SECONDS):
                while not bench.core.received:  # noqa: ASYNC110 - whatever a test waits for
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()

    trio.run(run)
    assert bench.core.received == [tcp(b"read")]
    assert successor is not None
    successor.close()
