"""What a packetbridge's maps and its journal say to each other when one run follows another."""

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.bpf.abi import ENDPOINT, MAX_SERVICES, ActivityCell, PhaseNumber
from common.bpf.maps import ArrayMap, create_array
from common.wire.offload import Packet
from common.wire.rewrite import Splice
from common.wire.segment import FlowKey
from packetbridge.core.flow import Origin
from packetbridge.core.record import FlowRecord, Opened
from packetbridge.core.service import Limits
from packetbridge.ebpf import abi
from packetbridge.ebpf.abi import FLOW, StateNumber
from packetbridge.ebpf.carried_over import CarriedOver, FlowMaps
from packetbridge.ebpf.passed_up import PassedUp
from packetbridge.ebpf.served import ServedMaps
from packetbridge.journal import Journal
from tests.root.ebpf.bridge_flows import KEY, OTHER_KEY, BridgeMaps, bridge_maps, row
from tests.root.ebpf.hash_maps import hash_map
from tests.unit.packetbridge.scene import BACKEND_KEY, CI, LI, OTHER_SERVICE, SERVICE, WALL, add, from_client
from tests.unit.wire.packets import ACK, RST, Described, built

pytestmark = pytest.mark.root

LOGGER = logging.getLogger("packetbridge")
SAVED = FlowRecord(
    vip_index=1,
    vip=SERVICE.vip,
    vip_port=80,
    key=BACKEND_KEY,
    origin=Origin(CI, LI, WALL),
    splice=Splice(3, 4, -6, 7),
    floor=None,
)
"""Of `row`."""
PROBE = built(Described(from_client=False, seq=LI, ack=CI + 1, flags=ACK, window=0))
STONE = KEY + CI.to_bytes(4, "little") + LI.to_bytes(4, "little")


@dataclass
class Run:
    """Of a packetbridge that finds the journal as the one before has left it."""

    maps: BridgeMaps
    journal: Journal
    sockets: set[FlowKey] = field(default_factory=set)
    """Those that the kernel still has."""
    now: float = 1000.0

    def __post_init__(self) -> None:
        services = {service.vip_index: service for service in (SERVICE, OTHER_SERVICE)}
        self.passed_up = PassedUp(services, self.maps.table, Limits())
        self.carried = CarriedOver(
            self.journal,
            services,
            self.maps.table,
            self.passed_up.strangers,
            self.sockets.intersection,
            self.passed_up.counters,
        )

    def start(self) -> list[bytes]:
        """What is sent."""
        probes = self.carried.restore(self.now, LOGGER)
        self.carried.leave_to_maps()
        return [packet.data for packet in probes]

    def pass_time(self, seconds: float) -> list[bytes]:
        end = self.now + seconds
        sent: list[bytes] = []
        while (at := self.carried.next_deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            sent += (packet.data for packet in self.carried.on_timeout(self.now))
        self.now = end
        return sent

    def receive(self, described: Described) -> list[bytes]:
        return [each.data for each in self.passed_up.receive(Packet(built(described)), self.now)]

    def states(self) -> dict[bytes, int]:
        return {key: FLOW.unpack(value).state for key, value in self.maps.flows.items()}


@pytest.fixture
def maps() -> Iterator[BridgeMaps]:
    with bridge_maps() as maps:
        yield maps


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "journal", LOGGER)) as journal:
        yield journal


@pytest.fixture
def services() -> Iterator[ArrayMap]:
    descriptor = create_array("services", abi.SERVICE.size, MAX_SERVICES)
    with hash_map(ENDPOINT.size, abi.INDEX_SIZE) as backends:
        ServedMaps(ArrayMap(descriptor), backends, lambda _: 0).serve([SERVICE, OTHER_SERVICE])
    yield ArrayMap(descriptor)
    os.close(descriptor)


def write(maps: BridgeMaps, services: ArrayMap, journal: Journal) -> None:
    """What a stop does when the programs are gone."""
    descriptors = {"flows": os.dup(maps.flows.descriptor), "services": os.dup(services.descriptor)}
    with closing(FlowMaps(descriptors)) as made:
        made.write_to(journal)


def test_flows_that_are_spliced_or_adopted_are_written(
    maps: BridgeMaps, services: ArrayMap, journal: Journal
) -> None:
    states = (StateNumber.ECHOING, StateNumber.ESTABLISHED, StateNumber.ADOPTED)
    for port, state in enumerate(StateNumber):
        maps.put(state, KEY[:4] + port.to_bytes(2, "big") + KEY[6:])
    write(maps, services, journal)
    ports = {int.from_bytes(saved.key[10:12], "big") for saved in journal.read()}
    assert ports == {port for port, state in enumerate(StateNumber) if state in states}


def test_flows_of_all_services_are_written(maps: BridgeMaps, services: ArrayMap, journal: Journal) -> None:
    for key in (KEY, OTHER_KEY):
        maps.put(StateNumber.ESTABLISHED, key)
    write(maps, services, journal)
    found = {saved.vip_index: saved for saved in journal.read()}
    assert found.keys() == {1, 2}
    assert found[1] == SAVED
    assert found[2][:3] == OTHER_SERVICE[:3]
    assert found[2].is_of(OTHER_SERVICE)


def test_flows_that_both_sides_have_finished_come_last(
    maps: BridgeMaps, services: ArrayMap, journal: Journal
) -> None:
    closed = ActivityCell(next=1, fin=2, seen=900, phase=PhaseNumber.FINISHED, has_fin=1)
    for port in range(16):
        made = row(StateNumber.ESTABLISHED)
        if port % 2:
            made = made._replace(client=closed, backend=closed)
        maps.flows.update(KEY[:4] + port.to_bytes(2, "big") + KEY[6:], FLOW.pack(made))
    write(maps, services, journal)
    found = [saved.key[11] % 2 for saved in journal.read()]
    assert found == [0] * 8 + [1] * 8


def test_maps_that_cannot_be_read_write_nothing(journal: Journal) -> None:
    with closing(FlowMaps({})) as made:
        made.write_to(journal)
    assert journal.read() == []


def test_flow_whose_socket_lives_goes_into_the_map_and_out_of_the_journal(
    maps: BridgeMaps, journal: Journal
) -> None:
    journal.note([Opened(SAVED)])
    run = Run(maps, journal, {BACKEND_KEY})
    assert run.start() == []
    assert run.states() == {KEY: StateNumber.ESTABLISHED}
    assert journal.read() == []
    assert run.pass_time(10) == []
    assert run.states() == {KEY: StateNumber.ESTABLISHED}
    assert run.passed_up.counters == {"restored": 1}


def test_flow_that_is_in_the_map_is_left_as_it_is(maps: BridgeMaps, journal: Journal) -> None:
    maps.put(StateNumber.ADOPTED)
    journal.note([Opened(SAVED)])
    run = Run(maps, journal, {BACKEND_KEY})
    assert run.start() == []
    assert run.states() == {KEY: StateNumber.ADOPTED}
    assert run.passed_up.counters == {"restored_in_vain": 1}


def test_flow_for_which_the_map_has_no_room_is_left_out(maps: BridgeMaps, journal: Journal) -> None:
    room = maps.flows.info.max_entries
    keys = [BACKEND_KEY[:10] + port.to_bytes(2, "big") for port in range(room + 1)]
    journal.note(Opened(SAVED._replace(key=key)) for key in keys)
    run = Run(maps, journal, set(keys))
    assert run.start() == []
    assert maps.flows.count() == room
    assert run.passed_up.counters == {"restored": room, "restored_in_vain": 1}


def test_flow_whose_socket_is_gone_is_probed_three_times_and_buried(
    maps: BridgeMaps, journal: Journal
) -> None:
    journal.note([Opened(SAVED)])
    run = Run(maps, journal)
    assert run.start() == [PROBE]
    assert run.states() == {}
    assert dict(maps.tombstones.items()) == {STONE: (1000).to_bytes(4, "little")}
    assert run.pass_time(1.5) == [PROBE]
    assert journal.read() == [SAVED]
    assert run.pass_time(10) == [PROBE]
    assert journal.read() == []


def test_client_of_a_flow_that_is_lost_is_reset_when_it_answers(maps: BridgeMaps, journal: Journal) -> None:
    journal.note([Opened(SAVED)])
    run = Run(maps, journal)
    run.start()
    reset = Described(from_client=False, seq=add(LI, 123_457), ack=0, flags=RST, window=0)
    assert run.receive(from_client(got=123_456)) == [built(reset)]


def test_flow_whose_socket_dies_soon_after_is_lost_too(maps: BridgeMaps, journal: Journal) -> None:
    journal.note([Opened(SAVED)])
    run = Run(maps, journal, {BACKEND_KEY})
    run.start()
    run.sockets.clear()
    assert run.pass_time(1.5) == [PROBE]
    assert run.states() == {}
    assert run.passed_up.counters == {"restored": 1, "restored_in_vain": 1}
    assert run.pass_time(10) == [PROBE]


def test_flow_that_took_a_carried_ones_place_is_left_alone(maps: BridgeMaps, journal: Journal) -> None:
    journal.note([Opened(SAVED)])
    run = Run(maps, journal, {BACKEND_KEY})
    run.start()
    maps.flows.update(KEY, FLOW.pack(row(StateNumber.ESTABLISHED)._replace(client_isn=CI + 1)))
    run.sockets.clear()
    assert run.pass_time(10) == []
    assert run.states() == {KEY: StateNumber.ESTABLISHED}


def test_run_that_ends_at_once_leaves_lost_flows_to_the_next(
    maps: BridgeMaps, services: ArrayMap, journal: Journal
) -> None:
    journal.note([Opened(SAVED)])
    assert Run(maps, journal).start() == [PROBE]
    write(maps, services, journal)
    assert Run(maps, journal).start() == [PROBE]


def test_flow_of_a_service_that_is_not_there_any_more_is_left_out(maps: BridgeMaps, journal: Journal) -> None:
    journal.note([Opened(SAVED._replace(vip_index=3))])
    run = Run(maps, journal, {BACKEND_KEY})
    assert run.start() == []
    assert run.states() == {}
    assert journal.read() == []
    assert run.passed_up.counters == {"restored_of_unknown_service": 1}
