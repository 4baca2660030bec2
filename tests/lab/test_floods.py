"""More than anybody should send: memory and answers are bounded, and everybody else is served."""

import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from scapy.layers.inet import IP, TCP
from scapy.packet import Packet

from lab import Lab, Process
from tests.lab.conversation import VIP_ADDRESS
from tests.lab.crafted import Line, line_to
from tests.lab.observed import counters_of, daemon_of
from tests.lab.sockets import await_that
from tests.lab.wellbeing import assert_all_is_well

pytestmark = pytest.mark.root

NOWHERE = "203.0.113.1"
BATCH = 500
"""Fewer packets than the kernel keeps for a busy receiver."""
HALF_OPEN_LIMIT = 65_536
OVERFLOW = 15_000
STRANGERS = 6_000
STRANGERS_REMEMBERED = 4_096
RESETS_A_SECOND = 1_000


@pytest.fixture(autouse=True)
def _nowhere(running_lab: Lab) -> Iterator[None]:
    """The router takes what goes to clients that are not there, and is silent about it."""
    running_lab.router.run(["ip", "route", "add", "blackhole", "203.0.0.0/8"])
    yield
    running_lab.router.run(["ip", "route", "delete", "blackhole", "203.0.0.0/8"])


class Counted:
    """A daemon's counters since then."""

    def __init__(self, daemon: Process) -> None:
        self._daemon = daemon
        self._before = counters_of(daemon)

    def __call__(self, *names: str) -> int:
        now = counters_of(self._daemon)
        return sum(now.get(name, 0) - self._before.get(name, 0) for name in names)


def clients(packet: Packet) -> Iterator[bytes]:
    """The packet from one client after another, without end.

    Sequence number and IP id make up for what address and port add to the checksums (RFC 1071 section 2):
    computing those anew would take longer than sending.
    """
    data = bytearray(bytes(packet))
    id_and_address, port_and_seq = word(data, 4) + word(data, 14), word(data, 20) + word(data, 26)
    port_and_seq += word(data, 14)
    for number in count():
        address, port = 1 + (number >> 12), 1024 + (number & 0xFFF)
        data[4:6] = ((id_and_address - address) % 0xFFFF).to_bytes(2, "big")
        data[14:16] = address.to_bytes(2, "big")
        data[20:22] = port.to_bytes(2, "big")
        data[26:28] = ((port_and_seq - address - port) % 0xFFFF).to_bytes(2, "big")
        yield bytes(data)


def word(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def send_batch(line: Line, packets: Iterator[bytes]) -> None:
    for _ in range(BATCH):
        line.send(next(packets))


def send_until(line: Line, packets: Iterator[bytes], enough: Callable[[], bool]) -> int:
    """A batch after the other. How many packets that was: on a busy machine some get lost."""
    batches = 0

    def is_enough() -> bool:
        nonlocal batches
        send_batch(line, packets)
        batches += 1
        return enough()

    await_that(is_enough, 60)
    return batches * BATCH


def resident_kib(process: Process) -> int:
    with open(f"/proc/{process.pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


@pytest.mark.engine("raw", reason="half-open connections are in the process's memory")
def test_syns_take_bounded_memory_and_keep_nobody_out(running_lab: Lab) -> None:
    balancer = daemon_of(running_lab.balancer)
    counted = Counted(balancer)
    options = [("MSS", 1460), ("SAckOK", b"")]
    syn = IP(src=NOWHERE, dst=VIP_ADDRESS) / TCP(dport=80, flags="S", options=options)
    packets = clients(syn)
    empty = resident_kib(balancer)
    with line_to(running_lab, "balancer") as line:

        def fills_the_table() -> bool:
            for _ in range(8):
                send_batch(line, packets)
            return counted("half_open") == HALF_OPEN_LIMIT

        await_that(fills_the_table, 60)
        full = resident_kib(balancer)
        assert_all_is_well(running_lab)
        answered = counted("answer_syn")

        def overflows() -> bool:
            for _ in range(8):
                send_batch(line, packets)
            return counted("answer_syn") > answered + OVERFLOW

        await_that(overflows, 60)
        overflowing = resident_kib(balancer)
    assert_all_is_well(running_lab)
    assert full - empty < 64 << 10
    assert overflowing - full < 4 << 10
    assert counters_of(balancer)["half_open"] == HALF_OPEN_LIMIT


@pytest.mark.engine(
    "ebpf", reason="half-open connections are in a map, of which the oldest go when it is full"
)
def test_syns_take_no_more_than_the_map_has_and_keep_nobody_out(running_lab: Lab) -> None:
    balancer = daemon_of(running_lab.balancer)
    counted = Counted(balancer)
    empty, resident = counters_of(balancer)["map_bytes"], resident_kib(balancer)
    syn = IP(src=NOWHERE, dst=VIP_ADDRESS) / TCP(dport=80, flags="S", options=[("MSS", 1460)])
    packets = clients(syn)
    with line_to(running_lab, "balancer") as line:
        send_until(line, packets, lambda: counted("answer_syn") >= HALF_OPEN_LIMIT + OVERFLOW)
        assert_all_is_well(running_lab)
    full = counters_of(balancer)
    assert HALF_OPEN_LIMIT // 2 < full["half_open"] <= HALF_OPEN_LIMIT
    assert full["map_bytes"] - empty < 64 << 10
    assert resident_kib(balancer) - resident < 4 << 10
    assert full.get("passed_up", 0) == 0


def test_the_balancer_sends_no_more_resets_than_it_may(running_lab: Lab) -> None:
    counted = Counted(daemon_of(running_lab.balancer))
    packets = clients(IP(src=NOWHERE, dst=VIP_ADDRESS) / TCP(dport=80, flags="A"))
    started = time.monotonic()
    with line_to(running_lab, "balancer") as line:
        send_until(line, packets, lambda: counted("resets_sent", "resets_suppressed") >= STRANGERS)
    assert 0 < counted("resets_sent") <= RESETS_A_SECOND * (2 + time.monotonic() - started)
    assert_all_is_well(running_lab)


def test_the_packetbridge_remembers_no_more_strangers_than_it_may(running_lab: Lab) -> None:
    counted = Counted(daemon_of(running_lab.nodes[0]))
    packets = clients(IP(src=NOWHERE, dst="192.168.33.20", tos=4) / TCP(dport=80, flags="A"))

    def all_came() -> bool:
        assert counted("strangers") <= STRANGERS_REMEMBERED
        return counted("client_segment") >= STRANGERS

    with line_to(running_lab, "node1") as line:
        sent = send_until(line, packets, all_came)
    assert_all_is_well(running_lab)
    await_that(lambda: counted("strangers") == 0)
    assert STRANGERS <= counted("stranger_reset", "stranger_reset_limited", "strangers_full") <= sent
    assert counted("stranger_reset") > 0
