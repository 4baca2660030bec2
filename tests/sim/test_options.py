"""What is negotiated with the client holds end to end, and numbers may wrap anywhere."""

import itertools

import pytest

from tests.sim import expect
from tests.sim.endpoint import Profile
from tests.sim.link import nth
from tests.sim.network import PROMISED, Latencies, Network
from tests.sim.segment import SYN, parse

SWITCHES = list(itertools.product((True, False), repeat=4))
"""MSS, window scale, SACK, timestamps."""


def profile_of(switches: tuple[bool, bool, bool, bool]) -> Profile:
    mss, scale, sack, timestamps = switches
    return Profile(mss=1460 if mss else None, scale=7 if scale else None, sack=sack, timestamps=timestamps)


@pytest.mark.parametrize("switches", SWITCHES)
def test_each_option_that_the_client_lacks_stays_off_on_both_legs(
    switches: tuple[bool, bool, bool, bool],
) -> None:
    network = Network()
    profile = profile_of(switches)
    expect.both_ways(network, 40_000, 60_000, profile=profile)
    to_server = [parse(packet) for _, packet in network.to_server.carried]
    syns = [segment for segment in to_server if segment.flags == SYN]
    assert len(syns) == 2
    for syn in syns:
        options = syn.options
        assert options.mss == (1460 if profile.mss else 536)
        assert (options.scale, options.sack_permitted) == (profile.scale, profile.sack)
        assert (options.stamps is not None) == profile.timestamps
    expect.lossless(network)


@pytest.mark.parametrize("switches", SWITCHES)
def test_each_option_that_the_server_lacks_but_timestamps_can_be_done_without(
    switches: tuple[bool, bool, bool, bool],
) -> None:
    mss, scale, sack, timestamps = switches
    server = PROMISED._replace(
        mss=1460 if mss else None, scale=9 if scale else None, sack=sack, timestamps=timestamps
    )
    network = Network(server=server)
    expect.both_ways(network, 40_000, 60_000, profile=Profile(timestamps=timestamps))
    expect.lossless(network)


def test_a_server_without_the_timestamps_that_the_client_has_means_a_reset() -> None:
    network = Network(server=PROMISED._replace(timestamps=False))
    fetch = network.fetch()
    network.finish(fetch)
    assert fetch.was_reset
    assert network.timeline.now < 5000.1
    assert network.node.host.connections == {}
    assert network.node.host.requests == {}
    assert network.violations() == []


@pytest.mark.parametrize("client_scale", [0, 7, 14])
@pytest.mark.parametrize("server_scale", [0, 2, 7, 11])
@pytest.mark.parametrize("promised_scale", [0, 7])
def test_window_scales_equal_and_different_on_the_two_legs(
    client_scale: int, server_scale: int, promised_scale: int
) -> None:
    network = Network(server=PROMISED._replace(scale=server_scale), promised_scale=promised_scale)
    expect.both_ways(network, 100_000, 100_000, profile=Profile(scale=client_scale))
    expect.lossless(network)


@pytest.mark.parametrize("before", [0, 1, 700, 30_000])
@pytest.mark.parametrize("timestamps", [True, False])
def test_both_sequence_spaces_wrap_inside_a_transfer(before: int, timestamps: bool) -> None:
    """Over a path that loses, so that SACK blocks wrap with them."""
    network = Network(seed=before)
    network.node.listeners[0].isn = lambda: 2**32 - 1 - before
    network.node_to_client.add(nth(20, lambda _: True, ()))
    network.client_to_balancer.add(nth(20, lambda _: True, ()))
    profile = Profile(timestamps=timestamps)
    expect.both_ways(network, 60_000, 60_000, profile=profile, isn=2**32 - 1 - before)
    assert network.timeline.now < 5001.0
    expect.clean(network)


@pytest.mark.parametrize("ticks", [2**32 - 5_000_000 - 40, 2**31 - 5_000_000 - 40])
def test_both_clocks_of_timestamps_wrap_inside_a_transfer(ticks: int) -> None:
    """5,000,000 is what a clock shows at the start that began at 0."""
    network = Network(server_tick=ticks, client_tick=ticks, latencies=Latencies(backend=0.001))
    expect.both_ways(network, 200_000, 200_000)
    expect.lossless(network)


def test_the_servers_clock_may_be_anywhere_against_the_balancers() -> None:
    for server_tick in range(0, 2**32, 2**29):
        network = Network(server_tick=server_tick)
        fetch = network.fetch("/object/20000")
        network.finish(fetch)
        expect.answered(fetch, "/object/20000")
        expect.lossless(network)


@pytest.mark.parametrize("mss", [216, 536, 900, 1400, 1441, 8960])
def test_no_segment_is_longer_than_the_clients_mss(mss: int) -> None:
    network = Network()
    fetch = network.fetch("/object/30000", profile=Profile(mss=mss))
    network.finish(fetch)
    expect.answered(fetch, "/object/30000")
    to_server = [parse(packet) for _, packet in network.to_server.carried]
    assert [segment.options.mss for segment in to_server if segment.flags == SYN] == [mss]
    expect.lossless(network)
