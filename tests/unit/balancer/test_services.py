"""Several services in one balancer, which come, change and go while connections go on."""

from dataclasses import replace

import pytest

from balancer.core.connection import Flow
from balancer.core.loads import FACTOR_ONE, CountedLoads
from balancer.core.reload import refuse_changes
from balancer.core.service import Service, make_nodes
from common.config import ConfigError
from common.tcp.activity import Activity
from tests.unit.balancer.scene import (
    CLIENT,
    FIN,
    GET,
    INDEX,
    NODES,
    RST,
    VIP,
    Client,
    Scene,
    connected,
    forwarded,
    handoff_packet,
    make_service,
    packed,
    reset_of,
)

OTHER_VIP, OTHER_PORT, OTHER_INDEX = "192.168.33.11", 8080, 9


def other_service(index: int = OTHER_INDEX) -> Service:
    vip = packed(OTHER_VIP)
    nodes, table = make_nodes(vip, OTHER_PORT, index, {"node1": (packed(NODES["node1"]), 1)})
    return Service(vip, OTHER_PORT, index, nodes, table)


def bounded_service(factor: float = 1.0) -> Service:
    weights = {packed(address): 1 for address in NODES.values()}
    return make_service()._replace(weights=weights, load_factor=int(factor * FACTOR_ONE))


def test_each_service_tags_its_own_connections() -> None:
    scene = Scene(make_service(), other_service())
    client = Client(scene, vip=OTHER_VIP, service_port=OTHER_PORT).connect()
    made = client.send(GET)
    assert made == [handoff_packet(client, GET, window=64256, node=NODES["node1"], index=OTHER_INDEX)]
    data = client.segment(b"more", at=len(GET))
    assert scene.receive(data) == [forwarded(data, NODES["node1"], OTHER_INDEX)]


def test_equal_ports_of_a_client_to_two_services_are_two_connections() -> None:
    scene = Scene(make_service(), other_service())
    connected(scene)
    Client(scene, vip=OTHER_VIP, service_port=OTHER_PORT).connect().send(GET)
    assert scene.core.sizes["flows"] == 2


@pytest.mark.parametrize("elsewhere", [{"vip": OTHER_VIP}, {"service_port": OTHER_PORT}])
def test_packets_of_no_service_are_dropped(elsewhere: dict[str, str | int]) -> None:
    scene = Scene(make_service(), other_service())
    client = replace(Client(scene), **elsewhere)  # type: ignore[arg-type]
    assert scene.receive(client.syn()) == []
    assert scene.receive(client.segment(GET)) == []
    assert scene.counters == {"dropped_no_service": 2}


def test_a_new_service_is_served_at_once() -> None:
    scene = Scene()
    scene.core.serve([make_service(), other_service()])
    Client(scene, vip=OTHER_VIP, service_port=OTHER_PORT).connect().send(GET)
    assert scene.core.sizes["flows"] == 1


def test_flows_stay_on_their_node_when_it_gets_no_new_ones() -> None:
    scene = Scene()
    client = connected(scene)
    node = client.node_address()
    scene.core.serve([make_service(*(name for name in NODES if name != client.node))])
    data = client.segment(b"more", at=len(GET))
    assert scene.receive(data) == [forwarded(data, node)]
    assert client.send(GET) == [handoff_packet(client, GET, window=64256, node=node)]


def test_flows_stay_on_a_node_that_is_not_configured_any_more() -> None:
    scene = Scene()
    client = connected(scene)
    node = client.node_address()
    service = make_service()
    nodes = {name: each for name, each in service.nodes.items() if name != client.node}
    scene.core.serve([service._replace(nodes=nodes, table=None)])
    data = client.segment(b"more", at=len(GET))
    assert scene.receive(data) == [forwarded(data, node)]


def test_connections_of_a_service_that_is_gone_are_forgotten_and_no_others() -> None:
    scene = Scene(make_service(), other_service())
    there = {"vip": OTHER_VIP, "service_port": OTHER_PORT}
    for number, place in enumerate(({}, there)):
        Client(scene, port=1000 + number, stamps=False, **place).greet()  # type: ignore[arg-type]
        Client(scene, port=2000 + number, **place).connect()  # type: ignore[arg-type]
        Client(scene, port=3000 + number, **place).connect().send(b"GET /f")  # type: ignore[arg-type]
        Client(scene, port=4000 + number, **place).connect().send(GET)  # type: ignore[arg-type]
        Client(scene, port=5000 + number, **place).connect().send(flags=FIN | 0x10)  # type: ignore[arg-type]
    assert set(scene.core.sizes.values()) == {2}
    assert scene.core.serve([make_service()]) == 1
    assert set(scene.core.sizes.values()) == {1}
    assert [flow.client_port for flow in scene.core.flows(scene.now)] == [4000]
    assert scene.core._connections.collecting_bytes < 1000


def test_services_with_the_same_nodes_and_weights_share_a_table() -> None:
    tables = [make_nodes(bytes(4), 80, 1, {"a": (bytes(4), 1), "b": (bytes(4), n)})[1] for n in (1, 2, 1)]
    assert tables[0] is tables[2]
    assert tables[0] is not tables[1]


def test_a_service_that_comes_back_knows_none_of_its_connections() -> None:
    scene = Scene()
    client = connected(scene)
    scene.core.serve([])
    assert client.send(b"more", at=len(GET)) == []
    scene.core.serve([make_service()])
    assert client.send(b"more", at=len(GET)) == [reset_of(client)]


def test_a_first_payload_that_is_waited_for_goes_by_the_newest_table() -> None:
    scene = Scene(make_service("node1"))
    client = Client(scene).connect()
    client.send(b"GET /f")
    scene.core.serve([make_service("node2")])
    scene.pass_time(1.0)
    assert client.node == "node2"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"vip_index": INDEX + 1}, "DSCP 5 and cannot get 6"),
        ({"promised_scale": 3}, "window scale 7 and cannot"),
    ],
)
def test_what_flows_were_promised_cannot_change_under_them(changes: dict[str, int], what: str) -> None:
    changed = make_service()._replace(**changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"^service {VIP}:80 has .*{what}.*restart the balancer"):
        refuse_changes([other_service(), make_service()], [changed, other_service()])


def test_everything_else_may_change() -> None:
    refuse_changes([make_service()], [make_service("node1")._replace(hash_seed=7, max_payload=1000)])
    refuse_changes([make_service()], [make_service(), other_service()])
    refuse_changes([make_service(), other_service()], [make_service()])
    refuse_changes([make_service()], [other_service(INDEX)])


def test_a_node_at_its_bound_declines_a_new_flow_and_keeps_its_old_ones() -> None:
    loads = CountedLoads()
    scene = Scene(bounded_service(), loads=loads)
    client = connected(scene)
    first = client.node_address()
    for address in NODES.values():
        loads.correct(INDEX, packed(address), 5 if address == first else 0)
    second = connected(scene, port=client.port + 1)
    assert second.node_address() != first
    assert scene.counters["bounded_away"] == 1
    assert loads.of(INDEX, packed(second.node_address())).handed == 1
    assert client.send(GET) == [handoff_packet(client, GET, window=64256, node=first)]
    assert loads.of(INDEX, packed(first)).handed == 1


def test_a_flow_whose_node_another_chose_first_counts_for_nobody() -> None:
    loads = CountedLoads()
    scene = Scene(bounded_service(), loads=loads)
    client = Client(scene).connect()
    table = scene.core._connections.flows
    put = table.put_if_absent

    def lose_the_race(key: bytes, value: Flow) -> Flow:
        put(key, value._replace(activity=Activity(value.handshake.first, scene.now)))
        return put(key, value)

    table.put_if_absent = lose_the_race  # type: ignore[method-assign]
    assert len(client.send(GET)) == 1
    assert [loads.of(INDEX, packed(address)).handed for address in NODES.values()] == [0, 0, 0]


def test_bytes_to_nodes_are_those_of_all_packets_to_nodes() -> None:
    scene = Scene()
    client = Client(scene).connect()
    sent = client.send(GET) + client.send(GET) + client.send(b"more", at=len(GET)) + client.send(flags=RST)
    assert len(sent) == 4
    assert scene.counters["bytes_to_nodes"] == sum(map(len, sent))


def test_a_flow_is_reported_with_what_was_negotiated() -> None:
    scene = Scene()
    client = connected(scene, port=40_000, scale=9, sack=False, mss=1300)
    scene.pass_time(2.0)
    client.send(b"more", at=len(GET))
    scene.pass_time(3.0)
    (report,) = scene.core.flows(scene.now)
    assert report == scene.core.find(packed(CLIENT), 40_000, INDEX, scene.now)
    assert (report.client, report.client_port, report.vip_index) == (CLIENT, 40_000, INDEX)
    assert (report.node, report.state) == (client.node_address(), "established")
    assert (report.age, report.idle) == (5.0, 3.0)
    assert report.details == {
        "service": f"{VIP}:80",
        "client_isn": client.isn,
        "isn": client.server_isn,
        "mss": 1300,
        "window_scale": 9,
        "sack": False,
        "timestamps": True,
        "next_seq": client.isn + 1 + len(GET) + 4,
        "phase": "open",
        "contested": False,
    }


def test_a_flow_on_whose_ports_a_syn_has_come_is_reported_as_contested() -> None:
    client = connected(Scene())
    client.scene.receive(client.syn())
    (report,) = client.scene.core.flows(client.scene.now)
    assert report.details["contested"] is True


def test_what_is_no_flow_is_not_found() -> None:
    scene = Scene(make_service(), other_service())
    client = connected(scene)
    assert scene.core.find(packed(CLIENT), client.port + 1, INDEX, scene.now) is None
    assert scene.core.find(packed(CLIENT), client.port, OTHER_INDEX, scene.now) is None
    assert scene.core.find(packed(CLIENT), client.port, 63, scene.now) is None
