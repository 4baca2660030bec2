"""Requests through balancer and packetbridge on paths that lose, duplicate and reorder."""

import random

import pytest

from common.wire.offload import Packet
from tests.sim import expect
from tests.sim.endpoint import Profile
from tests.sim.link import Line, Weather
from tests.sim.network import PROMISED, Network
from tests.sim.segment import parse

WEATHERS = {
    "one_percent_lost": Weather(loss=0.01),
    "five_percent_lost": Weather(loss=0.05),
    "duplicated": Weather(duplication=0.1),
    "reordered": Weather(reordering=0.1),
}
LINES = ("client_to_balancer", "balancer_to_client", "balancer_to_node", "node_to_client")
SEEDS = range(3)
GET_SIZE, POST_SIZE = 150_000, 60_000


def line(network: Network, name: str) -> Line:
    found: Line = getattr(network, name)
    return found


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_lossless_path_has_no_retransmission_at_all(nodes: int) -> None:
    network = Network(nodes=nodes)
    for size in (0, 1, 1423, 4096, 300_000):
        fetch = network.fetch(f"/object/{size}")
        network.finish(fetch)
        expect.answered(fetch, f"/object/{size}")
    body = random.Random(1).randbytes(4096)
    for node in network.nodes:
        node.served.clear()
    posting = network.fetch("/post", "POST", body)
    network.finish(posting)
    expect.posted(network, posting, body)
    expect.lossless(network)


def test_a_fresh_connection_costs_one_handshake_and_one_round_trip() -> None:
    network = Network()
    fetch = network.fetch("/object/1000", close=False)
    network.timeline.run(5.0, lambda: bool(fetch.responses()))
    handshake, request = 2 * 0.010, 0.010 + 0.001 + 0.012
    assert network.timeline.now - 5000.0 == pytest.approx(handshake + request)


def test_nearly_all_packets_of_a_transfer_take_the_hot_path() -> None:
    network = Network()
    fetch = network.fetch("/object/400000")
    network.finish(fetch)
    expect.lossless(network)
    assert network.balancer.unplanned <= 6
    assert network.node.packetbridge.unplanned <= 10
    assert network.node.packetbridge.planned > 400


def test_the_servers_see_the_clients_address() -> None:
    network = Network(nodes=3)
    fetch = network.fetch()
    network.finish(fetch)
    assert [served.client for served in network.served] == [fetch.connection.local]


def test_one_url_goes_to_one_node_and_many_to_all() -> None:
    network = Network(nodes=3)
    for _ in range(2):
        for number in range(40):
            network.finish(network.fetch(f"/object{number}/10"))
    seen = [{served.path for served in node.served} for node in network.nodes]
    assert all(seen)
    assert len(set.union(*seen)) == sum(map(len, seen)) == 40
    assert sum(len(node.served) for node in network.nodes) == 80
    expect.lossless(network)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("where", LINES)
@pytest.mark.parametrize("weather", WEATHERS)
def test_a_get_arrives_byte_for_byte(weather: str, where: str, seed: int) -> None:
    network = Network(seed)
    network.keep_no_order()
    line(network, where).have(WEATHERS[weather])
    path = f"/object/{GET_SIZE}"
    fetch = network.fetch(path)
    network.finish(fetch)
    expect.answered(fetch, path)
    expect.clean(network)
    assert len(network.served) == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("where", LINES)
@pytest.mark.parametrize("weather", WEATHERS)
def test_a_post_is_carried_out_once_byte_for_byte(weather: str, where: str, seed: int) -> None:
    network = Network(seed)
    network.keep_no_order()
    line(network, where).have(WEATHERS[weather])
    body = random.Random(seed).randbytes(POST_SIZE)
    fetch = network.fetch("/post", "POST", body)
    network.finish(fetch)
    expect.posted(network, fetch, body)
    expect.clean(network)


@pytest.mark.parametrize("options", range(8))
@pytest.mark.parametrize("seed", range(2))
def test_everything_at_once_everywhere(seed: int, options: int) -> None:
    profile = Profile(sack=bool(options & 1), timestamps=bool(options & 2), scale=7 if options & 4 else None)
    network = Network(100 + 8 * seed + options, nodes=2)
    network.keep_no_order()
    for name in LINES:
        line(network, name).have(Weather(loss=0.02, duplication=0.02, reordering=0.05))
    expect.both_ways(network, 30_000, 60_000, profile=profile)
    expect.clean(network)


def test_keep_alive_and_pipelined_requests_stay_on_their_node() -> None:
    network = Network(nodes=3)
    one = b"GET /object/2000 HTTP/1.1\r\n\r\n"
    last = b"GET /object/2000 HTTP/1.1\r\nConnection: close\r\n\r\n"
    fetch = network.fetch(writes=[(0.0, one + one), (0.3, one), (8.0, last)])
    network.finish(fetch)
    expect.answered(fetch, "/object/2000", 4)
    assert [len(node.served) for node in network.nodes if node.served] == [4]
    expect.lossless(network)


def test_a_head_is_answered_without_body() -> None:
    network = Network()
    fetch = network.fetch("/object/2000", "HEAD")
    network.finish(fetch)
    assert [response.fields["content-length"] for response in fetch.responses()] == ["2000"]
    assert network.served[0].method == "HEAD"
    expect.lossless(network)


def test_superpackets_pass_in_both_directions() -> None:
    network = Network(server=PROMISED._replace(burst=44))
    body = random.Random(5).randbytes(300_000)
    fetch = network.fetch("/post", "POST", body, profile=Profile(burst=44))
    network.finish(fetch)
    expect.posted(network, fetch, body)
    again = network.fetch("/object/600000", profile=Profile(burst=44))
    network.finish(again)
    expect.answered(again, "/object/600000")
    expect.lossless(network)
    longest = max(len(packet.data) for _, packet in network.node_to_client.carried)
    assert longest > 50_000


def test_ecn_bits_of_both_sides_survive_and_the_clients_dscp_does_not() -> None:
    network = Network(server=PROMISED._replace(ecn=1))
    fetch = network.fetch("/object/30000", profile=Profile(ecn=2, dscp=46))
    network.finish(fetch)
    expect.answered(fetch, "/object/30000")
    to_server = [parse(packet) for _, packet in network.to_server.carried]
    assert {segment.tos for segment in to_server if not segment.flags & 2} == {2}
    to_client = [parse(packet) for _, packet in network.node_to_client.carried]
    assert {segment.tos for segment in to_client} == {1}
    tagged = [parse(packet) for _, packet in network.balancer_to_node.carried]
    assert {segment.tos for segment in tagged} == {1 << 2 | 2}
    expect.lossless(network)


@pytest.mark.parametrize("number", [3, 6])
def test_damage_on_the_way_is_not_healed(number: int) -> None:
    """Neither daemon makes a wrong checksum right: the server drops the segment, the client repeats it."""
    network = Network()

    def damaged(packet: Packet) -> Packet:
        if len(network.client_to_balancer.carried) != number - 1:
            return packet
        return packet._replace(data=packet.data[:-1] + bytes((packet.data[-1] ^ 0x55,)))

    network.client_to_balancer.alter = damaged
    body = bytes(20_000)
    fetch = network.fetch("/post", "POST", body)
    network.finish(fetch)
    expect.posted(network, fetch, body)
    assert network.node.host.damaged == 1
    assert fetch.connection.sender.retransmissions == 1
