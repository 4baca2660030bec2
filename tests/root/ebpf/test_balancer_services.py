"""What the balancer's programs are told of a service: its row and its Maglev table."""

import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from balancer.core.service import NonHttp
from balancer.ebpf.abi import SERVICE
from balancer.ebpf.plane import publish_table, service_row
from common.bpf import libbpf
from common.bpf.maps import ArrayMap, MapOfMaps
from common.bpf.objects import BpfObject, object_path
from common.hashing.request_key import KeySpec
from tests.unit.balancer.scene import INDEX, NODES, VIP, make_service, packed

pytestmark = pytest.mark.root

SLOTS = 65537


@pytest.fixture(scope="module")
def tables() -> Iterator[MapOfMaps]:
    constants = {"link_header_size": 14}
    entries = dict.fromkeys(("flows", "verified", "half_open", "claims"), 16)
    with BpfObject(object_path("balancer"), constants=constants, max_entries=entries) as loaded:
        yield MapOfMaps(loaded.map("tables"))


def published(tables: MapOfMaps) -> tuple[int, list[bytes]]:
    """The kernel's number of the service's table, and the node address in each slot."""
    number = tables.inner_id(INDEX)
    assert number is not None
    descriptor = libbpf.check(libbpf.library().bpf_map_get_fd_by_id(number))
    try:
        table = ArrayMap(descriptor)
        return number, [table.lookup(slot) for slot in range(SLOTS)]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("names", [("node1",), ("node1", "node3"), ()], ids=["one", "two", "all"])
def test_each_slot_has_the_address_of_its_node(tables: MapOfMaps, names: tuple[str, ...]) -> None:
    service = make_service(*names)
    assert service.table is not None
    publish_table(tables, service)
    expected = [packed(NODES[service.table.names[number]]) for number in service.table.slots]
    assert published(tables)[1] == expected
    assert {packed(NODES[name]) for name in names or NODES} == set(expected)


def test_a_new_table_takes_the_place_of_the_old_one_as_a_whole(tables: MapOfMaps) -> None:
    publish_table(tables, make_service("node1"))
    old, _ = published(tables)
    descriptor = libbpf.check(libbpf.library().bpf_map_get_fd_by_id(old))
    try:
        publish_table(tables, make_service("node2"))
        assert published(tables)[0] != old
        assert ArrayMap(descriptor).lookup(0) == packed(NODES["node1"]), "who reads it may go on"
    finally:
        os.close(descriptor)


def test_service_without_nodes_has_no_table_and_its_row_says_so(tables: MapOfMaps) -> None:
    publish_table(tables, make_service("node1"))
    before = published(tables)
    service = make_service()._replace(table=None)
    publish_table(tables, service)
    assert published(tables) == before
    assert not service_row(service, 1500).has_table


def test_row_of_a_service_with_all_defaults() -> None:
    assert SERVICE.pack(service_row(make_service(), 1500)) == (
        packed(VIP)
        + struct.pack(">HBB", 80, INDEX, 1)
        + struct.pack("=QIIHHBBBx", 0, 0, 9216, 1424, 1500, 7, 0, 1)
    )


@pytest.mark.parametrize(
    ("key", "kind", "argument"),
    [
        (KeySpec("path"), 1, 0),
        (KeySpec("uri"), 2, 0),
        (KeySpec("segments", 3), 3, 3),
        (KeySpec("unheard-of", 3), 0, 3),
    ],
    ids=str,
)
def test_kinds_of_keys_that_the_programs_do_not_know_are_left_to_python(
    key: KeySpec, kind: int, argument: int
) -> None:
    row = service_row(make_service()._replace(key=key), 1500)
    assert (row.key_kind, row.key_argument) == (kind, argument)


@pytest.mark.parametrize(
    ("option", "value", "field", "said"),
    [
        ("port", 8080, "port", b"\x1f\x90"),
        ("vip_index", 63, "vip_index", 63),
        ("hash_seed", 2**64 - 1, "hash_seed", 2**64 - 1),
        ("non_http", NonHttp.HASH, "non_http", 1),
        ("promised_scale", 14, "promised_scale", 14),
        ("max_payload", 1380, "max_payload", 1380),
        ("target_limit", 100, "target_limit", 100),
    ],
)
def test_each_option_has_its_field(option: str, value: Any, field: str, said: Any) -> None:
    service = make_service()._replace(**{option: value})
    row = SERVICE.unpack(SERVICE.pack(service_row(service, 9000)))
    assert row._replace(node_mtu=1500) == service_row(make_service(), 1500)._replace(**{field: said})
    assert row.node_mtu == 9000
