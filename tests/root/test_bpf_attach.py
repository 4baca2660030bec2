"""Programs at the hooks of real interfaces, by TCX links and by clsact filters, and what is left of them.

A packet's way tells which programs are there: `count` lets it pass on, `drop` does not.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from common.bpf.attach import Attachment, ClsactFilter, Direction, Hook, TcxLink, attach, supports_tcx
from common.bpf.errors import BpfError
from common.bpf.maps import HashMap, PerCpuArray
from common.bpf.objects import BpfObject
from common.bpf.pins import PinDirectory, is_bpf_filesystem
from tests.bpf.killed import HANDLE
from tests.bpf.programs import compiled
from tests.root.namespaces import CLIENT, MIDDLE, Hosts, three_hosts

pytestmark = pytest.mark.root

PORT = 9000
ROOT = Path(__file__).resolve().parents[2]
WAYS = ["tcx", "clsact"]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        yield hosts


@pytest.fixture
def ifindex(hosts: Hosts) -> Iterator[int]:
    """Of m0 in the middle, where the test runs; nothing of it is left there afterwards."""
    with hosts.middle.entered():
        index = socket.if_nametoindex("m0")
        yield index
        assert footprint(hosts) == ("", True)


@pytest.fixture
def loaded() -> Iterator[BpfObject]:
    with BpfObject(compiled()) as loaded:
        yield loaded


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "bpf", "bpf", tmp_path], check=True, timeout=20)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True, timeout=20)


@pytest.fixture
def tcx() -> None:
    if not supports_tcx():
        pytest.skip("this kernel has no TCX links")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "tcx":
        request.getfixturevalue("tcx")
    return str(request.param)


def footprint(hosts: Hosts) -> tuple[str, bool]:
    """The clsact qdisc and its filters at m0, and whether packets come through."""
    shown = [hosts.middle.run(f"tc filter show dev m0 {way}") for way in ("ingress", "egress")]
    qdiscs = [line for line in hosts.middle.run("tc qdisc show dev m0").splitlines() if "clsact" in line]
    return "".join([*qdiscs, *shown]).strip(), comes_through(hosts)


def is_stopped(hosts: Hosts) -> bool:
    return not comes_through(hosts, patience=0.3)


def comes_through(hosts: Hosts, patience: float = 5) -> bool:
    """Whether a datagram from the client reaches the middle within ``patience`` seconds."""
    with hosts.middle.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with hosts.client.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind((str(MIDDLE), PORT))
        receiver.settimeout(patience)
        sender.bind((str(CLIENT), PORT))
        sender.sendto(b"datagram", (str(MIDDLE), PORT))
        try:
            return receiver.recv(100) == b"datagram"
        except TimeoutError:
            return False


def counted(loaded: BpfObject) -> int:
    return PerCpuArray(loaded.map("counters")).sums(1)[0]


def attach_by(way: str, hook: Hook, program: int, handle: int = HANDLE) -> Attachment:
    return attach(hook, program, handle, tcx=way == "tcx")


@contextmanager
def clsact_of_others(hosts: Hosts) -> Iterator[None]:
    hosts.middle.run("tc qdisc add dev m0 clsact")
    try:
        yield
    finally:
        hosts.middle.run("tc qdisc del dev m0 clsact")


def add_filter_of_others(hosts: Hosts) -> None:
    hosts.middle.run("tc filter add dev m0 egress prio 1 protocol ip u32 match u32 0 0 flowid 1:1")


@contextmanager
def vanishing_interface(hosts: Hosts) -> Iterator[int]:
    """The index of one that is deleted when the block ends."""
    hosts.middle.run("ip link add gone0 type veth peer name gone1")
    try:
        yield socket.if_nametoindex("gone0")
    finally:
        hosts.middle.run("ip link delete gone0")


@contextmanager
def killed_daemon(*arguments: str | Path) -> Iterator[None]:
    """tests.bpf.killed, started in this thread's namespace; killed by SIGKILL when the block ends."""
    command = [sys.executable, "-m", "tests.bpf.killed", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "attached\n"
            yield
        finally:
            daemon.kill()


@pytest.mark.parametrize("direction", Direction)
def test_program_runs_from_attach_to_close(
    hosts: Hosts, ifindex: int, loaded: BpfObject, way: str, direction: Direction
) -> None:
    attached = attach_by(way, Hook(ifindex, direction), loaded.program("count"))
    assert comes_through(hosts)
    if direction is Direction.EGRESS:
        hosts.middle.run(f"ping -c 1 -W 5 {CLIENT}")
    seen = counted(loaded)
    assert seen > 0
    attached.close()
    attached.close()
    hosts.middle.run(f"ping -c 1 -W 5 {CLIENT}")
    assert counted(loaded) == seen


def test_program_is_replaced_in_its_place(hosts: Hosts, ifindex: int, loaded: BpfObject, way: str) -> None:
    attached = attach_by(way, Hook(ifindex, Direction.INGRESS), loaded.program("count"))
    assert comes_through(hosts)
    attached.replace(loaded.program("drop"))
    seen = counted(loaded)
    assert is_stopped(hosts)
    assert counted(loaded) == seen
    attached.close()


def test_replacement_lets_no_packet_past(hosts: Hosts, ifindex: int, loaded: BpfObject, way: str) -> None:
    """Both programs drop; a packet that saw neither would arrive."""
    with BpfObject(compiled()) as other:
        programs = [loaded.program("drop"), other.program("drop")]
        attached = attach_by(way, Hook(ifindex, Direction.INGRESS), programs[0])
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with hosts.client.entered():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with receiver, sender:
            receiver.bind((str(MIDDLE), PORT))
            for at in range(500):
                sender.sendto(b"datagram", (str(MIDDLE), PORT))
                attached.replace(programs[at % 2])
                sender.sendto(b"datagram", (str(MIDDLE), PORT))
            receiver.settimeout(0.2)
            with pytest.raises(TimeoutError):
                receiver.recv(100)
        attached.close()


def test_both_directions_of_an_interface_stand_beside_each_other(
    hosts: Hosts, ifindex: int, loaded: BpfObject, way: str
) -> None:
    both = [
        attach_by(way, Hook(ifindex, Direction.INGRESS), loaded.program("drop")),
        attach_by(way, Hook(ifindex, Direction.EGRESS), loaded.program("count")),
    ]
    assert is_stopped(hosts)
    both.pop().close()
    assert is_stopped(hosts)
    both.pop().close()


def test_programs_of_two_daemons_stand_at_one_hook(
    hosts: Hosts, ifindex: int, loaded: BpfObject, way: str
) -> None:
    hook = Hook(ifindex, Direction.INGRESS)
    with BpfObject(compiled()) as other:
        one = attach_by(way, hook, loaded.program("count"), handle=1)
        two = attach_by(way, hook, other.program("count"), handle=2)
        assert comes_through(hosts)
        assert counted(loaded) > 0
        assert counted(other) > 0
        two.close()
        seen = counted(loaded), counted(other)
        assert comes_through(hosts)
        assert counted(loaded) > seen[0]
        assert counted(other) == seen[1]
        one.close()


def test_filters_of_others_are_left_alone(hosts: Hosts, ifindex: int, loaded: BpfObject, way: str) -> None:
    with clsact_of_others(hosts):
        add_filter_of_others(hosts)
        before = footprint(hosts)
        attach_by(way, Hook(ifindex, Direction.INGRESS), loaded.program("drop")).close()
        assert footprint(hosts) == before


def test_filter_that_came_meanwhile_keeps_the_qdisc(hosts: Hosts, ifindex: int, loaded: BpfObject) -> None:
    attached = attach_by("clsact", Hook(ifindex, Direction.INGRESS), loaded.program("count"))
    add_filter_of_others(hosts)
    attached.close()
    assert "u32" in footprint(hosts)[0]
    hosts.middle.run("tc qdisc del dev m0 clsact")


def test_qdisc_of_others_stays_even_when_it_is_empty(hosts: Hosts, ifindex: int, loaded: BpfObject) -> None:
    with clsact_of_others(hosts):
        attach_by("clsact", Hook(ifindex, Direction.INGRESS), loaded.program("drop")).close()
        assert footprint(hosts)[0].startswith("qdisc clsact")


def test_filter_of_another_program_in_our_place_is_not_replaced(
    hosts: Hosts, ifindex: int, loaded: BpfObject
) -> None:
    hook = Hook(ifindex, Direction.INGRESS)
    attached = attach_by("clsact", hook, loaded.program("count"))
    with pytest.raises(BpfError, match="has a filter count of another program at priority 19507, handle 1"):
        attach_by("clsact", hook, loaded.program("drop"))
    assert comes_through(hosts)
    attached.close()


def test_missing_interface_is_an_error(loaded: BpfObject, way: str) -> None:
    with pytest.raises(BpfError, match="interface 9999: No such device"):
        attach_by(way, Hook(9999, Direction.INGRESS), loaded.program("count"))


def test_close_after_the_interface_has_gone_does_nothing(hosts: Hosts, loaded: BpfObject, way: str) -> None:
    with hosts.middle.entered():
        with vanishing_interface(hosts) as gone:
            attached = attach_by(way, Hook(gone, Direction.INGRESS), loaded.program("count"))
        attached.close()


@pytest.mark.usefixtures("tcx")
def test_killed_daemon_leaves_no_link(hosts: Hosts, ifindex: int) -> None:
    with killed_daemon(compiled(), str(ifindex), "tcx"):
        assert is_stopped(hosts)


def test_filter_of_a_killed_daemon_is_found_and_replaced(
    hosts: Hosts, ifindex: int, loaded: BpfObject
) -> None:
    with killed_daemon(compiled(), str(ifindex), "clsact"):
        pass
    assert is_stopped(hosts), "it goes on"
    attached = attach_by("clsact", Hook(ifindex, Direction.INGRESS), loaded.program("drop"))
    with IPRoute() as netlink:
        filters = [each for each in netlink.get_filters(index=ifindex, parent=0xFFFFFFF2) if each["handle"]]
    assert len(filters) == 1
    attached.close()


def test_filter_of_a_killed_daemon_can_be_taken_away(ifindex: int) -> None:
    hook = Hook(ifindex, Direction.INGRESS)
    assert ClsactFilter.find(hook, HANDLE) is None
    with killed_daemon(compiled(), str(ifindex), "clsact"):
        pass
    left = ClsactFilter.find(hook, HANDLE)
    assert left is not None
    left.close()


@pytest.mark.usefixtures("tcx")
def test_pinned_link_and_map_of_a_killed_daemon_go_on_and_are_taken_over(
    hosts: Hosts, ifindex: int, bpffs: Path
) -> None:
    pins = PinDirectory(bpffs / "daemon")
    with killed_daemon(compiled(), str(ifindex), "tcx", pins.path):
        descriptor = pins.get_map("flows")
        assert descriptor is not None
        HashMap(descriptor).update(b"flow0001", b"node")
        os.close(descriptor)
    assert is_stopped(hosts), "it goes on"

    assert pins.names() == ["flows", "link"]
    link, flows = pins.get_link("link"), pins.get_map("flows")
    assert link is not None
    assert flows is not None
    with BpfObject(compiled(), reuse={"flows": flows}) as second:
        os.close(flows)
        assert HashMap(second.map("flows")).lookup(b"flow0001") == b"node"
        adopted = TcxLink.adopt(link)
        assert adopted is not None
        assert adopted.hook == Hook(ifindex, Direction.INGRESS)
        adopted.replace(second.program("count"))
        assert comes_through(hosts)
        assert counted(second) > 0
        adopted.close()
    pins.clear()
    assert not pins.path.exists()


@pytest.mark.usefixtures("tcx")
def test_pinned_link_that_is_left_goes_on_and_ends_with_its_pin(
    hosts: Hosts, ifindex: int, loaded: BpfObject, bpffs: Path
) -> None:
    pins = PinDirectory(bpffs / "daemon")
    pins.create()
    attached = TcxLink.create(Hook(ifindex, Direction.INGRESS), loaded.program("drop"))
    pins.pin("link", attached.descriptor)
    attached.leave()
    attached.close()
    assert is_stopped(hosts)
    pins.clear()
    assert any(comes_through(hosts, patience=0.3) for _ in range(60)), "the kernel takes its time"


def test_filter_that_is_left_goes_on(hosts: Hosts, ifindex: int, loaded: BpfObject) -> None:
    hook = Hook(ifindex, Direction.INGRESS)
    attached = attach_by("clsact", hook, loaded.program("drop"))
    attached.leave()
    attached.close()
    assert is_stopped(hosts)
    left = ClsactFilter.find(hook, HANDLE)
    assert left is not None
    left.close()


@pytest.mark.usefixtures("tcx")
def test_pinned_link_of_a_vanished_interface_is_not_adopted(
    hosts: Hosts, loaded: BpfObject, bpffs: Path
) -> None:
    pins = PinDirectory(bpffs / "daemon")
    pins.create()
    with hosts.middle.entered(), vanishing_interface(hosts) as gone:
        attached = TcxLink.create(Hook(gone, Direction.INGRESS), loaded.program("count"))
        pins.pin("link", attached.descriptor)
        attached.leave()
    link = pins.get_link("link")
    assert link is not None
    assert TcxLink.adopt(link) is None
    pins.clear()


def test_pins_tell_their_kind_and_what_is_wrong(loaded: BpfObject, bpffs: Path, tmp_path: Path) -> None:
    pins = PinDirectory(bpffs / "daemon")
    assert pins.names() == []
    pins.clear()
    pins.create()
    pins.create()
    assert pins.get_map("flows") is None
    pins.pin("flows", loaded.map("flows"))
    with pytest.raises(BpfError, match=r"cannot pin .*/daemon/flows: File exists"):
        pins.pin("flows", loaded.map("recent"))
    with pytest.raises(BpfError, match="daemon/flows is a map, not a link: remove it"):
        pins.get_link("flows")
    pins.unpin("flows")
    pins.unpin("flows")
    pins.clear()
    assert is_bpf_filesystem(tmp_path)


def test_directory_outside_of_a_bpf_file_system_is_refused(tmp_path: Path) -> None:
    assert not is_bpf_filesystem(tmp_path / "nothing")
    with pytest.raises(BpfError, match="is not in a bpf file system: mount one"):
        PinDirectory(tmp_path / "daemon")


def test_failure_half_way_leaves_nothing(hosts: Hosts, ifindex: int, bpffs: Path, way: str) -> None:
    pins = PinDirectory(bpffs / "daemon")

    def start() -> None:
        with ExitStack() as steps:
            steps.callback(pins.clear)
            pins.create()
            staged = steps.enter_context(closing(BpfObject(compiled())))
            pins.pin("flows", staged.map("flows"))
            steps.enter_context(
                closing(attach_by(way, Hook(ifindex, Direction.INGRESS), staged.program("drop")))
            )
            assert is_stopped(hosts)
            steps.enter_context(
                closing(attach_by(way, Hook(9999, Direction.INGRESS), staged.program("drop")))
            )

    with pytest.raises(BpfError, match="9999"):
        start()
    assert footprint(hosts) == ("", True)
    assert not pins.path.exists()


def test_success_keeps_everything_until_it_is_closed(
    hosts: Hosts, ifindex: int, loaded: BpfObject, way: str
) -> None:
    with ExitStack() as steps:
        steps.enter_context(closing(attach_by(way, Hook(ifindex, Direction.INGRESS), loaded.program("drop"))))
        kept = steps.pop_all()
    assert is_stopped(hosts)
    kept.close()
    assert comes_through(hosts)
