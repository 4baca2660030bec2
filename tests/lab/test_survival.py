"""What happens to hosts with time: interfaces, addresses, routes, MTUs and clocks change under the daemons.

Downloads and kept connections go on, and new connections are served.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from common.config import EBPF
from lab import FROM_NODE, Host, Lab
from tests.lab.conversation import Client, converse, request
from tests.lab.observed import daemon_of
from tests.lab.sockets import await_that
from tests.lab.traffic import GOING_ON_BYTES, traffic

pytestmark = pytest.mark.root

LONG_REQUESTS = 20
NARROW = 1280
each_role = pytest.mark.parametrize("role", ["balancer", "node1"])


def gateway_of(lab: Lab, role: str) -> str:
    return str(lab.topology.link(role).router)


# --- interfaces


@each_role
def test_an_interface_goes_down_and_up(running_lab: Lab, role: str) -> None:
    host = running_lab.hosts[role]
    with traffic(running_lab) as going:
        host.run(["ip", "link", "set", "eth0", "down"])
        time.sleep(0.5)
        host.run(["ip", "link", "set", "eth0", "up"])
        host.run(["ip", "route", "add", "default", "via", gateway_of(running_lab, role), "dev", "eth0"])
        going.must_go_on()
    assert going.failures() == []


@each_role
def test_an_interface_is_deleted_and_made_again(running_lab: Lab, role: str, engine: str) -> None:
    host = running_lab.hosts[role]
    with traffic(running_lab) as going:
        gone = time.monotonic()
        running_lab.take_link(role)
        daemon_of(host).wait_for("has gone")
        with backend_unheard(running_lab):
            running_lab.lay_link(role)
            if engine == EBPF:
                daemon_of(host).wait_for("of eth0 from now on")
        back = time.monotonic()
        going.must_go_on()
    assert going.failures(besides=(gone, back)) == []


@contextmanager
def backend_unheard(lab: Lab) -> Iterator[None]:
    """What leaves node1 before the programs are there has the backend's name, and a client ends its
    connection for that. No such packet gets there.
    """
    backend = lab.topology.node("node1").backend
    with lab.weather.drop(FROM_NODE, f"ip saddr {backend}", packets=1_000_000):
        yield


# --- addresses and routes


class SecondLink(NamedTuple):
    """`eth1` of a host; `name` is its other end, in the router."""

    lab: Lab
    host: Host
    name: str
    near: str
    far: str

    def bytes_received(self) -> int:
        return self.lab.router.interface_bytes(self.name).received


@pytest.fixture(params=["balancer", "node1"])
def second_link(running_lab: Lab, request: pytest.FixtureRequest) -> Iterator[SecondLink]:
    """The daemons know of it, and nothing uses it yet."""
    router, host = running_lab.router, running_lab.hosts[request.param]
    link = SecondLink(running_lab, host, "second", near="10.33.99.2", far="10.33.99.1")
    peer = ["peer", "name", "eth1", "netns", host.namespace]
    router.run(["ip", "link", "add", link.name, "type", "veth", *peer])
    for end, interface, address in ((router, link.name, link.far), (host, "eth1", link.near)):
        end.run(["ip", "address", "add", f"{address}/24", "dev", interface])
        end.run(["ip", "link", "set", interface, "up"])
    host.run(["ping", "-c1", "-w10", link.far])
    yield link
    router.run(["ip", "link", "delete", link.name])


def test_the_service_address_moves_to_another_interface(second_link: SecondLink) -> None:
    """And back. What is sent to it follows."""
    lab, host, router = second_link.lab, second_link.host, second_link.lab.router
    address = lab.topology.routed_addresses(host.name)[0]
    with traffic(lab) as going:
        for old, new, way in (
            ("eth0", "eth1", ["via", second_link.near, "dev", second_link.name]),
            ("eth1", "eth0", ["via", str(lab.topology.link(host.name).addresses[0]), "dev", host.name]),
        ):
            host.run(["ip", "address", "add", f"{address}/32", "dev", new])
            host.run(["ip", "address", "delete", f"{address}/32", "dev", old])
            router.run(["ip", "route", "replace", f"{address}/32", *way])
            going.must_go_on()
    assert going.failures() == []


def test_a_default_route_by_another_gateway_is_taken(second_link: SecondLink) -> None:
    lab, host = second_link.lab, second_link.host
    with traffic(lab) as going:
        before = second_link.bytes_received()
        host.run(["ip", "route", "replace", "default", "via", second_link.far])
        going.must_go_on()
        await_that(lambda: second_link.bytes_received() > before + GOING_ON_BYTES // 10)
        host.run(["ip", "route", "replace", "default", "via", gateway_of(lab, host.name)])
        going.must_go_on()
    assert going.failures() == []


# --- MTUs


def test_the_mtu_of_the_balancers_link_falls_and_rises(running_lab: Lab) -> None:
    """Below a handoff of the size that fitted before, so that first payloads have to become smaller."""
    with traffic(running_lab) as going:
        for mtu in (NARROW, 1500):
            running_lab.set_link_mtu("balancer", mtu)
            going.must_go_on()
            assert_long_requests_are_answered(running_lab)
    assert going.failures() == []


def test_the_path_mtu_to_a_node_falls_below_a_full_handoff(running_lab: Lab) -> None:
    """The balancer finds out by itself."""
    bridge = running_lab.topology.node("node1").bridge
    with traffic(running_lab) as going:
        running_lab.set_link_mtu("node1", NARROW)
        await_that(
            lambda: f" mtu {NARROW}" in running_lab.balancer.run(["ip", "route", "get", str(bridge)]).stdout
        )
        going.must_go_on()
        await_that(lambda: long_requests_failed(running_lab) == [])
        running_lab.set_link_mtu("node1", 1500)
        going.must_go_on()
    assert going.failures() == []


def long_requests_failed(lab: Lab) -> list[str]:
    """Of requests to all nodes, each more than one segment as full as it may be."""
    targets = [f"/{number}/" + "x" * 1500 for number in range(LONG_REQUESTS)]
    answers = converse(lab.client, [Client((request(target),)) for target in targets])
    return [answer.error for answer in answers if answer.error]


def assert_long_requests_are_answered(lab: Lab) -> None:
    assert long_requests_failed(lab) == []
