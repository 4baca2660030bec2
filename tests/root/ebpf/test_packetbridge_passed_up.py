"""What Python does with segments that the packetbridge's programs do not know what to do with."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from common.wire.offload import Packet
from packetbridge.core.service import Limits, Service
from packetbridge.ebpf.abi import StateNumber
from packetbridge.ebpf.passed_up import PassedUp
from tests.root.ebpf.bridge_flows import KEY, OTHER_KEY, BridgeMaps, bridge_maps
from tests.unit.packetbridge.scene import LI, OTHER_SERVICE, OTHER_VIP, SERVICE, add, from_client
from tests.unit.wire.packets import RST, Described, built

pytestmark = pytest.mark.root

RESET = Described(from_client=False, seq=add(LI, 501), ack=0, flags=RST, window=0)


@dataclass
class Bridge:
    maps: BridgeMaps
    limits: Limits = field(default_factory=Limits)
    services: tuple[Service, ...] = (SERVICE, OTHER_SERVICE)
    now: float = 1000.0

    def __post_init__(self) -> None:
        by_index = {service.vip_index: service for service in self.services}
        self.passed_up = PassedUp(by_index, self.maps.table, self.limits)

    def receive(self, described: Described) -> list[bytes]:
        return [each.data for each in self.passed_up.receive(Packet(built(described)), self.now)]

    def pass_time(self, seconds: float) -> list[bytes]:
        end = self.now + seconds
        made: list[bytes] = []
        while (at := self.passed_up.next_deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            made += (each.data for each in self.passed_up.on_timeout(self.now))
        self.now = end
        return made


@pytest.fixture
def maps() -> Iterator[BridgeMaps]:
    with bridge_maps() as maps:
        yield maps


@pytest.fixture
def bridge(maps: BridgeMaps) -> Bridge:
    return Bridge(maps)


@pytest.mark.parametrize("state", [StateNumber.ECHOING, StateNumber.ESTABLISHED])
def test_segment_of_a_flow_that_is_spliced_by_now_goes_back_at_once(
    bridge: Bridge, state: StateNumber
) -> None:
    bridge.maps.put(state)
    assert bridge.receive(from_client(b"data")) == [built(from_client(b"data"))]
    assert bridge.passed_up.next_deadline() is None


def test_segment_of_a_flow_that_is_opening_waits_until_it_is_spliced(bridge: Bridge) -> None:
    bridge.maps.put(StateNumber.OPENING)
    assert bridge.receive(from_client(b"data")) == []
    assert bridge.pass_time(1) == []
    bridge.maps.put(StateNumber.ECHOING)
    assert bridge.pass_time(0.05) == [built(from_client(b"data"))]
    assert bridge.passed_up.sizes == {"strangers": 0, "waiting_bytes": 0}


def test_segment_that_comes_back_at_once_does_not_overtake_those_that_wait(bridge: Bridge) -> None:
    bridge.maps.put(StateNumber.OPENING)
    bridge.receive(from_client(b"second", sent=10))
    bridge.receive(from_client(b"first", sent=5))
    bridge.maps.put(StateNumber.ECHOING)
    expected = [
        from_client(b"first", sent=5),
        from_client(b"second", sent=10),
        from_client(b"third", sent=16),
    ]
    assert bridge.receive(from_client(b"third", sent=16)) == list(map(built, expected))
    assert bridge.pass_time(1) == []


def test_segments_that_find_no_room_are_dropped_and_counted(maps: BridgeMaps) -> None:
    bridge = Bridge(maps, Limits(waiting_per_flow=60))
    maps.put(StateNumber.OPENING)
    bridge.receive(from_client(b"data"))
    bridge.receive(from_client(b"more", sent=4))
    assert bridge.passed_up.counters["waiting_full"] == 1
    maps.put(StateNumber.ESTABLISHED)
    assert bridge.pass_time(1) == [built(from_client(b"data"))]


def test_segments_of_a_flow_that_vanishes_while_opening_are_dropped(bridge: Bridge) -> None:
    bridge.maps.put(StateNumber.OPENING)
    bridge.receive(from_client(b"data"))
    bridge.maps.flows.delete(KEY)
    assert bridge.pass_time(10) == []
    assert bridge.passed_up.sizes == {"strangers": 0, "waiting_bytes": 0}


def test_stranger_is_reset_as_the_vip_three_seconds_later(bridge: Bridge) -> None:
    assert bridge.receive(from_client(b"data", got=500)) == []
    assert bridge.passed_up.sizes["strangers"] == 1
    assert bridge.pass_time(2.9) == []
    assert bridge.pass_time(0.2) == [built(RESET)]
    assert bridge.passed_up.counters["stranger_reset"] == 1


@pytest.mark.parametrize("state", StateNumber)
def test_stranger_whose_flow_comes_meanwhile_is_not_reset(bridge: Bridge, state: StateNumber) -> None:
    bridge.receive(from_client(b"data", got=500))
    bridge.pass_time(2.9)
    bridge.maps.put(state)
    assert bridge.pass_time(5) == []


def test_flow_of_another_vip_makes_nobody_known(bridge: Bridge) -> None:
    bridge.receive(from_client(b"data", got=500))
    bridge.maps.put(StateNumber.ESTABLISHED, OTHER_KEY)
    assert bridge.pass_time(5) == [built(RESET)]


def test_each_vip_resets_its_own_stranger(bridge: Bridge) -> None:
    bridge.receive(from_client(b"data", got=500)._replace(tos=2 << 2))
    assert bridge.pass_time(5) == [built(RESET._replace(server=OTHER_VIP))]


def test_resets_are_limited(maps: BridgeMaps) -> None:
    bridge = Bridge(maps, Limits(resets_per_second=1))
    for port in range(3):
        bridge.receive(from_client(b"data")._replace(client_port=50_000 + port))
    assert len(bridge.pass_time(3.5)) == 1
    assert bridge.passed_up.counters["stranger_reset_limited"] == 2


def test_packet_that_is_no_segment_is_dropped_and_counted_by_its_reason(bridge: Bridge) -> None:
    broken = bytearray(built(from_client(b"data")))
    broken[10] ^= 1
    assert bridge.passed_up.receive(Packet(bytes(broken)), bridge.now) == []
    assert bridge.passed_up.receive(Packet(b"\x45"), bridge.now) == []
    assert bridge.passed_up.counters == {"bad_ip_checksum": 1, "truncated": 1}


def test_segment_with_an_index_of_no_service_is_dropped_and_counted(bridge: Bridge) -> None:
    assert bridge.receive(from_client(b"data")._replace(tos=9 << 2)) == []
    assert bridge.passed_up.counters == {"unknown_dscp": 1}
    assert bridge.passed_up.next_deadline() is None
