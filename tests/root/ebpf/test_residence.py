"""Programs and maps that stay in the kernel from one run to the next, or do not."""

import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

import pytest

from common.bpf import objects
from common.bpf.attach import ClsactFilter, Direction, Hook, TcxLink
from common.bpf.objects import BpfObject
from common.bpf.pins import PinDirectory
from common.bpf.residence import SECRET_SIZE, Place, Plan, Residence, handle_of, identity, remove_left
from tests.bpf.programs import compiled
from tests.root.ebpf.residing import (
    ETHERNET,
    LOGGER,
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
from tests.root.namespaces import CLIENT, MIDDLE, Hosts

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("way", "build")]

PORT = 9000


def test_a_fresh_start_puts_programs_to_work_and_pins_everything(
    hosts: Hosts, plan: Plan, m0: Place, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = run(plan, m0)
    ping(hosts)
    assert not made.is_taken_over
    assert noted(made, m0) == (1, ETHERNET)
    links = [f"link_ingress_{m0.ifindex}"] if way == "tcx" else []
    assert sorted(path.name for path in plan.pins.iterdir()) == sorted(["flows", "meta", "seen", *links])
    assert plan.pins.stat().st_mode & 0o777 == 0o700
    assert is_at(hosts, way, "m0")
    made.remove()
    assert nothing_is_left(hosts, plan)
    assert caplog.messages == []


def test_a_take_over_finds_maps_and_secret_and_puts_new_programs_in_the_old_ones_places(
    hosts: Hosts, plan: Plan, m0: Place, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(plan, m0)
    flows(first).update(b"flow", b"node")
    first.leave()
    ping(hosts)
    assert is_at(hosts, way, "m0"), "it goes on"

    second = run(plan, m0, generation=2)
    assert second.is_taken_over
    assert second.secret == first.secret
    assert flows(second).lookup(b"flow") == b"node"
    ping(hosts)
    assert noted(second, m0) == (2, ETHERNET)
    assert is_at(hosts, way, "m0")
    second.remove()
    assert nothing_is_left(hosts, plan)
    assert caplog.messages == []


def test_a_secret_is_of_one_set_of_maps(plan: Plan, m0: Place) -> None:
    secrets = []
    for _ in range(2):
        made = run(plan, m0)
        secrets.append(made.secret)
        made.remove()
    assert [len(each) for each in secrets] == [SECRET_SIZE] * 2
    assert secrets[0] != secrets[1]


def test_a_take_over_lets_no_packet_past(hosts: Hosts, plan: Plan) -> None:
    """All generations drop; a packet that met none of them would arrive."""
    guarded = place("m0", "drop")
    run(plan, guarded).leave()
    stop = threading.Event()
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with hosts.client.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind((str(MIDDLE), PORT))
        receiver.setblocking(False)
        sender.bind((str(CLIENT), PORT))

        def send() -> None:
            while not stop.is_set():
                sender.sendto(b"datagram", (str(MIDDLE), PORT))

        sending = threading.Thread(target=send)
        sending.start()
        try:
            for generation in range(2, 6):
                run(plan, guarded, generation=generation).leave()
        finally:
            stop.set()
            sending.join()
        with pytest.raises(BlockingIOError):
            receiver.recv(100)
    last = run(plan, guarded)
    last.remove()
    assert nothing_is_left(hosts, plan)


def test_a_take_over_goes_to_new_interfaces_and_away_from_those_that_are_not_wanted(
    hosts: Hosts, plan: Plan, m0: Place, m1: Place, way: str
) -> None:
    run(plan, m0).leave()
    second = run(plan, m1, generation=2)
    assert is_at(hosts, way, "m1")
    ping_behind(hosts)
    assert noted(second, m1) == (2, ETHERNET)
    second.leave()
    third = run(plan, m0, m1, generation=3)
    assert is_at(hosts, way, "m0", "m1")
    if way == "tcx":
        assert len([path for path in plan.pins.iterdir() if path.name.startswith("link")]) == 2
    third.remove()
    assert nothing_is_left(hosts, plan)


def test_programs_for_two_link_headers_share_maps(hosts: Hosts, plan: Plan, m0: Place, m1: Place) -> None:
    for generation in (1, 2):
        made = run(plan, m0, m1._replace(link_header_size=NONE), generation=generation)
        ping(hosts)
        ping_behind(hosts)
        assert noted(made, m0) == (generation, ETHERNET)
        assert noted(made, m1) == (generation, NONE)
        made.leave()
    remove_left(plan.pins)
    assert nothing_is_left(hosts, plan)


def test_the_better_object_is_taken_where_the_kernel_takes_it(
    hosts: Hosts, plan: Plan, m0: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both use the same maps, so each may take over from the other."""
    monkeypatch.setattr(objects, "_BUILT", tmp_path)
    shutil.copy(compiled("residence"), tmp_path / "residence.bpf.o")
    for generation, defines in enumerate((["REFUSED"], [], ["REFUSED"]), 1):
        shutil.copy(compiled("residence", *defines), tmp_path / "better.bpf.o")
        made = run(plan._replace(better_object="better"), m0, generation=generation)
        assert made.is_taken_over == (generation > 1)
        with suppress(KeyError):
            made.program("refused")
            pytest.fail("this object was to be refused")
        ping(hosts)
        assert noted(made, m0) == (generation, ETHERNET)
        made.leave()
    assert remove_left(plan.pins)
    assert nothing_is_left(hosts, plan)


def test_leaving_and_removing_are_said_once_and_the_first_word_counts(
    hosts: Hosts, plan: Plan, m0: Place, way: str
) -> None:
    made = run(plan, m0)
    for end in (made.leave, made.leave, made.remove):
        end()
        assert is_at(hosts, way, "m0")
    made = run(plan, m0)
    for end in (made.remove, made.remove, made.leave):
        end()
        assert nothing_is_left(hosts, plan)


def test_what_a_killed_daemon_left_is_removed_for_another_data_plane(
    hosts: Hosts, plan: Plan, m0: Place, m1: Place
) -> None:
    assert not remove_left(plan.pins)
    run(plan, m0, m1).leave()
    assert remove_left(plan.pins)
    assert not remove_left(plan.pins)
    assert nothing_is_left(hosts, plan)


def test_programs_that_have_lost_their_pins_are_removed_too(hosts: Hosts, plan: Plan, m0: Place) -> None:
    run(plan, m0).leave()
    PinDirectory(plan.pins).clear()
    remove_left(plan.pins)
    assert "clsact" not in hosts.middle.run("tc qdisc show")


def test_two_daemons_of_one_kind_do_not_touch_each_other(hosts: Hosts, plan: Plan, m0: Place) -> None:
    other_plan = plan._replace(pins=plan.pins.with_name("other"))
    assert handle_of(plan.pins) != handle_of(other_plan.pins)
    one, other = run(plan, m0), run(other_plan, m0, generation=7)
    ping(hosts)
    assert noted(one, m0) == (1, ETHERNET)
    assert noted(other, m0) == (7, ETHERNET)
    other.leave()
    forget(one, m0)
    remove_left(other_plan.pins)
    ping(hosts)
    assert noted(one, m0) == (1, ETHERNET)
    one.remove()
    assert nothing_is_left(hosts, plan)


def test_filters_of_others_stay(hosts: Hosts, plan: Plan, m0: Place) -> None:
    with BpfObject(compiled("residence")) as others:
        ours = handle_of(plan.pins)
        theirs = ClsactFilter.create(Hook(m0.ifindex, Direction.INGRESS), others.program("note"), ours ^ 1)
        run(plan, m0).remove()
        assert attached(hosts) == ["m0 clsact/ingress"]
        theirs.close()
    assert nothing_is_left(hosts, plan)


def test_an_interface_that_has_gone_meanwhile_is_no_obstacle(hosts: Hosts, plan: Plan, m0: Place) -> None:
    subprocess.run(["ip", "link", "add", "gone0", "type", "veth", "peer", "gone1"], check=True, timeout=20)
    run(plan, m0, place("gone0")).leave()
    subprocess.run(["ip", "link", "delete", "gone0"], check=True, timeout=20)
    second = run(plan, m0, generation=2)
    assert second.is_taken_over
    assert f"link_ingress_{m0.ifindex + 1}" not in [path.name for path in plan.pins.iterdir()]
    second.remove()
    assert nothing_is_left(hosts, plan)


def test_memory_is_that_of_all_maps_once(plan: Plan) -> None:
    sizes = []
    for entries, headers in ((16, [ETHERNET]), (4096, [ETHERNET]), (4096, [ETHERNET, NONE])):
        made = Residence(plan._replace(max_entries={"flows": entries}), LOGGER)
        made.load({}, headers)
        sizes.append(made.memory_bytes())
        made.remove()
    assert sizes[1] > sizes[0] + 4080 * 8
    assert sizes[2] == sizes[1]


class Colour(IntEnum):
    RED = 0


class OtherColour(IntEnum):
    GREEN = 0


def test_identity_tells_purposes_apart_and_what_numbers_mean() -> None:
    same = identity("VIP", 1, layouts=(), numbers=(Colour,))
    assert identity("VIP", 1, layouts=(), numbers=(Colour,)) == same
    assert identity("VIP", 2, layouts=(), numbers=(Colour,)) != same
    assert identity("VIP", 1, layouts=(), numbers=(OtherColour,)) != same


def test_link_of_tcx_is_pinned_under_the_name_of_its_hook(
    hosts: Hosts, plan: Plan, m0: Place, way: str
) -> None:
    egress = m0._replace(direction=Direction.EGRESS)
    made = run(plan, m0, egress)
    if way == "tcx":
        pins = PinDirectory(plan.pins)
        for each in (m0, egress):
            descriptor = pins.get_link(f"link_{each.direction.name.lower()}_{each.ifindex}")
            assert descriptor is not None
            link = TcxLink.adopt(descriptor)
            assert link is not None
            assert link.hook == Hook(each.ifindex, each.direction)
            link.leave()
    assert attached(hosts) == [f"m0 {way}/egress", f"m0 {way}/ingress"]
    made.remove()
    assert nothing_is_left(hosts, plan)
