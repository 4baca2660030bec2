"""One 4-tuple, several connections: ports used again, direct and bridged ones, two VIPs on one node."""

import itertools
import random

import pytest

from tests.sim import expect
from tests.sim.endpoint import Profile
from tests.sim.http import Fetch
from tests.sim.link import nth
from tests.sim.network import HTTP, PLAIN, VIPS, Network, backend_of, is_handoff

PORT = 50_000


def idle(network: Network, profile: Profile = PLAIN, vip: bytes = VIPS[0]) -> Fetch:
    """A connection from PORT that has had one answer and is still open."""
    fetch = network.fetch("/object/3000", close=False, port=PORT, profile=profile, vip=vip)
    network.timeline.run(20.0, lambda: bool(fetch.responses()))
    network.run(0.5)
    return fetch


@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_port_reused_while_the_server_has_the_old_socket_open(
    seed: int, nodes: int, timestamps: bool
) -> None:
    """The client has lost its memory; the new ISN may be before, within or behind the old window."""
    network = Network(seed, nodes=nodes)
    profile = Profile(timestamps=timestamps)
    old = idle(network, profile)
    old.connection.vanish()
    network.run(2.0)
    ahead = (-40_000, 10, 100_000, 1 << 31)[seed]
    isn = old.connection.sender.wire(old.connection.sender.nxt + ahead)
    fetch = network.fetch("/other/4000", port=PORT, isn=isn, profile=profile)
    network.finish(fetch)
    expect.answered(fetch, "/other/4000")
    assert network.timeline.now < 5005.0
    assert fetch.connection.sender.retransmissions == 0
    assert network.violations() == []


@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("ahead", [1, 5_000, 1 << 30])
@pytest.mark.parametrize("pause", [0.1, 20.0, 59.0, 61.0])
def test_a_port_reused_while_the_old_socket_is_in_time_wait(
    pause: float, ahead: int, timestamps: bool
) -> None:
    """The server closed first. A newer TSval or a higher ISN lets it take the SYN at once."""
    network = Network()
    profile = Profile(timestamps=timestamps)
    old = network.fetch("/object/3000", port=PORT, profile=profile)
    network.finish(old)
    network.run(pause)
    assert bool(network.node.host.waiting) == (pause < 60.0)
    isn = old.connection.sender.wire(old.connection.sender.nxt + ahead)
    fetch = network.fetch("/object/4000", port=PORT, profile=profile, isn=isn)
    network.finish(fetch)
    expect.answered(fetch, "/object/4000")
    expect.lossless(network)


def test_a_port_reused_with_a_lower_isn_in_time_wait_without_timestamps_is_answered() -> None:
    """The server answers the SYN with an ACK of the old connection, which is reset; the SYN comes again."""
    network = Network()
    profile = Profile(timestamps=False)
    old = network.fetch("/object/3000", port=PORT, profile=profile)
    network.finish(old)
    network.run(0.1)
    isn = old.connection.sender.wire(-70_000)
    fetch = network.fetch("/object/4000", port=PORT, profile=profile, isn=isn)
    network.finish(fetch)
    expect.answered(fetch, "/object/4000")
    assert network.retransmissions() == 0
    expect.clean(network)


@pytest.mark.parametrize("seed", range(6))
def test_a_port_reused_again_and_again_gets_each_time_its_own_answer(seed: int) -> None:
    network = Network(seed, nodes=2)
    for number in range(12):
        path = f"/object{number}/{network.chance.randrange(1, 9000)}"
        fetch = network.fetch(path, port=PORT)
        network.finish(fetch)
        expect.answered(fetch, path)
        network.run(network.chance.choice((0.05, 0.5, 3.0, 70.0)))
    expect.clean(network)
    assert [host.resets_sent for host in network.hosts] == [0, 0, 0]
    assert len(network.served) == 12


def test_a_late_handoff_of_the_old_connection_does_not_disturb_the_new_one() -> None:
    for delay in (3.0, 10.0, 50.0):
        network = Network()
        network.balancer_to_node.add(nth(1, is_handoff, (0.0, delay)))
        old = idle(network)
        old.connection.vanish()
        network.run(1.0)
        fetch = network.fetch("/object/4000", close=False, port=PORT)
        network.run(60.0)
        expect.answered(fetch, "/object/4000")
        assert not fetch.was_reset
        assert len(network.served) == 2
        assert network.violations() == []


def test_a_direct_connection_is_left_alone() -> None:
    network = Network()
    bridged = network.fetch("/object/400000")
    direct = network.fetch("/object/300000", vip=backend_of(network.node)[0])
    network.finish(bridged)
    network.finish(direct)
    expect.answered(bridged, "/object/400000")
    expect.answered(direct, "/object/300000")
    expect.lossless(network)


def test_a_direct_connection_after_a_bridged_one_of_the_same_port_is_left_alone() -> None:
    for pause in (0.5, 5.0, 30.0, 61.0, 130.0):
        network = Network()
        bridged = network.fetch("/object/3000", port=PORT)
        network.finish(bridged)
        network.run(pause)
        isn = bridged.connection.sender.wire(bridged.connection.sender.nxt + 100_000)
        direct = network.fetch("/object/90000", port=PORT, isn=isn, vip=backend_of(network.node)[0])
        network.finish(direct)
        expect.answered(direct, "/object/90000")
        expect.lossless(network)


def test_a_bridged_connection_after_a_direct_one_of_the_same_port_is_answered() -> None:
    for pause in (0.5, 30.0, 61.0):
        network = Network()
        direct = network.fetch("/object/90000", port=PORT, vip=backend_of(network.node)[0])
        network.finish(direct)
        network.run(pause)
        isn = direct.connection.sender.wire(direct.connection.sender.nxt + 100_000)
        bridged = network.fetch("/object/3000", port=PORT, isn=isn)
        network.finish(bridged)
        expect.answered(bridged, "/object/3000")
        expect.lossless(network)


@pytest.mark.parametrize("vips", list(itertools.permutations(VIPS)))
def test_two_vips_on_one_packetbridge_may_be_used_from_one_client_port(vips: tuple[bytes, bytes]) -> None:
    network = Network()
    body = random.Random(1).randbytes(30_000)
    first = network.fetch("/object/200000", port=PORT, vip=vips[0])
    second = network.fetch("/post", "POST", body, port=PORT, vip=vips[1])
    network.finish(first)
    network.finish(second)
    expect.answered(first, "/object/200000")
    assert [served.body for served in network.served if served.method == "POST"] == [body]
    assert [response.status for response in second.responses()] == [200]
    expect.lossless(network)


def test_each_vip_is_answered_from_its_own_address() -> None:
    network = Network()
    fetches = [network.fetch("/object/20000", port=PORT, vip=vip) for vip in VIPS]
    for fetch in fetches:
        network.finish(fetch)
        expect.answered(fetch, "/object/20000")
    senders = {packet.data[12:16] for _, packet in network.node_to_client.carried}
    assert senders == set(VIPS)
    assert {fetch.connection.remote for fetch in fetches} == {(vip, HTTP) for vip in VIPS}
    expect.lossless(network)
