import pytest

from common.tables import AgingTable, DictTable, Table, TableFullError


def test_first_value_under_a_key_stays_and_whoever_comes_second_gets_it() -> None:
    table: Table[str, int] = DictTable(2)
    assert [table.put_if_absent("a", 1), table.put_if_absent("a", 2), table.get("a")] == [1, 1, 1]


def test_full_table_refuses_a_new_key_and_serves_those_it_has() -> None:
    table: DictTable[str, int] = DictTable(1)
    table.put_if_absent("a", 1)
    with pytest.raises(TableFullError):
        table.put_if_absent("b", 2)
    assert (table.put_if_absent("a", 3), table.get("b"), len(table)) == (1, None, 1)
    table.delete("a")
    assert table.put_if_absent("b", 2) == 2


def test_only_what_exists_is_replaced() -> None:
    table: DictTable[str, int] = DictTable(2)
    with pytest.raises(KeyError):
        table.replace("a", 1)
    table.put_if_absent("a", 1)
    table.replace("a", 2)
    assert (table.get("a"), len(table)) == (2, 1)


def test_deleting_what_is_not_there_does_nothing() -> None:
    table: DictTable[str, int] = DictTable(2)
    table.delete("a")
    aging: AgingTable[str, int] = AgingTable(2, 1.0)
    aging.delete("a")
    assert (len(table), len(aging)) == (0, 0)


def test_entries_leave_in_the_order_in_which_they_came_once_they_are_old_enough() -> None:
    table: AgingTable[str, int] = AgingTable(9, 10.0)
    for number, key in enumerate("cab"):
        assert table.put(key, number, now=float(number))
    assert (table.next_deadline(), table.oldest()) == (10.0, "c")
    assert table.expire(9.9) == []
    assert table.expire(11.0) == [("c", 0), ("a", 1)]
    assert (table.get("a"), table.get("b"), len(table)) == (None, 2, 1)
    assert table.next_deadline() == 12.0


def test_replacing_a_value_does_not_prolong_its_life() -> None:
    table: AgingTable[str, int] = AgingTable(1, 10.0)
    table.put("a", 1, now=0.0)
    assert table.put("a", 2, now=9.0)
    assert table.get("a") == 2
    assert table.expire(10.0) == [("a", 2)]


def test_deleted_key_begins_a_new_life_behind_the_others() -> None:
    table: AgingTable[str, int] = AgingTable(2, 10.0)
    table.put("a", 1, now=0.0)
    table.put("b", 2, now=1.0)
    table.delete("a")
    table.put("a", 3, now=2.0)
    assert table.oldest() == "b"
    assert table.expire(11.0) == [("b", 2)]


def test_full_aging_table_refuses_a_new_key_until_one_expires() -> None:
    table: AgingTable[str, int] = AgingTable(1, 10.0)
    assert table.put("a", 1, now=0.0)
    assert not table.put("b", 2, now=1.0)
    table.expire(10.0)
    assert table.put("b", 2, now=10.0)
    assert (table.get("a"), table.get("b")) == (None, 2)


def test_empty_aging_table_has_no_deadline_and_no_oldest() -> None:
    table: AgingTable[str, int] = AgingTable(1, 10.0)
    assert (table.next_deadline(), table.oldest(), table.expire(1e9)) == (None, None, [])
