"""What of an earlier run is of no use, and starts that fail: nothing is left of either, or all as it was."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.bpf import objects
from common.bpf.attach import Direction
from common.bpf.errors import BpfError
from common.bpf.maps import create_array
from common.bpf.pins import PinDirectory
from common.bpf.residence import Place, Plan, Residence, remove_left
from tests.root.ebpf.residing import (
    ETHERNET,
    LOGGER,
    attached,
    flows,
    is_at,
    noted,
    nothing_is_left,
    ping,
    run,
)
from tests.root.namespaces import Hosts

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("way", "build")]


@pytest.mark.parametrize(
    "other",
    [
        lambda plan: plan._replace(identity=b"VIP 2"),
        lambda plan: plan._replace(max_entries={"flows": 32}),
        lambda plan: plan._replace(max_entries={}),
    ],
    ids=["identity", "size by option", "size by program"],
)
def test_maps_for_another_purpose_are_removed_and_one_line_says_so(
    hosts: Hosts,
    plan: Plan,
    m0: Place,
    build: Callable[..., None],
    other: Callable[[Plan], Plan],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = run(plan, m0)
    flows(first).update(b"flow", b"node")
    first.leave()
    build("FLOWS=64")
    second = Residence(other(plan), LOGGER)
    assert nothing_is_left(hosts, plan)
    assert not second.is_taken_over
    assert second.secret != first.secret
    second.load({}, [ETHERNET])
    second.publish([m0])
    assert flows(second).count() == 0
    second.remove()
    assert caplog.messages == [f"what an earlier run left in {plan.pins} is of another kind: removed"]


def pin_array(plan: Plan, name: str) -> None:
    made = create_array("other", 4, 1)
    PinDirectory(plan.pins).pin(name, made)
    os.close(made)


def put_another_map_as_meta(plan: Plan) -> None:
    (plan.pins / "meta").unlink()
    pin_array(plan, "meta")


def put_a_link_as_map(plan: Plan) -> None:
    (plan.pins / "flows").unlink()
    (plan.pins / "flows").symlink_to("nothing")


DAMAGES: dict[str, Callable[[Plan], None]] = {
    "no meta": lambda plan: (plan.pins / "meta").unlink(),
    "a map is missing": lambda plan: (plan.pins / "flows").unlink(),
    "a map of others": lambda plan: pin_array(plan, "other"),
    "another map as meta": put_another_map_as_meta,
    "a map as link": lambda plan: pin_array(plan, "link_ingress_99"),
    "a broken symbolic link": lambda plan: (plan.pins / "flow").symlink_to("nothing"),
    "a symbolic link as map": put_a_link_as_map,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_pins_are_removed_and_the_start_is_a_fresh_one(
    hosts: Hosts, plan: Plan, m0: Place, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(plan, m0).leave()
    DAMAGES[damage](plan)
    is_harmless = damage == "a map as link"
    made = run(plan, m0, generation=2)
    assert made.is_taken_over == is_harmless
    ping(hosts)
    assert noted(made, m0) == (2, ETHERNET)
    assert len(caplog.messages) == (0 if is_harmless else 1)
    made.remove()
    assert nothing_is_left(hosts, plan)


@contextmanager
def directory_in(plan: Plan) -> Iterator[Path]:
    """Which is not ours to remove."""
    plan.pins.mkdir(exist_ok=True)
    path = plan.pins / "somebody"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


def test_what_is_no_pin_is_an_error_that_names_it(hosts: Hosts, plan: Plan) -> None:
    with directory_in(plan) as path:
        with pytest.raises(BpfError, match=f"{path} is no pin: remove it"):
            Residence(plan, LOGGER)
        with pytest.raises(BpfError, match=f"{path} is no pin: remove it"):
            remove_left(plan.pins)
    remove_left(plan.pins)
    assert nothing_is_left(hosts, plan)


def test_a_pin_in_the_directorys_place_is_an_error_that_names_it(hosts: Hosts, plan: Plan, m0: Place) -> None:
    made = create_array("other", 4, 1)
    PinDirectory(plan.pins).pin("", made)
    os.close(made)
    with pytest.raises(BpfError, match=f"cannot make the directory {plan.pins}: File exists"):
        run(plan, m0)
    assert not remove_left(plan.pins)
    assert attached(hosts) == []
    plan.pins.unlink()


GONE = Place(9999, Direction.INGRESS, "note", ETHERNET)


def test_a_fresh_start_that_fails_leaves_nothing(
    hosts: Hosts, plan: Plan, m0: Place, build: Callable[..., None]
) -> None:
    with pytest.raises(BpfError, match="9999"):
        run(plan, m0, GONE)
    assert nothing_is_left(hosts, plan)
    build("REFUSED")
    made = Residence(plan, LOGGER)
    with pytest.raises(BpfError, match="is refused by the kernel"):
        made.load({}, [ETHERNET])
    made.remove()
    assert nothing_is_left(hosts, plan)


@pytest.mark.parametrize("at_the_end", [Residence.leave, Residence.remove], ids=["leave", "remove"])
def test_a_take_over_that_fails_leaves_at_work_what_it_has_found(
    hosts: Hosts,
    plan: Plan,
    m0: Place,
    m1: Place,
    way: str,
    build: Callable[..., None],
    at_the_end: Callable[[Residence], None],
) -> None:
    first = run(plan, m0, m1)
    flows(first).update(b"flow", b"node")
    first.leave()

    build("REFUSED")
    made = Residence(plan, LOGGER)
    with pytest.raises(BpfError, match="is refused by the kernel"):
        made.load({}, [ETHERNET])
    at_the_end(made)
    assert is_at(hosts, way, "m0", "m1")

    build()
    made = Residence(plan, LOGGER)
    made.load({"generation": 2}, [ETHERNET])
    with pytest.raises(BpfError, match="9999"):
        made.publish([m0, GONE])
    at_the_end(made)
    assert is_at(hosts, way, "m0", "m1")

    last = run(plan, m0, m1, generation=3)
    assert last.is_taken_over
    assert flows(last).lookup(b"flow") == b"node"
    ping(hosts)
    assert noted(last, m0) == (3, ETHERNET)
    last.remove()
    assert nothing_is_left(hosts, plan)


def test_an_object_that_is_not_installed_leaves_at_work_what_it_has_found(
    hosts: Hosts, plan: Plan, m0: Place, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(plan, m0).leave()
    with monkeypatch.context() as patch:
        patch.setattr(objects, "_BUILT", tmp_path)
        with pytest.raises(BpfError, match="this installation has no eBPF program residence"):
            Residence(plan, LOGGER)
    assert is_at(hosts, way, "m0")
    assert remove_left(plan.pins)
    assert nothing_is_left(hosts, plan)
