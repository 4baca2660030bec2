"""SYN, SYN-ACK and handoff lost, repeated and late; and no POST is carried out twice."""

import random

import pytest

from common.wire.offload import Packet
from tests.sim import expect
from tests.sim.endpoint import Profile
from tests.sim.http import Fetch
from tests.sim.link import every, nth
from tests.sim.network import Latencies, Network, destination_of, flags_of, has_payload, is_handoff
from tests.sim.segment import ACK, RST, SYN, parse, steps

BODY = random.Random(1).randbytes(3_000)


def post(network: Network, port: int | None = None) -> Fetch:
    return network.fetch("/post", "POST", BODY, port=port)


@pytest.mark.parametrize("fault", [(), (0.0, 0.0), (0.0, 0.5), (2.5,)])
def test_a_syn_lost_duplicated_or_late_does_no_harm(fault: tuple[float, ...]) -> None:
    network = Network()
    network.client_to_balancer.add(nth(1, is_handoff, fault))
    fetch = post(network)
    network.finish(fetch)
    expect.posted(network, fetch, BODY)
    expect.clean(network)


@pytest.mark.parametrize("fault", [(), (0.0, 0.0), (0.0, 0.5), (2.5,)])
def test_a_syn_ack_lost_duplicated_or_late_does_no_harm(fault: tuple[float, ...]) -> None:
    network = Network()
    network.balancer_to_client.add(nth(1, lambda packet: flags_of(packet) == SYN | ACK, fault))
    fetch = post(network)
    network.finish(fetch)
    expect.posted(network, fetch, BODY)
    expect.clean(network)


def test_a_lost_handshake_ack_is_made_up_for_by_the_payload() -> None:
    network = Network()
    network.client_to_balancer.add(nth(2, lambda _: True, ()))
    fetch = post(network)
    network.finish(fetch)
    expect.posted(network, fetch, BODY)
    expect.lossless(network)


def test_a_duplicate_of_the_syn_in_the_middle_of_a_transfer_changes_nothing() -> None:
    network = Network()
    network.client_to_balancer.add(nth(1, is_handoff, (0.0, 0.1)))
    fetch = network.fetch("/object/900000")
    network.finish(fetch)
    expect.answered(fetch, "/object/900000")
    assert network.balancer.core.counters["contest"] == 1
    assert network.retransmissions() == 0
    expect.clean(network)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_handoff_is_repaired_by_the_clients_own_tcp(lost: int) -> None:
    network = Network()
    for _ in range(lost):
        network.balancer_to_node.add(nth(1, is_handoff, ()))
    fetch = post(network)
    network.finish(fetch)
    expect.posted(network, fetch, BODY)
    assert len(network.handoffs()) == lost + 1
    assert fetch.connection.sender.retransmissions > 0
    expect.clean(network)


@pytest.mark.parametrize("delays", [(0.0, 0.0), (0.0, 0.005), (0.0, 0.3, 3.0), (0.0, 30.0), (0.0, 58.0)])
def test_a_duplicate_of_the_handoff_runs_no_post_twice(delays: tuple[float, ...]) -> None:
    """Whether the connection is open, closed, or gone for most of a minute."""
    network = Network()
    network.balancer_to_node.add(nth(1, is_handoff, delays))
    fetch = post(network)
    network.finish(fetch)
    expect.posted(network, fetch, BODY)
    expect.clean(network)
    assert len(network.served) == 1


@pytest.mark.parametrize("late", [1.0, 5.0, 40.0, 59.0, 61.0, 65.0, 119.0, 125.0, 600.0])
@pytest.mark.parametrize("closes_first", ["server", "client"])
def test_a_handoff_late_by_up_to_minutes_runs_no_post_twice(late: float, closes_first: str) -> None:
    network = Network()
    network.balancer_to_node.add(nth(1, is_handoff, (0.0, late)))
    fetch = network.fetch("/post", "POST", BODY, close=closes_first == "server")
    if closes_first == "client":
        network.timeline.run(5.0, lambda: bool(fetch.responses()))
        fetch.connection.close()
    network.finish(fetch)
    expect.posted(network, fetch, BODY)
    network.run(700.0)
    assert len(network.served) == 1
    assert network.violations() == []
    assert network.node.host.requests == {}


@pytest.mark.parametrize("late", [1.0, 5.0, 59.0, 61.0])
def test_a_first_handoff_that_comes_late_is_overtaken_by_the_clients_retransmission(late: float) -> None:
    network = Network()
    network.balancer_to_node.add(nth(1, is_handoff, (late,)))
    fetch = post(network)
    network.finish(fetch)
    expect.posted(network, fetch, BODY)
    assert network.timeline.now < 5002.0
    network.run(200.0)
    assert len(network.served) == 1
    expect.clean(network)


@pytest.mark.parametrize("round_trip", [0.2, 0.4, 0.8])
def test_a_lost_handoff_is_repaired_however_far_the_client(round_trip: float) -> None:
    """Its retransmission timer is three round trips: by then what follows the handoff is long there."""
    network = Network(latencies=Latencies(round_trip / 2, 0.001, round_trip / 2))
    network.balancer_to_node.add(nth(1, is_handoff, ()))
    fetch = post(network)
    network.finish(fetch)
    expect.posted(network, fetch, BODY)
    expect.clean(network)


def test_a_handoff_older_than_a_minute_is_not_believed() -> None:
    """All copies are late: the client is served by none of them."""
    network = Network()
    network.balancer_to_node.add(every(is_handoff, (62.0,)))
    fetch = post(network)
    network.finish(fetch, 600.0)
    network.run(600.0)
    assert network.served == []
    assert network.node.packetbridge.core.counters["handoff_too_old"] > 1
    assert fetch.was_reset


def test_segments_that_overtake_the_handoff_are_not_lost_for_ever() -> None:
    network = Network()
    network.keep_no_order()
    network.balancer_to_node.add(nth(1, is_handoff, (0.015,)))
    fetch = network.fetch("/post", "POST", BODY, profile=Profile(nagle=False))
    network.finish(fetch)
    expect.posted(network, fetch, BODY)
    expect.clean(network)


def test_a_slow_backend_makes_segments_wait_and_none_be_sent_again() -> None:
    network = Network()
    network.to_server.add(nth(1, is_handoff, (0.15,)))
    body = random.Random(2).randbytes(13_000)
    fetch = network.fetch("/post", "POST", body)
    network.finish(fetch)
    expect.posted(network, fetch, body)
    expect.lossless(network)


def test_segments_that_waited_for_the_backend_reach_it_in_the_clients_order() -> None:
    network = Network()
    network.keep_no_order()
    network.to_server.add(nth(1, is_handoff, (0.15,)))
    network.client_to_balancer.add(nth(3, has_payload, (0.02,)))
    body = random.Random(3).randbytes(9_000)
    fetch = network.fetch("/post", "POST", body)
    network.finish(fetch)
    expect.posted(network, fetch, body)
    numbers = [parse(packet).seq for _, packet in network.to_server.carried if has_payload(packet)]
    assert len(numbers) == 7
    assert numbers == sorted(numbers, key=lambda number: steps(numbers[0], number))
    expect.lossless(network)


@pytest.mark.parametrize("seed", range(12))
def test_a_storm_of_late_handoffs_and_reused_ports_runs_each_post_once(seed: int) -> None:
    """Each body is another, on two ports that are used again and again."""
    network = Network(seed, nodes=2)
    network.keep_no_order()

    def late(packet: Packet) -> tuple[float, ...] | None:
        if not is_handoff(packet) or network.chance.random() < 0.5:
            return None
        return (0.0, *(network.chance.uniform(0.0, 70.0) for _ in range(2)))

    network.balancer_to_node.add(late)
    bodies = []
    for number in range(20):
        body = b"%d." % number + network.chance.randbytes(500)
        bodies.append(body)
        fetch = network.fetch("/post", "POST", body, port=50_000 + number % 2)
        network.finish(fetch)
        assert fetch.has_ended
        network.run(network.chance.uniform(0.0, 20.0))
    network.run(200.0)
    assert sorted(served.body for served in network.served) == sorted(bodies)
    assert network.violations() == []


def test_a_forged_handoff_is_dropped() -> None:
    network = Network()
    fetch = post(network)
    network.finish(fetch)
    genuine = network.handoffs()[0]
    known = len(network.to_server.carried)
    window_and_checksum = range(34, 38)
    for at in set(range(24, 76)) - set(window_and_checksum):
        changed = bytearray(genuine.data)
        changed[at] ^= 1
        network.node.packetbridge.receive_from_balancer(genuine._replace(data=bytes(changed)))
    other_vip = bytearray(genuine.data)
    other_vip[1] = 2 << 2
    network.node.packetbridge.receive_from_balancer(genuine._replace(data=bytes(other_vip)))
    assert len(network.to_server.carried) == known
    expect.posted(network, fetch, BODY)
    expect.clean(network)


def test_handoffs_go_to_nobody_but_their_node() -> None:
    network = Network(nodes=3)
    for number in range(9):
        network.finish(network.fetch(f"/object{number}/10"))
    bridges = {node.bridge for node in network.nodes}
    assert {destination_of(packet) for packet in network.handoffs()} <= bridges
    assert {parse(packet).tos >> 2 for packet in network.handoffs()} == {1}
    expect.lossless(network)


@pytest.mark.parametrize(
    ("ends", "late"),
    [
        *(("closed", late) for late in (0.5, 20.0, 70.0, 110.0, 185.0, 300.0)),
        *(("reset", late) for late in (0.5, 20.0, 59.0)),
        ("closed", 125.0),
        ("closed", 150.0),
        ("reset", 70.0),
        ("reset", 185.0),
        ("reset", 300.0),
    ],
)
def test_a_duplicate_of_the_first_payload_runs_no_post_twice(ends: str, late: float) -> None:
    """It reaches the balancer after the flow was forgotten there, while the SYN cookie may still be good."""
    network = Network()
    network.client_to_balancer.add(nth(1, has_payload, (0.0, late)))
    fetch = network.fetch("/post", "POST", b"once", close=ends == "closed")
    if ends == "reset":
        network.timeline.run(1.0, lambda: bool(network.served))
        next(iter(network.node.host.connections.values())).abort()
    network.finish(fetch)
    network.run(400.0)
    assert len(network.served) == 1


@pytest.mark.parametrize("delays", [(0.0, 0.1), (1.5,), (0.9,), (0.5, 1.2)])
def test_a_handshake_across_the_change_of_a_cookies_period_is_completed(delays: tuple[float, ...]) -> None:
    network = Network()
    network.run(79 * 64 - 0.05 - 5000.0)
    network.balancer_to_client.add(nth(1, lambda _: True, delays))
    fetch = post(network)
    network.finish(fetch)
    expect.posted(network, fetch, BODY)
    expect.clean(network)


def test_a_reset_of_the_server_that_was_lost_is_made_up_for_and_the_post_not_repeated() -> None:
    """The server carries the request out and breaks down before it acknowledges it."""
    network = Network()
    network.node_to_client.add(nth(1, lambda packet: bool(flags_of(packet) & RST), ()))
    fetch = network.fetch("/post", "POST", b"once", close=False)
    network.timeline.run(1.0, lambda: bool(network.served))
    next(iter(network.node.host.connections.values())).abort()
    network.finish(fetch, 600.0)
    assert fetch.was_reset
    assert network.timeline.now < 5005.0
    assert len(network.served) == 1
