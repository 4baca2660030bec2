"""Maps of an earlier run that are read although they cannot be used any more."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.bpf import objects
from common.bpf.maps import HashMap, create_array
from common.bpf.pins import PinDirectory
from common.bpf.residence import Plan, Residence, maps_left, remove_left
from tests.bpf.programs import compiled

pytestmark = pytest.mark.root

LOGGER = logging.getLogger("residence")
LAYOUT = b"layout 1"


@pytest.fixture
def plan(bpffs: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """With an object of the tests' own, of which one run has left its maps; `flows` has one entry."""
    monkeypatch.setattr(objects, "_BUILT", compiled("residence").parent)
    (bpffs / "daemons").mkdir()
    plan = Plan("residence", b"VIP 1", bpffs / "daemons" / "daemon", {"flows": 16}, layout=LAYOUT)
    run = Residence(plan, LOGGER)
    run.load({"generation": 1}, [14])
    flows = HashMap(run.map("flows"))
    flows.update(bytes(flows.info.key_size), bytes(flows.info.value_size))
    run.publish([])
    run.leave()
    return plan


@pytest.fixture
def left(plan: Plan) -> Iterator[dict[str, int]]:
    found = maps_left(plan.pins, LAYOUT, ["flows", "seen"])
    yield found
    for descriptor in found.values():
        os.close(descriptor)


def test_maps_of_the_same_layout_can_be_read_after_they_were_removed(
    plan: Plan, left: dict[str, int]
) -> None:
    assert left.keys() == {"flows", "seen"}
    assert remove_left(plan.pins)
    assert HashMap(left["flows"]).count() == 1


def test_maps_made_for_another_purpose_can_be_read_and_not_used(plan: Plan, left: dict[str, int]) -> None:
    made = Residence(plan._replace(identity=b"VIP 2"), LOGGER)
    assert not made.is_taken_over
    assert HashMap(left["flows"]).count() == 1


def test_maps_of_another_layout_are_neither_read_nor_used(plan: Plan) -> None:
    assert maps_left(plan.pins, b"layout 2", ["flows"]) == {}
    assert not Residence(plan._replace(layout=b"layout 2"), LOGGER).is_taken_over


@pytest.mark.parametrize("name", ["flows", "meta"])
def test_where_a_map_is_missing_none_is_read(plan: Plan, name: str) -> None:
    (plan.pins / name).unlink()
    before = os.listdir("/proc/self/fd")
    assert maps_left(plan.pins, LAYOUT, ["seen", "flows"]) == {}
    assert os.listdir("/proc/self/fd") == before


def test_where_another_map_stands_for_the_digests_none_is_read(plan: Plan) -> None:
    (plan.pins / "meta").unlink()
    descriptor = create_array("other", 8, 1)
    PinDirectory(plan.pins).pin("meta", descriptor)
    os.close(descriptor)
    assert maps_left(plan.pins, LAYOUT, ["flows"]) == {}


def test_where_there_was_no_run_none_is_read(bpffs: Path, tmp_path: Path) -> None:
    assert maps_left(bpffs / "nobody", LAYOUT, ["flows"]) == {}
    assert maps_left(tmp_path / "elsewhere" / "nobody", LAYOUT, ["flows"]) == {}
