"""The client's first bytes, however they come."""

import random

import pytest

from tests.sim import expect
from tests.sim.endpoint import Profile
from tests.sim.http import request
from tests.sim.link import nth
from tests.sim.network import Network, flags_of, has_payload, is_handoff
from tests.sim.segment import FIN, parse

PATH = "/object/3000"
REQUEST = request("GET", PATH, close=True)


@pytest.mark.parametrize("nagle", [True, False])
@pytest.mark.parametrize("cut", range(1, len(REQUEST)))
def test_a_request_cut_at_any_byte_is_answered(cut: int, nagle: bool) -> None:
    """With Nagle the client holds the rest back until its first bytes are acknowledged."""
    network = Network(nodes=3)
    writes = [(0.0, REQUEST[:cut]), (0.005, REQUEST[cut:])]
    fetch = network.fetch(writes=writes, profile=Profile(nagle=nagle))
    network.finish(fetch)
    expect.answered(fetch, PATH)
    assert network.timeline.now < 5000.25
    counters = network.balancer.core.counters
    line_is_cut = cut < REQUEST.index(b"HTTP/1.1\r\n") + len("HTTP/1.1")
    assert counters["key_unread_in_time"] == (nagle and line_is_cut)
    expect.lossless(network)


@pytest.mark.parametrize("interval", [0.001, 0.02, 0.3])
def test_a_request_that_comes_byte_for_byte_is_answered(interval: float) -> None:
    network = Network(nodes=3)
    writes = [(interval * at, REQUEST[at : at + 1]) for at in range(len(REQUEST))]
    fetch = network.fetch(writes=writes, profile=Profile(nagle=False))
    network.finish(fetch)
    expect.answered(fetch, PATH)
    assert sum(bool(node.served) for node in network.nodes) == 1
    expect.clean(network)


@pytest.mark.parametrize("cut", [2, len(REQUEST) - 2])
def test_a_client_that_takes_minutes_over_its_request_is_the_servers_to_time_out(cut: int) -> None:
    """The balancer has given the connection away long before; nobody but the server counts."""
    network = Network(nodes=3)
    fetch = network.fetch(writes=[(0.0, REQUEST[:cut]), (900.0, REQUEST[cut:])])
    network.run(899.0)
    assert [len(node.host.connections) for node in network.nodes].count(1) == 1
    assert not fetch.is_over
    network.finish(fetch)
    expect.answered(fetch, PATH)
    expect.lossless(network)


@pytest.mark.parametrize("seed", range(5))
def test_a_request_that_comes_out_of_order_is_hashed_by_its_url(seed: int) -> None:
    network = Network(seed, nodes=3)
    network.keep_no_order()
    whole = Network(nodes=3)
    reference = whole.fetch("/a/100")
    whole.finish(reference)
    chance = random.Random(seed)
    network.client_to_balancer.add(
        lambda packet: (chance.choice((0.0, 0.004, 0.008)),) if has_payload(packet) else None
    )
    one = request("GET", "/a/100", close=True)
    writes = [(0.001 * at, one[4 * at : 4 * at + 4]) for at in range(len(one) // 4 + 1)]
    fetch = network.fetch(writes=writes, profile=Profile(nagle=False))
    network.finish(fetch)
    expect.answered(fetch, "/a/100")
    served_by = [[bool(node.served) for node in each.nodes] for each in (network, whole)]
    assert served_by[0] == served_by[1]
    expect.clean(network)


@pytest.mark.parametrize("profile", [Profile(), Profile(burst=10), Profile(timestamps=False, burst=3)])
def test_a_url_of_8_kib_and_a_head_of_30_kib_are_answered(profile: Profile) -> None:
    network = Network(nodes=3)
    long_path = "/" + "u" * 8100 + "/100"
    fetch = network.fetch(long_path, profile=profile)
    network.finish(fetch)
    expect.answered(fetch, long_path)
    head = REQUEST[:-2] + b"X-Long: " + b"x" * 30_000 + b"\r\n\r\n"
    fetch = network.fetch(writes=[(0.0, head)], profile=profile)
    network.finish(fetch)
    expect.answered(fetch, PATH)
    assert not [name for name in network.balancer.core.counters if name.startswith("key_unread")]
    expect.lossless(network)


def test_a_superpacket_as_first_payload_is_handed_off_whole() -> None:
    network = Network()
    body = random.Random(6).randbytes(9_000)
    fetch = network.fetch("/post", "POST", body, profile=Profile(burst=44))
    network.finish(fetch)
    expect.posted(network, fetch, body)
    sizes = [len(parse(packet).payload) for _, packet in network.client_to_balancer.carried]
    assert max(sizes) > 9_000
    assert [len(packet.data) for packet in network.handoffs()] == [20 + 56 + 1424]
    expect.lossless(network)


def test_a_fin_on_the_first_payload_reaches_the_server_with_it() -> None:
    network = Network()
    fetch = network.fetch(writes=[])
    network.timeline.run(1.0, lambda: fetch.opened_at is not None)
    connection = fetch.connection
    connection.sender.data += request("GET", PATH)
    connection.close()
    network.finish(fetch)
    expect.answered(fetch, PATH)
    sent = [parse(packet) for _, packet in network.client_to_balancer.carried]
    assert [segment.flags & FIN for segment in sent if segment.payload] == [FIN]
    taken = [parse(packet) for _, packet in network.to_server.carried]
    assert [segment.flags & FIN for segment in taken if segment.payload] == [FIN]
    expect.lossless(network)


def test_a_fin_close_behind_the_first_payload_is_taken_too() -> None:
    network = Network()
    fetch = network.fetch(PATH, half_closes=True, close=False)
    network.finish(fetch)
    expect.answered(fetch, PATH)
    expect.lossless(network)


@pytest.mark.parametrize("largest", [300, 1424])
def test_the_first_payload_retransmitted_shorter_or_longer_is_answered(largest: int) -> None:
    """The handoff is lost; what comes again has other bounds than what came first."""
    network = Network()
    network.balancer_to_node.add(nth(1, is_handoff, ()))
    body = random.Random(7).randbytes(1_200)
    whole = request("POST", "/post", body, close=True)
    fetch = network.fetch(writes=[(0.0, whole[:700]), (0.01, whole[700:])], profile=Profile(nagle=False))
    connection = fetch.connection
    network.timeline.run(0.1, lambda: connection.sender.nxt > 700)
    connection.sender.shrink(largest)
    network.finish(fetch)
    expect.posted(network, fetch, body)
    assert [len(packet.data) - 76 for packet in network.handoffs()] == [700, min(largest, len(whole))]
    expect.clean(network)


def test_a_first_payload_that_comes_again_before_the_key_is_read_goes_by_the_4_tuple() -> None:
    network = Network()
    network.balancer_to_client.add(lambda packet: (0.3,) if flags_of(packet) == 0x12 else None)
    fetch = network.fetch(writes=[(0.0, REQUEST[:9]), (2.0, REQUEST[9:])], profile=Profile(nagle=False))
    network.client_to_balancer.add(nth(1, has_payload, (0.0, 0.03)))
    network.finish(fetch)
    expect.answered(fetch, PATH)
    counters = network.balancer.core.counters
    assert counters["key_unread_at_retransmission"] == 1
    assert counters["key_unread_in_time"] == 0
    expect.clean(network)


@pytest.mark.parametrize("profile", [Profile(), Profile(timestamps=False)])
def test_silence_after_the_handshake_is_waited_out(profile: Profile) -> None:
    """Preconnected by a browser: the request comes four minutes later."""
    network = Network()
    fetch = network.fetch(writes=[(240.0, REQUEST)], profile=profile)
    network.timeline.after(60.0, fetch.connection.probe)
    network.timeline.after(120.0, lambda: fetch.connection.probe(b"\0"))
    network.finish(fetch, 300.0)
    expect.answered(fetch, PATH)
    expect.lossless(network)


@pytest.mark.parametrize("payload", [b"", b"\0"])
def test_a_keepalive_probe_of_a_silent_client_is_answered(payload: bytes) -> None:
    network = Network()
    fetch = network.fetch(writes=[])
    network.run(30.0)
    before = len(network.balancer_to_client.carried)
    fetch.connection.probe(payload)
    network.run(1.0)
    answers = [parse(packet) for _, packet in network.balancer_to_client.carried[before:]]
    assert [(answer.flags, answer.ack) for answer in answers] == [(0x10, fetch.connection.sender.wire(1))]
    assert network.violations() == []


def test_a_client_that_closes_without_a_word_is_closed_with() -> None:
    network = Network()
    fetch = network.fetch(writes=[])
    network.run(1.0)
    fetch.connection.close()
    network.run(1.0)
    assert fetch.has_ended
    assert network.handoffs() == []
    expect.lossless(network)


def test_silence_of_more_than_five_minutes_ends_in_a_reset() -> None:
    network = Network()
    fetch = network.fetch(writes=[(310.0, REQUEST)])
    network.finish(fetch, 400.0)
    assert fetch.was_reset
    assert network.violations() == []


@pytest.mark.parametrize("cut", [1, 3, 9, len(REQUEST) - 30, len(REQUEST) - 2])
def test_a_client_that_closes_in_the_middle_of_its_request_is_closed_with(cut: int) -> None:
    network = Network()
    fetch = network.fetch(writes=[(0.0, REQUEST[:cut])], half_closes=True)
    network.finish(fetch)
    assert fetch.has_ended
    assert network.served == []
    expect.lossless(network)


def test_a_client_that_resets_in_the_middle_of_its_request_is_forgotten() -> None:
    network = Network()
    fetch = network.fetch(writes=[(0.0, REQUEST[:7])])
    network.run(0.04)
    fetch.connection.abort()
    network.run(5.0)
    assert network.handoffs() == []
    assert network.balancer.core.sizes["collecting"] == 0
    assert network.violations() == []


@pytest.mark.parametrize("cut", [5, len(REQUEST)])
def test_the_first_data_may_complete_the_handshake(cut: int) -> None:
    network = Network()
    writes = [(0.0, REQUEST[:cut]), (0.01, REQUEST[cut:])]
    fetch = network.fetch(writes=writes, profile=Profile(defers_ack=True))
    network.finish(fetch)
    expect.answered(fetch, PATH)
    expect.lossless(network)
