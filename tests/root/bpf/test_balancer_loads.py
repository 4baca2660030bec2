"""Bounded loads on both planes: programs and core choose the same node for each connection, and count alike.

Where a packet differs, `Twin` says so; a handoff's destination is the node that was chosen.
"""

import random
from collections.abc import Iterator
from itertools import product

import pytest

from balancer.core.loads import FACTOR_ONE, CountedLoads, NodeLoad
from balancer.core.service import Limits, Service, make_nodes
from balancer.ebpf.loads import MapLoads
from common.hashing.request_key import DEFAULT_KEY_SPEC, KeySpec
from tests.root.bpf.balancer_twin import Programs, Twin
from tests.unit.balancer.scene import PORT, VIP, Client, packed

pytestmark = pytest.mark.root

WEIGHTS = {"node1": 1, "node2": 2, "node3": 5}
ADDRESSES = {name: packed(f"192.168.33.{number}") for number, name in enumerate(WEIGHTS, 21)}
LIMITS = Limits(flows=4000, verified=100, half_open=100)
TALLIES = ("bounded_away", "all_at_bound")


def make_bounded(factor: float, port: int = PORT, index: int = 5, key: KeySpec = DEFAULT_KEY_SPEC) -> Service:
    nodes, table = make_nodes(
        packed(VIP), port, index, {name: (ADDRESSES[name], weight) for name, weight in WEIGHTS.items()}
    )
    return Service(
        packed(VIP),
        port,
        index,
        nodes,
        table,
        key=key,
        weights={ADDRESSES[name]: weight for name, weight in WEIGHTS.items()},
        load_factor=int(factor * FACTOR_ONE),
    )


def check_loads(twin: Twin, service: Service) -> None:
    for address in ADDRESSES.values():
        expected = twin.core.loads.of(service.vip_index, address)
        assert twin.upper.loads.of(service.vip_index, address) == expected
        admits = twin.core.loads.admits(service.vip_index, address)
        assert twin.upper.loads.admits(service.vip_index, address) == admits


@pytest.mark.parametrize("seed", range(8))
def test_random_loads_lead_to_the_same_nodes(seed: int) -> None:
    chance = random.Random(seed)
    services = [
        make_bounded(0.5),
        make_bounded(chance.choice((0, 1.0, 1.25)), 8080, 6, KeySpec("segments", 1)),
    ]
    with Twin(*services, limits=LIMITS) as twin:
        for service, name in product(services, WEIGHTS):
            twin.correct(service, name, chance.randrange(10))
        for number in range(300):
            service = chance.choice(services)
            if chance.random() < 0.1:
                flows = chance.randrange(60) if chance.random() < 0.9 else None
                twin.correct(service, chance.choice(list(WEIGHTS)), flows)
            path = b"/hot" if chance.random() < 0.5 else b"/%d" % chance.randrange(50)
            client = Client(twin, port=20_000 + number, service_port=service.port).connect()
            client.send(b"GET %s HTTP/1.1\r\n\r\n" % path)
            check_loads(twin, service)
        assert all(twin.programs.counters[tally] > 5 for tally in TALLIES)


def test_a_hot_key_spreads_over_its_sequence_and_comes_back() -> None:
    service = make_bounded(1.25)
    with Twin(service, limits=LIMITS) as twin:
        for name in WEIGHTS:
            twin.correct(service, name, 0)

        def nodes_of(ports: range) -> list[str | None]:
            clients = [Client(twin, port=port).connect() for port in ports]
            for client in clients:
                client.send(b"GET /hot HTTP/1.1\r\n\r\n")
            return [client.node for client in clients]

        (first,) = set(nodes_of(range(20_000, 20_001)))
        assert len(set(nodes_of(range(20_001, 20_100)))) > 1
        for name, weight in WEIGHTS.items():
            twin.correct(service, name, 100 * weight if name != first else 0)
        assert set(nodes_of(range(20_100, 20_110))) == {first}


def test_what_python_establishes_counts_for_the_programs() -> None:
    service = make_bounded(1.0)
    with Twin(service, limits=LIMITS) as twin:
        for name in WEIGHTS:
            twin.correct(service, name, 0)
        for port in range(20_000, 20_060):
            client = Client(twin, port=port).connect()
            if port % 2:
                client.send(b"GET /hot HTTP/1.1\r\n\r\n")
            else:
                client.send(b"GET /h")
                client.send(b"ot HTTP/1.1\r\n\r\n", at=6)
        assert twin.programs.counters["passed_up"] > 0
        check_loads(twin, service)


def test_a_flow_counts_once_however_often_it_is_handed_off() -> None:
    service = make_bounded(0)
    with Twin(service, limits=LIMITS) as twin:
        client = Client(twin).connect()
        for _ in range(3):
            client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert client.node is not None
        assert twin.upper.loads.of(5, ADDRESSES[client.node]) == NodeLoad(None, 1)


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    made = Programs([make_bounded(1.25)], LIMITS, 1000.0)
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(10))
def test_loads_in_maps_are_those_in_the_process(programs: Programs, seed: int) -> None:
    """Whatever is configured, said, and counted, in any order, and by Python or, as here, by a program."""
    chance = random.Random(seed)
    maps: MapLoads = programs.loads()
    process = CountedLoads()
    addresses = list(ADDRESSES.values())
    for _ in range(400):
        index, node = chance.choice((1, 2)), chance.choice(addresses)
        action = chance.random()
        if action < 0.08:
            weights = {each: chance.randrange(4) for each in addresses if chance.random() < 0.8}
            factor = chance.choice((0, 256, 300, 512))
            for loads in (maps, process):
                loads.configure(index, weights, factor)
        elif action < 0.1:
            for loads in (maps, process):
                loads.forget(index)
        elif action < 0.4:
            flows = chance.choice((None, chance.randrange(30)))
            for loads in (maps, process):
                loads.correct(index, node, flows)
        elif action < 0.7:
            for loads in (maps, process):
                loads.count(index, node)
        else:
            hand(programs, index, node)
            process.count(index, node)
        for each in addresses:
            assert maps.of(index, each) == process.of(index, each)
            assert maps.admits(index, each) == process.admits(index, each)


def hand(programs: Programs, index: int, node: bytes) -> None:
    """As count_handed in bpf/include/balancer/choice.h."""
    key = node + bytes((index, 0, 0, 0))
    handed, row = programs.map("handed").lookup(key), programs.map("nodes").lookup(key)
    if handed is None or row is None:
        return
    add(programs, "handed", key, handed)
    weight, is_bounded = int.from_bytes(row[8:12], "little"), row[12]
    if weight and is_bounded:
        totals = programs.array("handed_total")
        total = int.from_bytes(totals.lookup(index), "little")
        totals.update(index, (total + 1).to_bytes(8, "little"))


def add(programs: Programs, name: str, key: bytes, number: bytes) -> None:
    programs.map(name).update(key, (int.from_bytes(number, "little") + 1).to_bytes(8, "little"))
