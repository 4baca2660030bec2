"""What the balancer's programs are told of services: their rows and their Maglev tables."""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from balancer.core.service import NonHttp, Service
from balancer.ebpf.abi import SERVICE, ServiceRow
from balancer.ebpf.services import QUIET_SECONDS, PublishedServices, service_row
from common.bpf import libbpf
from common.bpf.abi import MAX_SERVICES
from common.bpf.maps import ArrayMap, HashMap, MapOfMaps
from common.bpf.objects import BpfObject, object_path
from common.hashing.request_key import KeySpec
from common.tables import TableFullError
from tests.unit.balancer.scene import INDEX, NODES, PORT, VIP, make_service, packed

pytestmark = pytest.mark.root

SLOTS = 65537
TABLE = INDEX
MTU = 1500


class Maps:
    """Those of the programs, and what publishes services there."""

    def __init__(self, loaded: BpfObject) -> None:
        self.rows = HashMap(loaded.map("services"))
        self.tables = MapOfMaps(loaded.map("tables"))
        self.published = PublishedServices(self.rows, self.tables)

    def publish(self, *services: Service) -> None:
        with ExitStack() as drafting:
            for draft in self.published.draft(services, drafting):
                self.published.publish(draft, MTU)

    def row(self, port: int = PORT) -> ServiceRow:
        row = self.rows.lookup(packed(VIP) + struct.pack(">HH", port, 0))
        assert row is not None
        return SERVICE.unpack(row)

    def table(self, number: int) -> tuple[int, list[bytes]]:
        """The kernel's number of a table, and the node address in each slot."""
        found = self.tables.inner_id(number)
        assert found is not None
        descriptor = libbpf.check(libbpf.library().bpf_map_get_fd_by_id(found))
        try:
            table = ArrayMap(descriptor).lookup(0)
            assert len(table) == 4 * SLOTS
            return found, [table[at : at + 4] for at in range(0, len(table), 4)]
        finally:
            os.close(descriptor)


@pytest.fixture
def maps() -> Iterator[Maps]:
    constants = {"link_header_size": 14}
    entries = dict.fromkeys(("flows", "verified", "half_open", "claims"), 16)
    with BpfObject(object_path("balancer"), constants=constants, max_entries=entries) as loaded:
        made = Maps(loaded)
        yield made
        made.published.close()


@pytest.mark.parametrize("names", [("node1",), ("node1", "node3"), ()], ids=["one", "two", "all"])
def test_each_slot_has_the_address_of_its_node(maps: Maps, names: tuple[str, ...]) -> None:
    service = make_service(*names)
    assert service.table is not None
    maps.publish(service)
    expected = [packed(NODES[service.table.names[number]]) for number in service.table.slots]
    assert maps.table(maps.row().table)[1] == expected
    assert {packed(NODES[name]) for name in names or NODES} == set(expected)


def test_a_new_table_is_filled_beside_the_old_one_and_the_row_turns_to_it(maps: Maps) -> None:
    maps.publish(make_service("node1"))
    first = maps.row().table
    with ExitStack() as drafting:
        (draft,) = maps.published.draft([make_service("node2")], drafting)
        assert maps.row().table == first, "nothing is seen of it yet"
        maps.published.publish(draft, MTU)
    assert maps.row().table != first
    assert maps.table(first)[1][0] == packed(NODES["node1"]), "who goes by the old row may go on"
    assert maps.table(maps.row().table)[1][0] == packed(NODES["node2"])
    maps.publish(make_service("node3"))
    assert maps.row().table == first
    assert maps.table(first)[1][0] == packed(NODES["node3"])


def test_the_same_table_is_not_made_again(maps: Maps) -> None:
    maps.publish(make_service("node1"))
    row, (table, _) = maps.row(), maps.table(TABLE)
    maps.publish(make_service("node1")._replace(target_limit=77))
    assert maps.row() == row._replace(target_limit=77)
    assert maps.table(TABLE)[0] == table


def test_a_table_that_has_long_been_out_of_use_is_written_anew_where_it_is(maps: Maps) -> None:
    maps.publish(make_service("node1"))
    first, (map_of_first, _) = maps.row().table, maps.table(maps.row().table)
    maps.publish(make_service("node2"))
    time.sleep(1.1 * QUIET_SECONDS)
    with ExitStack() as drafting:
        (draft,) = maps.published.draft([make_service("node3")], drafting)
        assert maps.table(maps.row().table)[1][0] == packed(NODES["node2"]), "in use"
        maps.published.publish(draft, MTU)
    assert maps.row().table == first
    assert maps.table(first) == (map_of_first, [packed(NODES["node3"])] * SLOTS)


def test_a_table_that_programs_may_still_read_is_not_written_but_replaced(maps: Maps) -> None:
    maps.publish(make_service("node1"))
    first, (map_of_first, _) = maps.row().table, maps.table(maps.row().table)
    maps.publish(make_service("node2"))
    maps.published._left[first] = time.monotonic()
    maps.publish(make_service("node3"))
    assert maps.row().table == first
    assert maps.table(first)[0] != map_of_first


def test_a_service_whose_row_had_no_room_is_published_when_there_is_some(maps: Maps) -> None:
    others = [struct.pack(">IHH", number, 80, 0) for number in range(MAX_SERVICES)]
    for key in others:
        maps.rows.update(key, bytes(SERVICE.size))
    with pytest.raises(TableFullError):
        maps.publish(make_service("node1"))
    maps.rows.delete(others[0])
    maps.publish(make_service("node2"))
    assert maps.table(maps.row().table)[1] == [packed(NODES["node2"])] * SLOTS


def test_a_service_that_takes_over_an_index_does_not_write_the_table_in_use(maps: Maps) -> None:
    old, new = make_service("node1"), make_service("node2")._replace(port=8080)
    maps.publish(old)
    with ExitStack() as drafting:
        (draft,) = maps.published.draft([new], drafting)
        assert maps.table(maps.row().table)[1][0] == packed(NODES["node1"])
        maps.published.withdraw(old.endpoint)
        maps.published.publish(draft, MTU)
    assert maps.table(maps.row(8080).table)[1][0] == packed(NODES["node2"])


def test_a_service_that_is_withdrawn_and_served_again_keeps_its_table(maps: Maps) -> None:
    service = make_service("node1")
    maps.publish(service)
    with ExitStack() as drafting:
        (draft,) = maps.published.draft([service], drafting)
        maps.published.withdraw(service.endpoint)
        maps.published.publish(draft, MTU)
    assert maps.table(maps.row().table)[1][0] == packed(NODES["node1"])


def test_two_services_have_tables_of_their_own(maps: Maps) -> None:
    other = make_service("node2")._replace(port=8080, vip_index=9)
    maps.publish(make_service("node1"), other)
    assert maps.table(maps.row().table)[1][0] == packed(NODES["node1"])
    assert maps.table(maps.row(8080).table)[1][0] == packed(NODES["node2"])
    maps.published.withdraw(other.endpoint)
    assert list(maps.published.rows) == [(packed(VIP), PORT)]


def test_service_without_nodes_has_no_table_until_it_has_nodes_again(maps: Maps) -> None:
    for _ in range(2):
        maps.publish(make_service("node1"))
        assert maps.table(maps.row().table)[1][0] == packed(NODES["node1"])
        maps.publish(make_service()._replace(table=None))
        assert maps.row().table == 0


def test_a_service_of_an_earlier_run_gets_its_new_table_in_the_other_place(maps: Maps) -> None:
    maps.publish(make_service("node1"))
    first = maps.row().table
    maps.published.close()
    maps.published = PublishedServices(maps.rows, maps.tables)
    maps.publish(make_service("node2"))
    assert maps.row().table != first
    assert maps.table(maps.row().table)[1][0] == packed(NODES["node2"])


def test_row_of_a_service_with_all_defaults() -> None:
    assert SERVICE.pack(service_row(make_service(), 1500, TABLE)) == (
        packed(VIP)
        + struct.pack(">HBB", 80, INDEX, 1)
        + struct.pack("=QIIHHBBBx", 0, 0, 9216, 1424, 1500, 7, 0, TABLE)
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
    row = service_row(make_service()._replace(key=key), 1500, TABLE)
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
    row = SERVICE.unpack(SERVICE.pack(service_row(service, 9000, TABLE)))
    expected = service_row(make_service(), 1500, TABLE)._replace(**{field: said})
    assert row._replace(node_mtu=1500) == expected
    assert row.node_mtu == 9000
