"""The packetbridge's journal: what it writes, the next one reads."""

import logging
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from common.net.errors import HostError
from common.wire.rewrite import Splice
from packetbridge.core import record
from packetbridge.core.flow import Origin
from packetbridge.core.record import Ended, FlowRecord, Opened
from packetbridge.journal import SLOT_SIZE, Journal, path_of

LOGGER = logging.getLogger("packetbridge")
SMALLEST_PAGE = 4096


def a_flow(client_port: int, seq_delta: int = 1000) -> FlowRecord:
    return FlowRecord(
        vip_index=1,
        vip=bytes((192, 168, 33, 10)),
        vip_port=80,
        key=bytes((192, 168, 33, 30, 198, 51, 100, 10)) + b"\x00\x50" + client_port.to_bytes(2, "big"),
        origin=Origin(client_isn=1, balancer_isn=2, time=3),
        splice=Splice(seq_delta, 4, 0, 0),
        floor=None,
    )


ONE, TWO, THREE = a_flow(40001), a_flow(40002), a_flow(40003)


def read_by_the_next(path: Path) -> list[FlowRecord]:
    journal = Journal(path, LOGGER)
    found = journal.read()
    journal.close()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return path_of(tmp_path / "state", IPv4Address("192.168.33.20"))


@pytest.fixture
def journal(path: Path) -> Journal:
    return Journal(path, LOGGER)


def test_flows_that_were_open_are_read_by_the_next(path: Path, journal: Journal) -> None:
    assert journal.read() == []
    journal.note([Opened(ONE), Opened(TWO), Opened(THREE), Ended(TWO.key)])
    journal.close()
    assert read_by_the_next(path) == [ONE, THREE]
    assert read_by_the_next(path) == [ONE, THREE]


def test_what_is_written_survives_a_writer_that_never_closes(path: Path, journal: Journal) -> None:
    journal.note([Opened(ONE)])
    assert path.read_bytes()[: record.SIZE] == record.pack(ONE)


def test_nobody_else_may_read_it(path: Path, journal: Journal) -> None:
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    journal.close()


def test_a_flow_that_changed_takes_the_place_of_what_it_was(path: Path, journal: Journal) -> None:
    changed = a_flow(40001, seq_delta=2000)
    journal.note([Opened(ONE), Opened(TWO), Opened(changed)])
    journal.close()
    assert read_by_the_next(path) == [changed, TWO]


def test_the_slots_of_ended_flows_are_used_again(path: Path, journal: Journal) -> None:
    for port in range(1, 1001):
        journal.note([Opened(a_flow(port)), Ended(a_flow(port).key)])
    journal.note([Opened(ONE), Opened(TWO)])
    journal.close()
    assert path.stat().st_size == 2 * SLOT_SIZE


def test_the_slots_that_an_earlier_run_freed_are_used_again(path: Path, journal: Journal) -> None:
    journal.note([Opened(ONE), Opened(TWO), Ended(ONE.key)])
    journal.close()
    second = Journal(path, LOGGER)
    assert second.read() == [TWO]
    second.note([Opened(THREE)])
    second.erase(TWO.key)
    second.close()
    assert path.stat().st_size == 2 * SLOT_SIZE
    assert read_by_the_next(path) == [THREE]


def test_what_is_noted_before_it_is_read_costs_no_flow_of_the_last_run(path: Path, journal: Journal) -> None:
    journal.note([Opened(ONE), Opened(TWO)])
    journal.close()
    second = Journal(path, LOGGER)
    second.note([Opened(THREE)])
    assert second.read() == second.read() == [ONE, TWO, THREE]
    second.erase(ONE.key)
    second.note([Opened(a_flow(40004)), Opened(a_flow(40005))])
    second.close()
    assert path.stat().st_size == 4 * SLOT_SIZE


def test_a_journal_that_is_cleared_is_empty_and_goes_on(path: Path, journal: Journal) -> None:
    journal.note([Opened(ONE), Opened(TWO), Ended(ONE.key)])
    journal.clear()
    assert journal.read() == []
    journal.note([Opened(THREE), Opened(ONE)])
    journal.close()
    assert read_by_the_next(path) == [THREE, ONE]


def test_the_end_of_an_unknown_flow_changes_nothing(path: Path, journal: Journal) -> None:
    journal.note([Opened(ONE), Ended(TWO.key)])
    journal.close()
    assert read_by_the_next(path) == [ONE]


def test_a_damaged_slot_costs_its_flow_only(path: Path, journal: Journal) -> None:
    journal.note([Opened(ONE), Opened(TWO), Opened(THREE)])
    journal.close()
    data = bytearray(path.read_bytes())
    data[SLOT_SIZE : SLOT_SIZE + 8] = b"\xff" * 8
    path.write_bytes(data + b"cut off")
    damaged = Journal(path, LOGGER)
    assert damaged.read() == [ONE, THREE]
    damaged.note([Opened(TWO)])
    damaged.close()
    assert read_by_the_next(path) == [ONE, TWO, THREE]


def test_no_slot_lies_across_two_pages() -> None:
    assert record.SIZE <= SLOT_SIZE
    assert SMALLEST_PAGE % SLOT_SIZE == 0


def test_a_file_in_use_is_refused(path: Path, journal: Journal) -> None:
    with pytest.raises(HostError, match="is in use by another packetbridge: choose another --state-dir"):
        Journal(path, LOGGER)
    journal.close()
    Journal(path, LOGGER).close()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"cannot write .*: Not a directory; choose another"):
        Journal(tmp_path / "file" / "state" / "x", LOGGER)


def test_a_full_disk_is_said_once_and_costs_no_flow(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(Path("/dev/full"), LOGGER)
    journal.note([Opened(ONE), Opened(TWO)])
    journal.close()
    assert journal.failures == 2
    assert caplog.messages == [
        "cannot write /dev/full (No space left on device): flows may not survive a restart"
    ]
