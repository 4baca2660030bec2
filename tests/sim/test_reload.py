"""Nodes that come, go and are forgotten while connections go on."""

import random
from functools import partial

import pytest

from tests.sim import expect
from tests.sim.endpoint import Profile
from tests.sim.http import Fetch, body_of
from tests.sim.link import Weather
from tests.sim.network import Network, Node

PATH = "/object/600000"


def node_of(network: Network) -> Node:
    """That serves the only connection there is."""
    return next(node for node in network.nodes if node.served)


def is_whole_or_beginning(fetch: Fetch, path: str) -> bool:
    body = body_of(path)
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    return bytes(fetch.received) == whole if fetch.has_ended else whole.startswith(fetch.received)


@pytest.mark.parametrize("at", [0.011, 0.025, 0.031, 0.05])
def test_a_download_goes_on_when_its_node_gets_no_new_connections(at: float) -> None:
    network = Network(nodes=3)
    fetch = network.fetch(PATH)
    network.run(0.1)
    node = node_of(network)
    again = network.fetch(PATH)
    network.run(at)
    network.reload_balancer([each for each in network.nodes if each is not node])
    third = network.fetch(PATH)
    for each in (fetch, again, third):
        network.finish(each)
        expect.answered(each, PATH)
    assert len(node.served) == 1 + (at > 0.03)
    expect.lossless(network)


@pytest.mark.parametrize("seed", range(6))
def test_reloads_at_random_times_cost_no_request(seed: int) -> None:
    network = Network(seed, nodes=3)
    for line in (network.client_to_balancer, network.balancer_to_node, network.node_to_client):
        line.have(Weather(loss=0.02))
    chance = random.Random(seed)
    for _ in range(20):
        nodes = chance.sample(network.nodes, chance.randint(1, 3))
        network.timeline.after(chance.uniform(0.0, 2.0), partial(network.reload_balancer, nodes))
    fetches = []
    for number in range(8):
        path = f"/object{number}/100000"
        fetches.append((path, network.fetch(path)))
        network.run(0.25)
    for path, fetch in fetches:
        network.finish(fetch)
        expect.answered(fetch, path)
    assert len({served.path for served in network.served}) == len(network.served)
    assert network.violations() == []


@pytest.mark.parametrize("at", [0.031, 0.041, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("timestamps", [True, False])
def test_clients_of_a_node_that_is_forgotten_are_reset_at_once(at: float, timestamps: bool) -> None:
    network = Network()
    fetch = network.fetch("/object/3000000", profile=Profile(timestamps=timestamps))
    network.run(at)
    network.forget_node(network.node)
    forgotten = network.timeline.now
    network.finish(fetch)
    assert fetch.was_reset
    assert network.timeline.now < forgotten + 0.2
    assert is_whole_or_beginning(fetch, "/object/3000000")
    # What makes the client speak up is the balancer's own, whose clock is not the node's; it is not taken in.
    foreign = ("client: 40000: TSecr 0 was never sent", "client: 40000: TSval ")
    assert not [violation for violation in network.violations() if not any(map(violation.count, foreign))]


@pytest.mark.parametrize("seed", range(20))
def test_a_post_is_never_carried_out_twice_because_its_node_is_forgotten(seed: int) -> None:
    """Nothing is heard of it any more, so the client's first payload comes again and again."""
    network = Network(seed, nodes=2)
    network.node_to_client.have(Weather(loss=1.0))
    chance = random.Random(seed)
    fetch = network.fetch("/post", "POST", chance.randbytes(3000))
    network.run(chance.uniform(0.04, 5.0))
    (node,) = (each for each in network.nodes if each.packetbridge.planned + each.packetbridge.unplanned)
    network.reload_balancer([each for each in network.nodes if each is not node])
    network.forget_node(node)
    forgotten = network.timeline.now
    network.finish(fetch)
    assert fetch.was_reset
    assert network.timeline.now < forgotten + 0.2
    assert len({served.path for served in network.served}) == len(network.served) <= 1
