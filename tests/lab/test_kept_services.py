"""A daemon that starts with another configuration on the maps that an earlier one has kept."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from lab import Lab
from tests.lab.configured import bridge, nodes_of, pool, reload, service, vip
from tests.lab.conftest import check_for_bugs
from tests.lab.conversation import VIP, VIP_ADDRESS
from tests.lab.observed import daemon_of
from tests.lab.sockets import ask, connection

pytestmark = [
    pytest.mark.root,
    pytest.mark.engine("ebpf", reason="the raw data plane ends with its process"),
]

SECOND_VIP_ADDRESS = "192.168.33.11"
KEEP = "--keep-flows"
ALL = {"node1": 1, "node2": 1, "node3": 1}
TAKEN_OVER = "the flows of an earlier run are carried on"
MAIN_SERVICE = service(f"{VIP_ADDRESS}:80", 1, name="www")


def balancer_text(lab: Lab, second_dscp: int | None, weights: Mapping[str, int] = ALL) -> str:
    second = service(f"{SECOND_VIP_ADDRESS}:80", second_dscp, name="second") if second_dscp else ""
    return pool(lab, weights) + MAIN_SERVICE + second


def bridge_text(lab: Lab, node: str, second_dscp: int | None) -> str:
    place = lab.topology.node(node)
    vips = [vip(f"{VIP_ADDRESS}:80", 1, f"{place.backend}:80")]
    if second_dscp:
        vips.append(vip(f"{SECOND_VIP_ADDRESS}:80", second_dscp, f"{place.second_backend}:80"))
    return bridge(lab, node, *vips)


@pytest.fixture(scope="module")
def started_lab(engine: str) -> Iterator[Lab]:
    with Lab(engine=engine) as fresh:
        for node in fresh.nodes:
            fresh.start_configured(node, "packetbridge", bridge_text(fresh, node.name, 2), KEEP)
        fresh.start_configured(fresh.balancer, "balancer", balancer_text(fresh, 2), KEEP)
        yield fresh
        check_for_bugs(fresh)


@pytest.fixture
def kept_lab(started_lab: Lab) -> Lab:
    """Both services are served as at the start: a DSCP cannot change but by way of no service."""
    for dscp in (None, 2):
        for node in started_lab.nodes:
            path = started_lab.configuration_file(node, "packetbridge")
            path.write_text(bridge_text(started_lab, node.name, dscp))
            reload(node, "packetbridge")
        started_lab.configuration_file(started_lab.balancer, "balancer").write_text(
            balancer_text(started_lab, dscp)
        )
        reload(started_lab.balancer, "balancer")
    return started_lab


def start_balancer(lab: Lab, text: str) -> str:
    """In the place of the one that runs. Its log."""
    assert daemon_of(lab.balancer).stop() == 0
    log = lab.start_configured(lab.balancer, "balancer", text, KEEP).read_log()
    assert TAKEN_OVER in log
    return log


def start_bridges(lab: Lab, second_dscp: int | None) -> str:
    """All logs."""
    logs = []
    for node in lab.nodes:
        assert daemon_of(node).stop() == 0
        text = bridge_text(lab, node.name, second_dscp)
        logs.append(lab.start_configured(node, "packetbridge", text, KEEP).read_log())
        assert TAKEN_OVER in logs[-1]
    return "".join(logs)


@contextmanager
def flows_of_both(lab: Lab) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Of the service that stays, checked in the end, and of the second one."""
    with connection(lab) as main, connection(lab, address=SECOND_VIP_ADDRESS) as second:
        node = ask(main, "/main").node
        assert ask(second, "/second").status == 200
        yield main, second
        assert ask(main, "/main").node == node


def test_flows_go_on_at_nodes_that_the_next_balancer_does_not_have(kept_lab: Lab) -> None:
    with flows_of_both(kept_lab) as (main, second):
        nodes = ask(main, "/main").node, ask(second, "/second").node
        others = {node: 2 for node in ALL if node not in nodes}
        log = start_balancer(kept_lab, balancer_text(kept_lab, 2, others))
        assert (ask(main, "/main").node, ask(second, "/second").node) == nodes
        assert set(nodes_of(kept_lab, [f"{VIP}/{number}" for number in range(20)])) == others.keys()
    assert "forgotten" not in log


def test_flows_of_a_service_that_the_next_balancer_does_not_have_end_and_that_is_said(kept_lab: Lab) -> None:
    with flows_of_both(kept_lab) as (_, second):
        assert "1 flows are forgotten: " in start_balancer(kept_lab, balancer_text(kept_lab, None))
        with pytest.raises(ConnectionResetError):
            ask(second, "/second")


def test_flows_of_a_service_whose_dscp_is_another_end_and_new_ones_are_served(kept_lab: Lab) -> None:
    with flows_of_both(kept_lab) as (_, second):
        assert "flows of VIPs that are gone are forgotten: 1" in start_bridges(kept_lab, 5)
        assert "1 flows are forgotten: " in start_balancer(kept_lab, balancer_text(kept_lab, 5))
        with pytest.raises(ConnectionResetError):
            ask(second, "/second")
        with connection(kept_lab, address=SECOND_VIP_ADDRESS) as anew:
            assert ask(anew, "/anew").status == 200


def test_flows_of_a_vip_that_the_next_packetbridge_does_not_have_end_and_that_is_said(kept_lab: Lab) -> None:
    with flows_of_both(kept_lab):
        assert "flows of VIPs that are gone are forgotten: 1" in start_bridges(kept_lab, None)
