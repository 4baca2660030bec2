"""Which node a URL belongs to, and why."""

import pytest
import xxhash

from balancer.core.explain import departures, explain
from balancer.core.loads import CountedLoads
from balancer.core.service import Service, make_nodes
from common.hashing.request_key import KeySpec
from common.reports import Explanation
from tests.unit.balancer.scene import GET, INDEX, NODES, PORT, VIP, Scene, connected, packed

SLOTS = 65537


def make_service(**weights: int) -> Service:
    weights = weights or dict.fromkeys(NODES, 1)
    members = {name: (packed(NODES[name]), weight) for name, weight in weights.items()}
    nodes, table = make_nodes(packed(VIP), PORT, INDEX, members)
    return Service(packed(VIP), PORT, INDEX, nodes, table, weights=dict(members.values()))


def explained(url: str, service: Service | None = None, loads: CountedLoads | None = None) -> Explanation:
    return explain(service or make_service(), loads or CountedLoads(), "films", url)


@pytest.mark.parametrize("url", ["/film/1.ts", "http://films.example/film/1.ts", "/film//./%31.ts?token=7"])
def test_a_url_is_explained_as_it_is_served(url: str) -> None:
    found = explained(url)
    key_hash = xxhash.xxh64_intdigest(b"/film/1.ts")
    assert (found.service, found.key, found.key_hash) == ("films", "/film/1.ts", f"{key_hash:016x}")
    assert (found.slot, found.slots, found.text) == (key_hash % SLOTS, SLOTS, "")
    assert found.node == found.sequence[0] == connected(Scene(make_service()), GET).node


def test_the_services_key_and_seed_count() -> None:
    service = make_service()._replace(key=KeySpec("segments", 1), hash_seed=42)
    found = explained("/live/1.ts", service)
    assert (found.key, found.key_hash) == ("/live", f"{xxhash.xxh64_intdigest(b'/live', 42):016x}")


def test_the_successor_is_who_serves_once_the_node_has_left() -> None:
    found, leaving = explained("/film/1.ts"), departures(make_service(), "/film/1.ts")
    assert [departure.node for departure in leaving] == sorted(NODES)
    for departure in leaving:
        left = make_service(**{name: int(name != departure.node) for name in NODES})
        assert departure.successor == connected(Scene(left), GET).node
        assert 1 / 3 - 0.001 < departure.moved < 1 / 3 + 0.02
        assert (departure.successor == found.node) == (departure.node != found.node)


def test_the_last_node_has_no_successor() -> None:
    (departure,) = departures(make_service(node1=1), "/film/1.ts")
    assert (departure.node, departure.successor, departure.moved) == ("node1", "", 1.0)


def test_nodes_without_weight_have_no_part() -> None:
    service = make_service(node1=3, node2=1, node3=0)
    assert {departure.node for departure in departures(service, "/film/1.ts")} == {"node1", "node2"}
    assert "node3" not in explained("/film/1.ts", service).sequence


def test_a_node_at_its_bound_passes_the_url_on() -> None:
    service = make_service()._replace(load_factor=256)
    first, second, _ = explained("/film/1.ts").sequence
    loads = CountedLoads()
    loads.configure(INDEX, service.weights, 256)
    for name, address in NODES.items():
        loads.correct(INDEX, packed(address), 9 if name == first else 0)
    found = explained("/film/1.ts", service, loads)
    assert (found.node, found.sequence[:2], found.text) == (second, [first, second], "")


def test_where_all_are_at_their_bounds_the_first_one_gets_it() -> None:
    service = make_service()._replace(load_factor=1)
    loads = CountedLoads()
    loads.configure(INDEX, service.weights, 1)
    for address in NODES.values():
        loads.correct(INDEX, packed(address), 9)
    found = explained("/film/1.ts", service, loads)
    assert found.node == found.sequence[0]
    assert "all nodes of the sequence" in found.text


def test_a_service_without_nodes_has_no_node() -> None:
    found = explained("/film/1.ts", make_service()._replace(table=None))
    assert (found.node, found.sequence, found.departures) == ("", [], [])
    assert found.text == "no node is open to new flows"


@pytest.mark.parametrize("url", ["film/1.ts", "", "/with space", "/\n", "*"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no URL of a request: give a path such as /film"):
        explained(url)


def test_a_url_that_would_be_refused_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 9216 bytes: it would be answered 414"):
        explained("/" + "a" * 9300)


def test_bytes_that_are_no_text_are_shown() -> None:
    assert explained("/ä/\udcff").key == r"/ä/\xff"
