"""What somebody else takes away from programs at work comes back, and interfaces may come and go."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.bpf import libbpf
from common.bpf.attach import Direction
from common.bpf.pins import PinDirectory
from common.bpf.residence import Place, Plan, Residence
from tests.root.ebpf.residing import (
    ETHERNET,
    NONE,
    attached,
    flows,
    forget,
    is_at,
    noted,
    nothing_is_left,
    ping,
    ping_behind,
    place,
    run,
)
from tests.root.namespaces import Hosts

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("way", "build")]


@contextmanager
def running(plan: Plan, *places: Place) -> Iterator[Residence]:
    made = run(plan, *places)
    try:
        yield made
    finally:
        made.remove()


def both_ways(at: Place) -> list[Place]:
    return [at, at._replace(direction=Direction.EGRESS)]


def take_away(hosts: Hosts, plan: Plan, at: Place, way: str) -> None:
    """What is at ingress of m0, as tc and bpftool do it."""
    if way == "clsact":
        hosts.middle.run("tc filter del dev m0 ingress")
        return
    link = PinDirectory(plan.pins).get_link(f"link_ingress_{at.ifindex}")
    assert link is not None
    libbpf.check(libbpf.library().bpf_link_detach(link))
    os.close(link)


def test_nothing_is_done_and_said_where_all_is_well(hosts: Hosts, plan: Plan, m0: Place, way: str) -> None:
    with running(plan, m0) as made:
        before = sorted(path.name for path in plan.pins.iterdir())
        assert [made.tend([m0]) for _ in range(2)] == [[], []]
        assert is_at(hosts, way, "m0")
        assert sorted(path.name for path in plan.pins.iterdir()) == before


def test_a_program_that_was_detached_is_back(hosts: Hosts, plan: Plan, m0: Place, way: str) -> None:
    with running(plan, m0) as made:
        take_away(hosts, plan, m0, way)
        ping(hosts)
        assert noted(made, m0) is None
        assert made.tend([m0]) == ["somebody has removed our program at ingress of m0: it is back"]
        ping(hosts)
        assert noted(made, m0) == (1, ETHERNET)
        assert made.tend([m0]) == []
        made.leave()
        assert is_at(hosts, way, "m0"), "it is pinned again"
        run(plan, m0, generation=2).remove()
    assert nothing_is_left(hosts, plan)


@pytest.mark.parametrize("way", ["clsact"], indirect=True)  # links have no qdisc
@pytest.mark.usefixtures("way")
def test_a_qdisc_that_was_deleted_is_back_with_all_its_filters(hosts: Hosts, plan: Plan, m0: Place) -> None:
    with running(plan, *both_ways(m0)) as made:
        hosts.middle.run("tc qdisc del dev m0 clsact")
        assert len(made.tend(both_ways(m0))) == 2
        assert attached(hosts) == ["m0 clsact/egress", "m0 clsact/ingress"]
    assert nothing_is_left(hosts, plan)


def test_a_filter_that_is_back_takes_its_qdisc_along_when_it_ends(
    hosts: Hosts, plan: Plan, m0: Place, way: str
) -> None:
    with running(plan, m0) as made:
        take_away(hosts, plan, m0, way)
        made.tend([m0])
    assert nothing_is_left(hosts, plan)


@pytest.mark.parametrize("lost", ["a map", "meta", "all", "file system"])
def test_pins_that_were_removed_are_back(hosts: Hosts, plan: Plan, m0: Place, bpffs: Path, lost: str) -> None:
    with running(plan, m0) as made:
        flows(made).update(b"flow", b"node")
        before = sorted(path.name for path in plan.pins.iterdir())
        if lost == "file system":
            subprocess.run(["umount", bpffs], check=True, timeout=20)
            subprocess.run(["mount", "-t", "bpf", "bpf", bpffs], check=True, timeout=20)
            plan.pins.parent.mkdir()
        elif lost == "all":
            shutil.rmtree(plan.pins)
        else:
            (plan.pins / {"a map": "flows"}.get(lost, lost)).unlink()
        assert made.tend([m0]) == [f"somebody has removed pins from {plan.pins}: they are back"]
        assert sorted(path.name for path in plan.pins.iterdir()) == before
        made.leave()
        second = run(plan, m0, generation=2)
        assert second.is_taken_over
        assert flows(second).lookup(b"flow") == b"node"
        assert second.secret == made.secret
        second.remove()
    assert nothing_is_left(hosts, plan)


def test_a_file_system_that_was_unmounted_is_mounted_again(hosts: Hosts, plan: Plan, m0: Place) -> None:
    own = plan.pins.parent.parent.parent / "own"
    own.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", own], check=True, timeout=20)
    plan = plan._replace(pins=own / "daemon")
    with running(plan, m0) as made:
        subprocess.run(["umount", own], check=True, timeout=20)
        assert len(made.tend([m0])) == 1
        assert own.is_mount()
        assert (plan.pins / "meta").exists()
    subprocess.run(["umount", own], check=True, timeout=20)
    assert nothing_is_left(hosts, plan)


def test_an_interface_that_comes_later_gets_programs_of_its_link_header(
    hosts: Hosts, plan: Plan, m0: Place, m1: Place, way: str
) -> None:
    late = m1._replace(link_header_size=NONE)
    with running(plan, m0) as made:
        assert made.tend([m0, late]) == ["programs are at ingress of m1 from now on"]
        ping(hosts)
        ping_behind(hosts)
        assert noted(made, m0) == (1, ETHERNET)
        assert noted(made, late) == (1, NONE)
        assert is_at(hosts, way, "m0", "m1")
        made.leave()
        assert is_at(hosts, way, "m0", "m1")
        run(plan, m0, m1, generation=2).remove()
    assert nothing_is_left(hosts, plan)


def test_an_interface_keeps_its_programs_while_it_is_down(
    hosts: Hosts, plan: Plan, m0: Place, m1: Place, way: str
) -> None:
    with running(plan, m0, m1) as made:
        hosts.middle.run("ip link set m1 down")
        assert made.tend([m0]) == []
        hosts.middle.run("ip link set m1 up")
        ping_behind(hosts)
        assert noted(made, m1) == (1, ETHERNET)
        assert is_at(hosts, way, "m0", "m1")


def make_again(same_index: bool) -> None:
    subprocess.run(["ip", "link", "delete", "gone0"], check=True, timeout=20)
    number = ["index", "907"] if same_index else []
    subprocess.run(
        ["ip", "link", "add", "gone0", *number, "type", "veth", "peer", "gone1"], check=True, timeout=20
    )


@pytest.mark.parametrize("same_index", [False, True], ids=["another index", "same index"])
def test_an_interface_that_was_deleted_and_made_again_is_served_again(
    hosts: Hosts, plan: Plan, m0: Place, same_index: bool
) -> None:
    add = ["ip", "link", "add", "gone0", "index", "907", "type", "veth", "peer", "gone1"]
    subprocess.run(add, check=True, timeout=20)
    before = place("gone0")
    with running(plan, m0, *both_ways(before)) as made:
        pins = len(list(plan.pins.iterdir()))
        make_again(same_index)
        now = place("gone0")
        said = made.tend([m0, *both_ways(now)])
        hooks = ["ingress of gone0", "egress of gone0"]
        if same_index:
            assert said == [f"somebody has removed our program at {hook}: it is back" for hook in hooks]
        else:
            assert said == [
                f"interface {before.ifindex} has gone",
                *[f"programs are at {hook} from now on" for hook in hooks],
            ]
        assert made.tend([m0, *both_ways(now)]) == []
        assert len(list(plan.pins.iterdir())) == pins
    assert nothing_is_left(hosts, plan)


def test_what_the_kernel_refuses_is_said_once_and_the_others_are_served(
    hosts: Hosts, plan: Plan, m0: Place, way: str
) -> None:
    gone = m0._replace(ifindex=90_000)
    with running(plan, m0) as made:
        take_away(hosts, plan, m0, way)
        back, refused = made.tend([gone, m0])
        assert back.endswith("it is back")
        assert "interface 90000: No such device" in refused
        assert made.tend([gone, m0]) == []
        assert is_at(hosts, way, "m0")


def test_a_set_of_programs_that_is_refused_leaves_the_others_at_work(
    hosts: Hosts, plan: Plan, m0: Place, m1: Place, way: str, build: Callable[..., None]
) -> None:
    with running(plan, m0) as made:
        build("REFUSED")
        take_away(hosts, plan, m0, way)
        said = made.tend([m0, m1._replace(link_header_size=NONE)])
        assert is_at(hosts, way, "m0")
        assert len(said) == 2
        forget(made, m0)
        ping(hosts)
        assert noted(made, m0) == (1, ETHERNET)
        assert len(made.tend([m0, m1._replace(link_header_size=NONE)])) == 0
    assert nothing_is_left(hosts, plan)
