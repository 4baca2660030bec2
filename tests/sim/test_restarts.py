"""Daemons killed and started again in the middle: the bytes are right, or the client has a reset soon."""

import random
from functools import partial

import pytest

from tests.sim import expect
from tests.sim.endpoint import Profile
from tests.sim.http import body_of, request
from tests.sim.network import Network

PATH = "/object/600000"


@pytest.mark.parametrize("at", [0.015, 0.031, 0.034, 0.05, 0.09, 0.15])
@pytest.mark.parametrize("timestamps", [True, False])
def test_a_packetbridge_that_is_restarted_with_its_journal_carries_on(at: float, timestamps: bool) -> None:
    network = Network()
    fetch = network.fetch(PATH, profile=Profile(timestamps=timestamps))
    network.run(at)
    network.restart_packetbridge(network.node)
    network.finish(fetch)
    expect.answered(fetch, PATH)
    assert network.retransmissions() == 0
    expect.clean(network)


@pytest.mark.parametrize("down", [0.05, 0.5, 3.0])
def test_a_packetbridge_that_is_down_for_a_while_delays_a_download(down: float) -> None:
    network = Network()
    fetch = network.fetch(PATH)
    network.run(0.1)
    network.node.packetbridge.stop()
    network.run(down)
    network.restart_packetbridge(network.node)
    network.finish(fetch)
    expect.answered(fetch, PATH)
    expect.clean(network)


@pytest.mark.parametrize("profile", [Profile(), Profile(timestamps=False)])
def test_a_packetbridge_without_journal_means_a_reset_within_five_seconds(profile: Profile) -> None:
    """The client's acknowledgments show it as a stranger; nothing of the server's reaches it untranslated."""
    network = Network()
    fetch = network.fetch("/object/2000000", profile=profile)
    network.run(0.2)
    network.node.packetbridge.stop()
    network.start_packetbridge(network.node)
    restarted = network.timeline.now
    network.finish(fetch)
    assert fetch.was_reset
    assert network.timeline.now < restarted + 5.0
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + body_of("/object/2000000")
    assert whole.startswith(fetch.received)


def test_a_socket_that_is_gone_after_a_restart_means_an_exact_reset() -> None:
    network = Network()
    fetch = network.fetch("/object/3000", close=False)
    network.run(1.0)
    network.node.packetbridge.stop()
    next(iter(network.node.host.connections.values())).vanish()
    restarted = network.timeline.now
    network.restart_packetbridge(network.node)
    network.finish(fetch)
    assert fetch.was_reset
    assert network.timeline.now < restarted + 1.5
    # The packet that makes the client show itself is the packetbridge's own, which knows no TSval to give.
    assert all(violation.endswith("segment without timestamps") for violation in network.violations())
    assert len(network.violations()) == 1


@pytest.mark.parametrize("at", [0.05, 0.1, 0.2])
def test_a_restarted_balancer_resets_what_it_does_not_know(at: float) -> None:
    network = Network()
    fetch = network.fetch("/object/3000000")
    network.run(at)
    network.start_balancer()
    restarted = network.timeline.now
    network.finish(fetch)
    assert fetch.was_reset
    assert network.timeline.now < restarted + 5.0
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + body_of("/object/3000000")
    assert whole.startswith(fetch.received)
    assert network.violations() == []


@pytest.mark.parametrize("at", [0.005, 0.015, 0.025])
def test_a_handshake_with_a_balancer_that_was_restarted_is_reset_and_decided_once(at: float) -> None:
    network = Network(nodes=3)
    fetch = network.fetch("/post", "POST", bytes(3000))
    network.run(at)
    network.start_balancer()
    network.finish(fetch)
    if at < 0.01:
        expect.posted(network, fetch, bytes(3000))
    else:
        assert fetch.was_reset
        assert network.served == []
    assert network.violations() == []


@pytest.mark.parametrize("seed", range(6))
def test_restarts_at_random_times_never_give_wrong_bytes(seed: int) -> None:
    network = Network(seed, nodes=2)
    chance = random.Random(seed)
    for _ in range(6):
        at = chance.uniform(0.0, 2.0)
        if chance.random() < 0.3:
            network.timeline.after(at, network.start_balancer)
        else:
            node = chance.choice(network.nodes)
            network.timeline.after(at, partial(network.restart_packetbridge, node))
    fetches = []
    for number in range(8):
        path = f"/object{number}/100000"
        fetches.append((path, network.fetch(path)))
        network.run(0.25)
    for path, fetch in fetches:
        network.finish(fetch, 20.0)
        assert fetch.is_over
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body_of(path)
        assert bytes(fetch.received) == whole if fetch.has_ended else whole.startswith(fetch.received)
    assert len({served.path for served in network.served}) == len(network.served)
    assert network.violations() == []


def test_a_new_connection_after_a_restart_is_served() -> None:
    network = Network()
    network.start_balancer()
    network.restart_packetbridge(network.node)
    fetch = network.fetch(writes=[(0.0, request("GET", "/object/10", close=True))])
    network.finish(fetch)
    expect.answered(fetch, "/object/10")
    expect.lossless(network)
