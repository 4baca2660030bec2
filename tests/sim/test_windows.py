"""Zero and tiny windows, probes, and acknowledgments that challenge."""

import random

import pytest

from common.wire.offload import Packet
from tests.sim import expect
from tests.sim.endpoint import Profile
from tests.sim.http import Fetch, request
from tests.sim.network import PROMISED, Network
from tests.sim.segment import ACK, Options, Segment, parse


@pytest.mark.parametrize("buffer_size", [600, 3_000, 20_000])
@pytest.mark.parametrize("scale", [None, 0, 7])
def test_a_client_with_a_tiny_window_gets_all(buffer_size: int, scale: int | None) -> None:
    network = Network()
    fetch = network.fetch("/object/40000", profile=Profile(buffer_size=buffer_size, scale=scale))
    network.finish(fetch, 600.0)
    expect.answered(fetch, "/object/40000")
    expect.clean(network)


@pytest.mark.parametrize("buffer_size", [2_000, 6_000, 20_000])
@pytest.mark.parametrize("scale", [None, 0, 7, 10])
def test_a_server_with_a_tiny_window_gets_all(buffer_size: int, scale: int | None) -> None:
    """Smaller than what the balancer has promised in its name."""
    network = Network(server=PROMISED._replace(buffer_size=buffer_size, scale=scale))
    body = random.Random(1).randbytes(40_000)
    fetch = network.fetch("/post", "POST", body)
    network.finish(fetch, 600.0)
    expect.posted(network, fetch, body)
    expect.clean(network)


def reading_again(network: Network, fetch: Fetch, after: float) -> None:
    fetch.connection.reads = False
    network.timeline.after(after, fetch.connection.read)


@pytest.mark.parametrize("pause", [0.3, 5.0, 100.0, 4000.0])
def test_a_client_that_does_not_read_closes_its_window_and_is_probed(pause: float) -> None:
    network = Network()
    fetch = network.fetch("/object/200000", profile=Profile(buffer_size=30_000))
    reading_again(network, fetch, pause)
    network.run(pause / 2)
    sent = [parse(packet) for _, packet in network.node_to_client.carried]
    assert len(fetch.connection.receiver.stream) in range(30_000, 32_000)
    if pause > 1.0:
        connection = fetch.connection
        below = connection.receiver.wire(connection.receiver.nxt - 1)
        assert sum(segment.seq == below and not segment.payload for segment in sent) > 1
    network.finish(fetch, pause + 100.0)
    expect.answered(fetch, "/object/200000")
    assert network.retransmissions() == 0
    expect.clean(network)


@pytest.mark.parametrize("pause", [0.3, 5.0, 100.0])
def test_a_server_that_does_not_read_closes_its_window_and_is_probed(pause: float) -> None:
    network = Network(server=PROMISED._replace(buffer_size=60_000))
    body = random.Random(2).randbytes(200_000)
    fetch = network.fetch("/post", "POST", body)
    network.timeline.run(1.0, lambda: bool(network.node.host.connections))
    server = next(iter(network.node.host.connections.values()))
    server.reads = False
    network.timeline.after(pause, server.read)
    network.run(pause / 2)
    assert len(server.receiver.stream) in range(60_000, 64_000)
    network.finish(fetch)
    expect.posted(network, fetch, body)
    assert network.retransmissions() == 0
    expect.clean(network)


def test_a_window_update_that_was_lost_is_found_out_by_probes() -> None:
    network = Network()
    fetch = network.fetch("/object/100000", profile=Profile(buffer_size=20_000))
    reading_again(network, fetch, 2.0)
    lost = [0]

    def fault(_: Packet) -> tuple[float, ...] | None:
        if 5001.9 < network.timeline.now < 5002.1:
            lost[0] += 1
            return ()
        return None

    network.client_to_balancer.add(fault)
    network.finish(fetch)
    assert lost[0] > 0
    expect.answered(fetch, "/object/100000")
    expect.clean(network)


@pytest.mark.parametrize("ahead", [-1 << 20, 1 << 20, 1 << 30])
def test_data_outside_the_servers_window_is_challenged_and_the_client_is_not_confused(ahead: int) -> None:
    network = Network()
    fetch = network.fetch("/object/3000", close=False)
    network.run(1.0)
    connection = fetch.connection
    stamps = (network.client.ticks(), connection.recent_stamp)
    forged = Segment(
        connection.local,
        connection.remote,
        connection.sender.wire(connection.sender.nxt + ahead),
        connection.receiver.wire(connection.receiver.nxt),
        ACK,
        500,
        Options(stamps=stamps),
        b"forged",
    )
    before = len(network.node_to_client.carried)
    network.inject(forged)
    network.run(1.0)
    answers = [parse(packet) for _, packet in network.node_to_client.carried[before:]]
    assert [(answer.flags, answer.ack) for answer in answers] == [
        (ACK, connection.sender.wire(connection.sender.nxt))
    ]
    for host in network.hosts:
        host.violations.clear()
    connection.write(request("GET", "/object/3000", close=True))
    network.finish(fetch)
    expect.answered(fetch, "/object/3000", 2)
    expect.clean(network)


def test_a_challenge_ack_of_the_server_reaches_the_client_translated() -> None:
    """For a SYN within the window that did not come through the balancer: the client finds it in order."""
    network = Network()
    fetch = network.fetch("/object/3000", close=False)
    network.run(1.0)
    server = next(iter(network.node.host.connections.values()))
    before = len(network.node_to_client.carried)
    server.receive(Segment(server.remote, server.local, server.receiver.wire(server.receiver.nxt), 0, 2, 500))
    network.run(1.0)
    ((_, packet),) = network.node_to_client.carried[before:]
    challenge = parse(packet)
    connection = fetch.connection
    assert challenge.seq == connection.receiver.wire(connection.receiver.nxt)
    assert challenge.ack == connection.sender.wire(connection.sender.nxt)
