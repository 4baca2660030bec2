"""Segments that wait until their flow's backend has answered: order, bounds, and how long."""

import pytest

from common.wire.offload import Packet
from packetbridge.core.service import Limits
from packetbridge.ebpf.waiting_room import Openness, WaitingRoom
from tests.unit.packetbridge.scene import from_client
from tests.unit.wire.packets import built

ONE, OTHER = b"flow one", b"flow two"
NOW = 1000.0
HEADERS = 52
"""Bytes of a segment in front of its payload."""


class Table:
    """What the programs' table says of each flow, and how often it was asked."""

    def __init__(self) -> None:
        self.openness = {ONE: Openness.OPENING, OTHER: Openness.OPENING}
        self.looks: list[bytes] = []

    def look(self, key: bytes) -> Openness:
        self.looks.append(key)
        return self.openness.get(key, Openness.UNKNOWN)


@pytest.fixture
def table() -> Table:
    return Table()


def room(table: Table, per_flow: int = 1 << 16, in_all: int = 1 << 20) -> WaitingRoom:
    return WaitingRoom(table.look, Limits(waiting_per_flow=per_flow, waiting_in_all=in_all))


def packet(sent: int, size: int = 100) -> Packet:
    return Packet(built(from_client(bytes(size), sent=sent)))


def looks_within(waiting: WaitingRoom, seconds: float) -> list[float]:
    """When, after the beginning, something became due; nothing may come of it."""
    times = []
    while (at := waiting.next_deadline()) is not None and at < NOW + seconds:
        times.append(round(at - NOW, 4))
        assert waiting.due(at) == []
    return times


def test_packets_go_on_unchanged_once_the_flow_is_spliced(table: Table) -> None:
    waiting = room(table)
    packets = [packet(100), packet(200)]
    for each in packets:
        assert waiting.hold(ONE, each, NOW)
    assert waiting.due(NOW + 0.001) == []
    table.openness[ONE] = Openness.SPLICED
    assert waiting.due(NOW + 1) == packets
    assert waiting.due(NOW + 2) == []
    assert (waiting.bytes, waiting.next_deadline()) == (0, None)


@pytest.mark.parametrize("beginning", [0, 2**32 - 1_000_150], ids=["", "around 2^32"])
def test_packets_go_on_in_the_clients_order(table: Table, beginning: int) -> None:
    waiting = room(table)
    numbers = [beginning + at for at in (300, 100, 400, 200)]
    for number in numbers:
        waiting.hold(ONE, packet(number), NOW)
    table.openness[ONE] = Openness.SPLICED
    assert waiting.due(NOW + 1) == [packet(number) for number in sorted(numbers)]


def test_what_came_twice_stays_in_the_order_of_its_coming(table: Table) -> None:
    waiting = room(table)
    packets = [packet(100, 50), packet(0), packet(100, 80)]
    for each in packets:
        waiting.hold(ONE, each, NOW)
    table.openness[ONE] = Openness.SPLICED
    assert waiting.due(NOW + 1) == [packets[1], packets[0], packets[2]]


def test_flows_wait_for_themselves_alone(table: Table) -> None:
    waiting = room(table)
    waiting.hold(ONE, packet(100), NOW)
    waiting.hold(OTHER, packet(200), NOW)
    table.openness[OTHER] = Openness.SPLICED
    assert waiting.due(NOW + 1) == [packet(200)]
    assert waiting.bytes == HEADERS + 100
    table.openness[ONE] = Openness.SPLICED
    assert waiting.due(NOW + 2) == [packet(100)]


def test_pauses_grow_from_half_a_millisecond_to_fifty(table: Table) -> None:
    waiting = room(table)
    waiting.hold(ONE, packet(100), NOW)
    assert looks_within(waiting, 0.2) == [
        0.0005, 0.0015, 0.0035, 0.0075, 0.0155, 0.0315, 0.0635, 0.1135, 0.1635,
    ]  # fmt: skip


def test_nothing_is_looked_at_before_its_time(table: Table) -> None:
    waiting = room(table)
    assert waiting.next_deadline() is None
    waiting.hold(ONE, packet(100), NOW)
    table.openness[ONE] = Openness.SPLICED
    assert waiting.due(NOW + 0.0004) == []
    assert table.looks == []


def test_a_later_packet_does_not_prolong_the_wait(table: Table) -> None:
    waiting = room(table)
    waiting.hold(ONE, packet(100), NOW)
    looks_within(waiting, 59)
    waiting.hold(ONE, packet(200), NOW + 59)
    looks_within(waiting, 60.2)
    assert (waiting.bytes, waiting.next_deadline()) == (0, None)


def test_backend_that_does_not_answer_is_waited_for_a_minute(table: Table) -> None:
    waiting = room(table)
    waiting.hold(ONE, packet(100), NOW)
    times = looks_within(waiting, 100)
    assert 59.9 < times[-1] < 60.1
    assert (waiting.bytes, waiting.next_deadline()) == (0, None)
    assert waiting.hold(ONE, packet(100), NOW + 100)


def test_packets_of_a_flow_that_has_gone_are_dropped(table: Table) -> None:
    waiting = room(table)
    waiting.hold(ONE, packet(100), NOW)
    del table.openness[ONE]
    assert waiting.due(NOW + 1) == []
    assert (waiting.bytes, waiting.next_deadline()) == (0, None)


def test_bound_of_one_flow_is_of_whole_packets_and_leaves_room_for_others(table: Table) -> None:
    waiting = room(table, per_flow=2 * (HEADERS + 100))
    taken = [waiting.hold(ONE, packet(100 * at), NOW) for at in range(3)]
    assert taken == [True, True, False]
    assert waiting.hold(OTHER, packet(0), NOW)
    assert waiting.bytes == 3 * (HEADERS + 100)


def test_bound_of_all_is_given_back_by_those_that_go_on(table: Table) -> None:
    waiting = room(table, in_all=2 * (HEADERS + 100))
    assert waiting.hold(ONE, packet(0), NOW)
    assert waiting.hold(ONE, packet(100), NOW)
    assert not waiting.hold(OTHER, packet(0), NOW)
    table.openness[ONE] = Openness.SPLICED
    assert waiting.due(NOW + 1) == [packet(0), packet(100)]
    assert waiting.hold(OTHER, packet(0), NOW + 1)


def test_who_found_no_room_leaves_no_trace(table: Table) -> None:
    waiting = room(table, per_flow=10)
    assert not waiting.hold(ONE, packet(0), NOW)
    assert (waiting.bytes, waiting.next_deadline()) == (0, None)


def test_release_gives_everything_at_once_in_order(table: Table) -> None:
    waiting = room(table)
    waiting.hold(ONE, packet(200), NOW)
    waiting.hold(ONE, packet(100), NOW)
    waiting.hold(OTHER, packet(0), NOW)
    assert waiting.release(ONE) == [packet(100), packet(200)]
    assert waiting.release(ONE) == []
    assert waiting.bytes == HEADERS + 100
