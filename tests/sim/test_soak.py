"""Many clients of every kind at once, on bad lines, for a while."""

import itertools
import random

import pytest

from tests.sim.endpoint import Profile
from tests.sim.http import Fetch, body_of, request
from tests.sim.link import Weather
from tests.sim.network import PROMISED, VIPS, Network


def random_profile(chance: random.Random) -> Profile:
    return Profile(
        mss=chance.choice((None, 536, 1220, 1460, 8960)),
        scale=chance.choice((None, 0, 4, 7, 14)),
        sack=chance.random() < 0.7,
        timestamps=chance.random() < 0.7,
        buffer_size=chance.choice((3_000, 30_000, 1 << 20)),
        nagle=chance.random() < 0.5,
        delays_ack=chance.random() < 0.5,
        defers_ack=chance.random() < 0.3,
        burst=chance.choice((1, 1, 4, 44)),
        ecn=chance.randrange(4),
        dscp=chance.randrange(64),
    )


def random_writes(chance: random.Random, whole: bytes) -> list[tuple[float, bytes]]:
    """The request in one to four pieces."""
    cuts = sorted(chance.randrange(len(whole)) for _ in range(chance.choice((0, 0, 1, 3))))
    times = [0.0, *sorted(chance.uniform(0.0, 0.3) for _ in cuts)]
    edges = [0, *cuts, len(whole)]
    return [(at, whole[a:b]) for at, (a, b) in zip(times, itertools.pairwise(edges), strict=True)]


@pytest.mark.parametrize("seed", range(16))
def test_every_client_gets_its_own_bytes_and_each_post_runs_once(seed: int) -> None:
    chance = random.Random(seed)
    server = random_profile(chance)._replace(
        timestamps=True, sack=True, buffer_size=1 << 18, dscp=0, mss=chance.choice((536, 1460))
    )
    promised = (PROMISED.promised_window, PROMISED.promised_mss)
    network = Network(
        seed,
        nodes=3,
        server=server._replace(promised_window=promised[0], promised_mss=promised[1]),
        server_tick=chance.getrandbits(32),
        client_tick=chance.getrandbits(32),
        promised_scale=chance.choice((0, 7)),
    )
    network.keep_no_order()
    weather = Weather(*(chance.choice((0.0, 0.01, 0.03)) for _ in range(3)))
    for line in (network.client_to_balancer, network.balancer_to_client, network.node_to_client):
        line.have(weather)
    network.balancer_to_node.have(weather._replace(loss=0.0))
    fetches: list[tuple[str, Fetch]] = []
    bodies: list[bytes] = []
    for number in range(15):
        path, body = f"/object{number}/{chance.randrange(30_000)}", b""
        if chance.random() < 0.5:
            path, body = "/post", b"%d." % number + chance.randbytes(chance.randrange(20_000))
            bodies.append(body)
        whole = request("POST" if body else "GET", path, body, close=True)
        writes, profile = random_writes(chance, whole), random_profile(chance)
        fetches.append((path, network.fetch(writes=writes, profile=profile, vip=chance.choice(VIPS))))
        network.run(chance.uniform(0.0, 0.3))
    for path, fetch in fetches:
        network.finish(fetch, 600.0)
        assert fetch.has_ended
        assert [response.status for response in fetch.responses()] == [200]
        assert path == "/post" or fetch.responses()[0].body == body_of(path)
    assert sorted(served.body for served in network.served if served.method == "POST") == sorted(bodies)
    network.run(200.0)
    assert network.violations() == []
    assert [len(host.connections) for host in network.hosts] == [0] * 4
    assert [node.packetbridge.core.sizes["flows"] for node in network.nodes] == [0] * 3
