"""Several services in one set of programs, and timeouts of the operator's."""

import pytest

from balancer.core.service import Limits, Service, Timeouts, make_nodes
from balancer.ebpf.abi import ROUTE
from common.bpf.abi import FLOW_ID
from common.bpf.forget import forget
from common.bpf.run import run_syscall
from common.hashing.request_key import KeySpec
from tests.root.bpf.balancer_twin import Twin
from tests.unit.balancer.scene import ACK, FIN, GET, VIP, Client, connected, forwarded, make_service, packed

pytestmark = pytest.mark.root

_INDEX_AT = FLOW_ID.at("vip_index")
LIMITS = Limits(flows=100, verified=100, half_open=100)
NODES = {80: "192.168.33.21", 8080: "192.168.33.22"}


def make_second() -> Service:
    nodes, table = make_nodes(packed(VIP), 8080, 63, {"node2": (packed(NODES[8080]), 1)})
    return Service(packed(VIP), 8080, 63, nodes, table, key=KeySpec("uri"), promised_scale=3)


FIRST, SECOND = make_service("node1"), make_second()


def both(twin: Twin) -> list[tuple[Client, Service]]:
    """One client port, a connection to each service."""
    return [(connected(twin, service_port=service.port), service) for service in (FIRST, SECOND)]


def test_one_client_port_has_a_flow_of_its_own_at_each_service() -> None:
    with Twin(FIRST, SECOND, limits=LIMITS) as twin:
        for client, service in both(twin):
            packet = client.segment(b"more", at=len(GET))
            assert twin.receive(packet) == [forwarded(packet, NODES[service.port], service.vip_index)]
        assert len(dict(twin.programs.map("flows").items())) == 2
        twin.check_tables()


def test_connections_of_a_service_that_is_gone_are_forgotten_and_the_others_stay() -> None:
    names = ("flows", "half_open", "verified", "claims")
    with Twin(FIRST, SECOND, limits=LIMITS) as twin:
        both(twin)
        for service in (FIRST, SECOND):
            Client(twin, port=50_001, service_port=service.port).connect()
            Client(twin, port=50_002, service_port=service.port).connect().send(GET[:9])
            Client(twin, port=50_003, service_port=service.port, stamps=False).greet()
        before = {name: dict(twin.programs.map(name).items()) for name in names}
        assert forget(twin.programs.program("forget_services"), [SECOND.vip_index, 7]) == 1
        for name in names:
            left = {key: row for key, row in before[name].items() if key[_INDEX_AT] == FIRST.vip_index}
            assert len(left) == len(before[name]) / 2 > 0
            assert dict(twin.programs.map(name).items()) == left


def test_routes_of_nodes_that_have_flows_are_marked() -> None:
    with Twin(FIRST, SECOND, limits=LIMITS) as twin:
        connected(twin, service_port=FIRST.port)
        run_syscall(twin.programs.program("mark_routes"))
        rows = {node: ROUTE.unpack(row) for node, row in twin.programs.map("routes").items()}
        assert [node for node, row in rows.items() if row.marked] == [packed(NODES[FIRST.port])]
        assert len(rows) > 1


def test_what_is_passed_up_finds_its_service() -> None:
    with Twin(FIRST, SECOND, limits=LIMITS) as twin:
        for service in (FIRST, SECOND):
            client = Client(twin, service_port=service.port).connect()
            assert client.send(GET[:9]) == []
            assert len(client.send(GET[9:], at=9)) == 2
        assert twin.programs.counters["passed_up"] == 4
        twin.check_tables()


def test_every_byte_of_ip_to_nodes_is_counted() -> None:
    with Twin(FIRST, SECOND, limits=LIMITS) as twin:
        expected = 0
        for service in (FIRST, SECOND):
            client = Client(twin, service_port=service.port).connect()
            (handoff,) = client.send(GET)
            (data,) = client.send(b"more", at=len(GET))
            (end,) = client.send(at=len(GET) + 4, flags=ACK | FIN)
            expected += len(handoff) + len(data) + len(end)
        assert twin.programs.counters["bytes_to_nodes"] == expected


def test_flows_live_as_long_as_the_operator_says() -> None:
    timeouts = Timeouts(idle=100.0, verified=70.0)
    with Twin(FIRST, limits=LIMITS, timeouts=timeouts) as twin:
        flow = connected(twin)
        Client(twin, port=50_000).connect()
        twin.pass_time(69.5)
        twin.check_tables()
        assert twin.programs.map("verified").count() == 1
        twin.pass_time(1)
        assert twin.programs.map("verified").count() == 0
        twin.pass_time(29)
        assert twin.programs.map("flows").count() == 1
        twin.pass_time(1)
        assert twin.programs.map("flows").count() == 0
        assert flow.node is None


def test_a_flow_that_has_ended_lives_no_longer_than_an_idle_one() -> None:
    with Twin(FIRST, limits=LIMITS, timeouts=Timeouts(idle=62.0)) as twin:
        client = connected(twin)
        twin.pass_time(10)
        client.send(at=len(GET), flags=ACK | FIN)
        twin.pass_time(59)
        assert twin.programs.map("flows").count() == 1
        twin.pass_time(2)
        assert twin.programs.map("flows").count() == 0
        twin.check_tables()
