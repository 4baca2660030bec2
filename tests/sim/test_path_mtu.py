"""A client behind a smaller MTU: the router's ICMP errors find their way to the server."""

import pytest

from common.wire.offload import Packet
from tests.sim import expect, icmp
from tests.sim.endpoint import Profile
from tests.sim.network import CLIENT, ROUTER, VIPS, Network


def put_router(network: Network, mtu: int) -> None:
    """On the way from node to client."""

    def fault(packet: Packet) -> tuple[float, ...] | None:
        if len(packet.data) <= mtu:
            return None
        error = icmp.fragmentation_needed(ROUTER, packet, mtu)
        network.timeline.after(0.005, lambda: network.client_to_balancer.send(error))
        return ()

    network.node_to_client.add(fault)


@pytest.mark.parametrize("mtu", [576, 1280, 1400, 1475])
@pytest.mark.parametrize("timestamps", [True, False])
def test_a_client_behind_a_small_mtu_gets_all(mtu: int, timestamps: bool) -> None:
    network = Network()
    put_router(network, mtu)
    fetch = network.fetch("/object/100000", profile=Profile(timestamps=timestamps))
    network.finish(fetch)
    expect.answered(fetch, "/object/100000")
    assert network.node.host.icmp_taken > 0
    assert network.timeline.now < 5001.0
    expect.clean(network)


def test_each_vips_errors_go_to_its_own_flow() -> None:
    network = Network()
    put_router(network, 1400)
    fetches = [network.fetch("/object/50000", vip=vip, port=50_000) for vip in VIPS]
    for fetch in fetches:
        network.finish(fetch)
        expect.answered(fetch, "/object/50000")
    expect.clean(network)


def test_sequence_numbers_in_errors_wrap_with_the_flow() -> None:
    network = Network()
    network.node.listeners[0].isn = lambda: 2**32 - 3000
    put_router(network, 1300)
    fetch = network.fetch("/object/50000")
    network.finish(fetch)
    expect.answered(fetch, "/object/50000")
    expect.clean(network)


def test_an_error_about_an_unknown_flow_goes_nowhere() -> None:
    network = Network()
    fetch = network.fetch("/object/50000", close=False)
    network.run(1.0)
    answer = next(packet for _, packet in network.node_to_client.carried if len(packet.data) > 1000)
    error = icmp.fragmentation_needed(ROUTER, answer, 1300)
    other_port = Packet(error.data[:50] + b"\x11\x11" + error.data[52:])
    before = len(network.balancer_to_node.carried)
    network.client_to_balancer.send(other_port)
    network.run(1.0)
    assert len(network.balancer_to_node.carried) == before
    expect.answered(fetch, "/object/50000")
    assert answer.data[16:20] == CLIENT


def test_an_error_that_quotes_what_was_acknowledged_long_ago_is_the_servers_to_ignore() -> None:
    network = Network()
    network.fetch("/object/50000", close=False)
    network.run(1.0)
    answer = next(packet for _, packet in network.node_to_client.carried if len(packet.data) > 1000)
    network.client_to_balancer.send(icmp.fragmentation_needed(ROUTER, answer, 600))
    network.run(1.0)
    host = network.node.host
    assert (host.icmp_taken, host.icmp_ignored) == (0, 1)
    assert next(iter(host.connections.values())).sender.mss == 1448
    assert network.violations() == []
