"""Answers of the balancer's own, which a client must be able to read like any other."""

import itertools

import pytest

from balancer.core.service import Limits
from tests.sim import expect
from tests.sim.endpoint import Profile
from tests.sim.http import Fetch
from tests.sim.link import Weather, nth
from tests.sim.network import PLAIN, Network, flags_of
from tests.sim.segment import ACK, FIN, RST, parse

BAD = b"GET nothing HTTP/1.1\r\nHost: example.test\r\n\r\n"
TOO_LONG = b"GET /" + b"u" * 10_000 + b" HTTP/1.1\r\n\r\n"
GOOD = b"GET /object/10 HTTP/1.1\r\n\r\n"


def refused(network: Network, status: int, profile: Profile = PLAIN) -> Fetch:
    if status == 503:
        network.start_balancer(available=False)
    writes = {400: BAD, 414: TOO_LONG, 503: GOOD}[status]
    return network.fetch(writes=[(0.0, writes)], profile=profile)


def check(network: Network, fetch: Fetch, status: int) -> None:
    assert [response.status for response in fetch.responses()] == [status]
    assert fetch.has_ended
    assert not fetch.was_reset
    if status == 503:
        assert fetch.responses()[0].fields["retry-after"].isdigit()
    assert network.served == []
    expect.clean(network)


@pytest.mark.parametrize("status", [400, 414, 503])
@pytest.mark.parametrize("options", list(itertools.product((True, False), repeat=2)))
def test_a_refusal_is_a_whole_answer_and_a_clean_end(status: int, options: tuple[bool, bool]) -> None:
    timestamps, burst = options
    network = Network()
    fetch = refused(network, status, Profile(timestamps=timestamps, burst=20 if burst else 1))
    network.finish(fetch)
    check(network, fetch, status)
    assert network.retransmissions() == 0
    assert sum(host.resets_received for host in network.hosts) == 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("status", [400, 414, 503])
def test_a_refusal_arrives_over_a_path_that_loses_a_fifth(status: int, seed: int) -> None:
    """A request line of several segments of which one is lost goes to a node, so its way there is spared."""
    network = Network(seed)
    network.keep_no_order()
    storm = Weather(loss=0.2, duplication=0.1, reordering=0.1)
    network.balancer_to_client.have(storm)
    if status != 414:
        network.client_to_balancer.have(storm)
    fetch = refused(network, status)
    network.finish(fetch)
    check(network, fetch, status)


@pytest.mark.parametrize("lost", ["answer", "ack", "fin"])
def test_each_lost_packet_of_a_refusal_is_made_up_for(lost: str) -> None:
    network = Network()
    if lost == "answer":
        network.balancer_to_client.add(nth(1, lambda packet: bool(flags_of(packet) & FIN), ()))
    elif lost == "ack":
        network.client_to_balancer.add(nth(4, lambda _: True, ()))
    else:
        network.client_to_balancer.add(nth(1, lambda packet: bool(flags_of(packet) & FIN), ()))
    fetch = refused(network, 400)
    network.finish(fetch)
    check(network, fetch, 400)


def test_what_is_not_http_is_reset() -> None:
    network = Network()
    fetch = network.fetch(writes=[(0.0, b"\x16\x03\x01 TLS")])
    network.finish(fetch)
    assert fetch.was_reset
    assert network.handoffs() == []
    assert network.violations() == []


def test_a_full_flow_table_is_answered_with_503() -> None:
    network = Network(limits=Limits(flows=2))
    kept = [network.fetch(close=False) for _ in range(2)]
    network.run(1.0)
    turned_away = network.fetch()
    network.finish(turned_away)
    assert [response.status for response in turned_away.responses()] == [503]
    for fetch in kept:
        expect.answered(fetch, "/object/5000")
    assert network.violations() == []


def test_a_full_half_open_table_costs_only_options_that_the_cookie_cannot_carry() -> None:
    network = Network(limits=Limits(half_open=0))
    for timestamps in (True, False):
        fetch = network.fetch("/object/30000", profile=Profile(timestamps=timestamps))
        network.finish(fetch)
        expect.answered(fetch, "/object/30000")
        assert fetch.connection.sack == timestamps
    expect.lossless(network)


def test_a_full_table_of_verified_connections_loses_nobody_who_speaks() -> None:
    network = Network(limits=Limits(verified=0))
    fetch = network.fetch("/object/30000")
    network.finish(fetch)
    expect.answered(fetch, "/object/30000")
    expect.lossless(network)


def test_a_packet_of_an_unknown_flow_is_answered_with_an_exact_reset() -> None:
    network = Network()
    fetch = network.fetch(close=False)
    network.run(1.0)
    network.start_balancer()
    fetch.connection.write(GOOD)
    network.finish(fetch)
    assert fetch.was_reset
    resets = [parse(packet) for _, packet in network.balancer_to_client.carried if flags_of(packet) & RST]
    assert [reset.seq for reset in resets] == [fetch.connection.receiver.wire(fetch.connection.receiver.nxt)]
    assert not resets[0].flags & ACK
