"""The balancer's tables in maps: what is put there comes back, and ages as the core's own tables do.

Expected bytes are those of the structs in docs/ebpf.md, written out here.
"""

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from balancer.core.connection import Flow, Handshake, Hello
from balancer.core.service import Service, Services
from balancer.ebpf import abi
from balancer.ebpf.tables import Keys, MapFlowTable, MapHalfOpenTable, MapVerifiedTable
from common.bpf.abi import FLOW_ID
from common.bpf.maps import HashMap
from common.tables import Aging, TableFullError
from common.tcp.activity import Activity, Phase
from common.wire.tcp_options import SynOptions, Timestamps
from tests.root.ebpf.hash_maps import hash_map
from tests.unit.balancer.scene import INDEX, NODES, PORT, VIP, make_service, packed

pytestmark = pytest.mark.root

CLIENT = packed("203.0.113.7")
KEY = CLIENT + packed(VIP) + struct.pack(">HH", 49152, PORT)
MAP_KEY = CLIENT + struct.pack(">HBB", 49152, INDEX, 0)
HANDSHAKE = Handshake(0xFFFF_FFFF, 0x8000_0001, 1460, 14, sack_permitted=True, timestamps=True)
BARE = Handshake(1, 2, 536, None, sack_permitted=False, timestamps=False)
HELLO = Hello(0xFFFF_FFFF, SynOptions(1460, 7, sack_permitted=True, timestamps=Timestamps(5, 6)))
NOW = 5000.75


@pytest.fixture
def service() -> Service:
    return make_service()


@pytest.fixture
def services(service: Service) -> Services:
    return Services([service])


@pytest.fixture
def flows() -> Iterator[HashMap]:
    with hash_map(FLOW_ID.size, abi.FLOW.size, 4) as flows:
        yield flows


@pytest.fixture
def table(flows: HashMap, services: Services) -> MapFlowTable:
    return MapFlowTable(flows, services)


def other_key(number: int) -> bytes:
    return CLIENT + packed(VIP) + struct.pack(">HH", number, PORT)


def make_flow(service: Service, node: str = "node2", handshake: Handshake = HANDSHAKE) -> Flow:
    made = service.nodes[node]
    return Flow(handshake, made, Activity(0x1234_5678, 4000.0), 3999.0, made.plan)


def facts(flow: Flow | None) -> object:
    """All that a flow is, its activity by value."""
    if flow is None:
        return None
    activity = flow.activity
    return flow._replace(activity=Activity(0, 0.0))[:2], flow[3:], activity_of(activity)


def activity_of(activity: Activity) -> tuple[int, float, Phase, int | None]:
    return activity.next, activity.seen, activity.phase, activity.fin


def test_key_has_client_and_index_and_comes_back(services: Services) -> None:
    keys = Keys(services)
    assert keys.pack(KEY) == MAP_KEY
    assert keys.unpack(MAP_KEY) == KEY


def test_key_of_no_service_is_none_until_there_is_one(service: Service) -> None:
    services = Services()
    keys = Keys(services)
    assert keys.pack(KEY) is None
    assert keys.unpack(MAP_KEY) is None
    services.replace([service])
    assert keys.pack(KEY) == MAP_KEY
    assert keys.unpack(MAP_KEY) == KEY


def test_flow_lies_in_the_map_as_the_programs_read_it(
    flows: HashMap, table: MapFlowTable, service: Service
) -> None:
    flow = make_flow(service)
    flow.activity.phase, flow.activity.fin = Phase.FINISHED, 0x1234_5677
    table.put_if_absent(KEY, flow)
    assert dict(flows.items()) == {
        MAP_KEY: struct.pack("=IIIBB2x", 0x1234_5678, 0x1234_5677, 4000, 2, 1)
        + struct.pack("=II", 0xFFFF_FFFF, 0x8000_0001)
        + packed(NODES["node2"])
        + struct.pack("=IIHBB", 3999, 0, 1460, 14, 3)
    }


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("fin", [None, 0, 0xFFFF_FFFF])
@pytest.mark.parametrize("handshake", [HANDSHAKE, BARE], ids=["all options", "no options"])
def test_flow_comes_back_as_it_was(
    table: MapFlowTable, service: Service, phase: Phase, fin: int | None, handshake: Handshake
) -> None:
    flow = make_flow(service, handshake=handshake)
    flow.activity.phase, flow.activity.fin = phase, fin
    assert table.put_if_absent(KEY, flow) is flow
    assert facts(table.get(KEY)) == facts(flow)


def test_contested_flow_has_no_plan_until_its_time_is_over(table: MapFlowTable, service: Service) -> None:
    flow = make_flow(service)
    table.put_if_absent(KEY, flow)
    table.replace(KEY, flow._replace(plan=None, contested_until=4255.5))
    kept = table.get(KEY)
    assert kept is not None
    assert (kept.plan, kept.contested_until) == (None, 4256.0)
    table.replace(KEY, kept._replace(plan=kept.node.plan))
    kept = table.get(KEY)
    assert kept is not None
    assert (kept.plan, kept.contested_until) == (service.nodes["node2"].plan, 0.0)


def test_who_comes_second_adopts_the_first_flow(table: MapFlowTable, service: Service) -> None:
    first = make_flow(service, "node1")
    table.put_if_absent(KEY, first)
    assert facts(table.put_if_absent(KEY, make_flow(service, "node3"))) == facts(first)
    assert len(table) == 1


def test_full_table_refuses_one_more_but_not_one_that_is_there(table: MapFlowTable, service: Service) -> None:
    flow = make_flow(service)
    for number in range(4):
        table.put_if_absent(other_key(number), flow)
    with pytest.raises(TableFullError):
        table.put_if_absent(KEY, flow)
    assert facts(table.put_if_absent(other_key(0), flow)) == facts(flow)
    table.delete(other_key(3))
    table.delete(other_key(3))
    table.put_if_absent(KEY, flow)
    assert len(table) == 4


def test_flow_that_has_gone_does_not_come_back_by_its_activity(
    flows: HashMap, table: MapFlowTable, service: Service
) -> None:
    flow = make_flow(service)
    table.attend(KEY, flow)
    table.replace(KEY, flow)
    assert flows.count() == 0, "the sweeping program has forgotten it meanwhile"
    table.put_if_absent(KEY, flow)
    flow.activity.next, flow.activity.seen = 99, 4100.9
    table.attend(KEY, flow)
    kept = table.get(KEY)
    assert kept is not None
    assert activity_of(kept.activity) == (99, 4100.0, Phase.OPEN, None)


def test_flow_of_a_node_that_is_not_configured_any_more_goes_on_to_it(
    flows: HashMap, service: Service
) -> None:
    services = Services([service])
    table = MapFlowTable(flows, services)
    table.put_if_absent(KEY, make_flow(service, "node3"))
    assert table.get(KEY) is not None
    nodes = {name: node for name, node in service.nodes.items() if name != "node3"}
    services.replace([service._replace(nodes=nodes)])
    kept = table.get(KEY)
    assert kept is not None
    assert kept.node.address == packed(NODES["node3"])
    assert kept.plan == service.nodes["node3"].plan


@pytest.mark.parametrize("value", [HANDSHAKE, BARE], ids=["all options", "no options"])
def test_verified_handshake_comes_back_as_it_was(service: Service, value: Handshake) -> None:
    with hash_map(FLOW_ID.size, abi.VERIFIED.size) as entries:
        table = MapVerifiedTable(entries, Services([service]), 300.0)
        assert table.put(KEY, value, NOW)
        assert table.get(KEY) == value
        scale, options = (14, 3) if value is HANDSHAKE else (15, 0)
        row = struct.pack("=IIIHBB", value.client_isn, value.isn, 5000, value.mss, scale, options)
        assert dict(entries.items()) == {MAP_KEY: row}


@pytest.mark.parametrize(
    ("value", "row"),
    [
        (HELLO, struct.pack("=IIHBB", 0xFFFF_FFFF, 5000, 1460, 7, 3)),
        (Hello(1, SynOptions()), struct.pack("=IIHBB", 1, 5000, 0, 15, 0)),
        (Hello(1, SynOptions(sack_permitted=True)), struct.pack("=IIHBB", 1, 5000, 0, 15, 1)),
        (Hello(1, SynOptions(window_scale=0)), struct.pack("=IIHBB", 1, 5000, 0, 0, 0)),
    ],
)
def test_hello_comes_back_without_its_stamps(service: Service, value: Hello, row: bytes) -> None:
    with hash_map(FLOW_ID.size, abi.HELLO.size) as entries:
        table = MapHalfOpenTable(entries, Services([service]), 60.0)
        assert table.put(KEY, value, NOW)
        assert dict(entries.items()) == {MAP_KEY: row}
        stamps = value.options.timestamps and Timestamps(0, 0)
        assert table.get(KEY) == Hello(value.client_isn, value.options._replace(timestamps=stamps))


Made = tuple[Aging[bytes, Any], Any, float, HashMap]


@pytest.fixture(params=["verified", "half open"])
def aging(request: pytest.FixtureRequest, service: Service) -> Iterator[Made]:
    """A table of four entries, a value for it, and how long one lives."""
    if request.param == "verified":
        with hash_map(FLOW_ID.size, abi.VERIFIED.size, 4) as entries:
            yield MapVerifiedTable(entries, Services([service]), 40.0), HANDSHAKE, 40.0, entries
    else:
        with hash_map(FLOW_ID.size, abi.HELLO.size, 4) as entries:
            yield MapHalfOpenTable(entries, Services([service]), 60.0), HELLO, 60.0, entries


def test_entry_is_seen_as_long_as_it_lives(aging: Made) -> None:
    table, value, lifetime, _ = aging
    table.put(KEY, value, 100.0)
    for now, is_there in ((100 + lifetime - 1, True), (100 + lifetime, False)):
        table.expire(now)
        assert (table.get(KEY) is not None) == is_there
    assert table.next_deadline() is None, "the programs remove it"


def test_replacing_does_not_prolong_a_life_but_a_dead_entry_begins_anew(aging: Made) -> None:
    table, value, lifetime, _ = aging
    table.put(KEY, value, 100.0)
    table.put(KEY, value, 100 + lifetime - 1)
    table.expire(100 + lifetime)
    assert table.get(KEY) is None
    table.put(KEY, value, 100 + lifetime)
    table.expire(100 + 2 * lifetime - 1)
    assert table.get(KEY) is not None


def test_full_aging_table_says_so_and_loses_nothing(aging: Made) -> None:
    table, value, _, entries = aging
    assert [table.put(other_key(number), value, 100.0) for number in range(5)] == [True] * 4 + [False]
    assert table.get(other_key(0)) is not None
    assert table.put(other_key(0), value, 101.0)
    assert len(table) == entries.count() == 4
    table.delete(other_key(0))
    table.delete(other_key(0))
    assert table.put(KEY, value, 102.0)


def two_services(service: Service) -> tuple[Service, Service, bytes]:
    """Two, and a key of the second."""
    other = service._replace(port=8080, vip_index=9)
    return service, other, KEY[:10] + (8080).to_bytes(2, "big")


def test_services_share_the_table(flows: HashMap, service: Service) -> None:
    one, other, other_key = two_services(service)
    table = MapFlowTable(flows, Services([one, other]))
    table.put_if_absent(KEY, make_flow(one))
    table.put_if_absent(other_key, make_flow(other))
    assert {key for key, _ in table.items()} == set(table.keys()) == {KEY, other_key}


def test_flows_of_a_service_that_is_gone_are_not_seen(flows: HashMap, service: Service) -> None:
    services = Services([service])
    table = MapFlowTable(flows, services)
    table.put_if_absent(KEY, make_flow(service))
    services.replace([])
    assert table.get(KEY) is None
    assert list(table.items()) == []
    assert list(table.keys()) == []
    table.delete(KEY)
    assert flows.count() == 1


def test_flows_of_one_node_are_taken_and_the_others_stay(flows: HashMap, service: Service) -> None:
    one, other, other_service_key = two_services(service)
    table = MapFlowTable(flows, Services([one, other]))
    table.put_if_absent(KEY, make_flow(one, "node2"))
    table.put_if_absent(other_key(7), make_flow(one, "node1"))
    table.put_if_absent(other_service_key, make_flow(other, "node2"))
    taken = list(table.take_of_node(INDEX, packed(NODES["node2"])))
    assert [(key, facts(flow)) for key, flow in taken] == [(KEY, facts(make_flow(one, "node2")))]
    assert {key for key, _ in table.items()} == {other_key(7), other_service_key}


def test_handshakes_are_walked_through(service: Service) -> None:
    with hash_map(FLOW_ID.size, abi.VERIFIED.size) as entries:
        table = MapVerifiedTable(entries, Services([service]), 300.0)
        table.put(KEY, HANDSHAKE, NOW)
        table.put(other_key(5), BARE, NOW)
        assert set(table.keys()) == {KEY, other_key(5)}
