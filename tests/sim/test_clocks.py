"""Wall clocks that differ, and handoffs at the edge of their age."""

import pytest

from tests.sim import expect
from tests.sim.link import nth
from tests.sim.network import Network, is_handoff


@pytest.mark.parametrize("skew", [-59, -10, 10, 59])
def test_clocks_less_than_a_minute_apart_do_no_harm(skew: int) -> None:
    network = Network(skew=skew)
    fetch = network.fetch("/post", "POST", b"body" * 1000)
    network.finish(fetch)
    expect.posted(network, fetch, b"body" * 1000)
    expect.lossless(network)


@pytest.mark.parametrize("skew", [-62, 62])
def test_clocks_more_than_a_minute_apart_are_noticed(skew: int) -> None:
    network = Network(skew=skew)
    fetch = network.fetch()
    network.finish(fetch)
    assert network.served == []
    assert network.node.packetbridge.core.counters["handoff_too_old"] > 0


def post_with_a_late_copy_of_the_handoff(network: Network, late: float) -> None:
    """It is carried out once. The server resets the connection at once, so that no flow is there any more."""
    network.balancer_to_node.add(nth(1, is_handoff, (0.0, late)))
    fetch = network.fetch("/post", "POST", b"once", close=False)
    network.timeline.run(1.0, lambda: bool(network.served))
    next(iter(network.node.host.connections.values())).abort()
    network.finish(fetch)
    network.run(200.0)
    assert len(network.served) == 1


@pytest.mark.parametrize("late", [59.5, 60.1, 60.5, 60.9, 61.5])
def test_a_handoff_at_the_edge_of_its_age_runs_no_post_twice(late: float) -> None:
    post_with_a_late_copy_of_the_handoff(Network(), late)


@pytest.mark.parametrize(
    ("skew", "late"),
    [
        *((55, late) for late in (3.0, 30.0, 70.0)),
        *((-55, late) for late in (30.0, 59.0, 118.0)),
        (-55, 70.0),
        (-55, 100.0),
    ],
)
def test_a_late_handoff_runs_no_post_twice_where_the_clocks_differ(skew: int, late: float) -> None:
    post_with_a_late_copy_of_the_handoff(Network(skew=skew), late)
