"""What simulations end with."""

import hashlib
import random

from tests.sim.endpoint import Profile
from tests.sim.http import Fetch, body_of
from tests.sim.network import PLAIN, VIPS, Network, flags_of, source_of
from tests.sim.segment import SYN

LINGER = 70.0
"""Seconds in which everything that was closed is gone."""


def answered(fetch: Fetch, path: str, count: int = 1) -> None:
    """The client has ``count`` whole answers with the bytes of ``path``, and nothing else."""
    got = fetch.responses()
    assert [response.status for response in got] == [200] * count
    assert all(response.body == body_of(path) for response in got)


def posted(network: Network, fetch: Fetch, body: bytes) -> None:
    """The server has carried out the POST once, with these bytes, and the client knows."""
    assert [served.body == body for served in network.served] == [True]
    got = fetch.responses()
    assert [response.status for response in got] == [200]
    assert got[0].body == hashlib.sha256(body).hexdigest().encode()


def both_ways(
    network: Network, sent: int, received: int, *, profile: Profile = PLAIN, isn: int | None = None
) -> None:
    """A POST of ``sent`` bytes arrives whole, and then the ``received`` bytes of a GET."""
    body = random.Random(sent).randbytes(sent)
    posting = network.fetch("/post", "POST", body, profile=profile, isn=isn)
    network.finish(posting)
    posted(network, posting, body)
    path = f"/object/{received}"
    fetch = network.fetch(path, profile=profile, isn=isn)
    network.finish(fetch)
    answered(fetch, path)


def clean(network: Network) -> None:
    """Nobody has anything to complain of, and no connection is left."""
    network.run(LINGER)
    assert network.violations() == []
    bridged = [packet for _, packet in network.node_to_client.carried if source_of(packet) in VIPS]
    assert not any(flags_of(packet) & SYN for packet in bridged)
    for host in network.hosts:
        assert (host.connections, host.requests, host.waiting) == ({}, {}, {})


def lossless(network: Network) -> None:
    """Clean, and nothing was sent twice or reset."""
    clean(network)
    assert network.retransmissions() == 0
    assert [host.resets_sent + host.resets_received for host in network.hosts] == [0] * len(network.hosts)
