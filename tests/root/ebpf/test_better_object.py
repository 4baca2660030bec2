"""Two objects on the same maps, of which one needs more of the kernel: it is taken where it loads."""

import logging
import shutil
from pathlib import Path

import pytest

from common.bpf import objects
from common.bpf.errors import BpfError
from common.bpf.residence import Plan, Residence
from tests.bpf.programs import compiled

pytestmark = pytest.mark.root

ORDINARY, BETTER = "residence", "residence_better"
LOGGER = logging.getLogger("residence")
SIZES = {14, 0}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the installed objects are."""
    monkeypatch.setattr(objects, "_BUILT", tmp_path)
    return tmp_path


@pytest.fixture
def plan(bpffs: Path) -> Plan:
    directory = bpffs / "daemons"
    directory.mkdir()
    return Plan(ORDINARY, b"VIP 1", directory / "daemon", {"flows": 16}, better_object=BETTER)


def install(built: Path, name: str, *defines: str) -> None:
    shutil.copy(compiled("residence", *defines), built / f"{name}.bpf.o")


def test_the_better_object_is_taken_where_it_loads(built: Path, plan: Plan) -> None:
    install(built, ORDINARY, "REFUSED")
    install(built, BETTER)
    made = Residence(plan, LOGGER)
    made.load({"generation": 1}, SIZES)
    made.remove()


def test_the_other_is_taken_where_the_kernel_refuses_it(
    built: Path, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER.name)
    install(built, ORDINARY)
    install(built, BETTER, "REFUSED")
    made = Residence(plan, LOGGER)
    made.load({"generation": 1}, SIZES)
    with pytest.raises(KeyError):
        made.program("refused")
    made.remove()
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.getMessage().startswith(
        f"{ORDINARY} is loaded instead: the eBPF program {BETTER} is refused"
    )


def test_the_other_is_taken_where_it_was_not_built(built: Path, plan: Plan) -> None:
    install(built, ORDINARY)
    made = Residence(plan, LOGGER)
    made.load({"generation": 1}, SIZES)
    made.remove()


def test_nothing_is_left_where_neither_loads(built: Path, plan: Plan) -> None:
    install(built, ORDINARY, "REFUSED")
    install(built, BETTER, "REFUSED")
    made = Residence(plan, LOGGER)
    with pytest.raises(BpfError, match=f"{ORDINARY} is refused"):
        made.load({"generation": 1}, SIZES)
    made.remove()
    assert not plan.pins.exists()


@pytest.mark.parametrize("later", [None, BETTER])
def test_either_takes_over_the_others_maps(built: Path, plan: Plan, later: str | None) -> None:
    install(built, ORDINARY)
    install(built, BETTER)
    earlier = BETTER if later is None else None
    first = Residence(plan._replace(better_object=earlier), LOGGER)
    first.load({"generation": 1}, SIZES)
    first.publish([])
    first.leave()
    second = Residence(plan._replace(better_object=later), LOGGER)
    assert second.is_taken_over
    second.load({"generation": 2}, SIZES)
    second.publish([])
    second.remove()
