"""Objects in this kernel: constants, maps that are used again, refusals, runs."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from common.bpf import maps
from common.bpf.errors import BpfError
from common.bpf.maps import ArrayMap, HashMap
from common.bpf.objects import BpfObject
from common.bpf.run import SkBuff, run_packet, run_syscall
from tests.bpf.programs import compiled

pytestmark = pytest.mark.root

PACKET = bytes.fromhex("020000000001 020000000002 0800") + bytes(range(40))
UNSPEC, SHOT = -1, 2


@pytest.fixture
def loaded() -> Iterator[BpfObject]:
    with BpfObject(compiled()) as loaded:
        yield loaded


def test_constants_are_set_by_name_and_the_others_keep_the_values_of_the_source() -> None:
    with BpfObject(compiled(), constants={"prefix": b"\x0a\x0b\x0c\x0d\x0e\x0f", "below_zero": -3}) as loaded:
        done = run_packet(loaded.program("tell"), PACKET)
    assert done.verdict == UNSPEC
    assert done.packet == b"\x0a\x0b\x0c\x0d\x0e\x0f" + PACKET[6:-1]
    assert done.context.mark == 41
    assert done.context.cb[1] == 0xFFFFFFFD


def test_run_is_given_a_context_and_gives_the_programs_back() -> None:
    given = SkBuff(
        mark=1, priority=9, ingress_ifindex=1, cb=(1, 2, 3, 4, 5), wire_len=54, gso_segs=2, gso_size=100
    )
    with BpfObject(compiled(), constants={"answer": 42}) as loaded:
        context = run_packet(loaded.program("tell"), PACKET, given).context
    assert context.mark == 42
    assert context.cb == (1 + 100, 0, 1, 1, 9)
    assert (context.priority, context.ifindex, context.wire_len) == (9, 1, 54)


@pytest.mark.parametrize(
    ("constants", "complaint"),
    [
        ({"question": 1}, "the eBPF program loader has no constant question: build it again"),
        ({"prefix": b"\0\0\0\0"}, "the constant prefix has 6 bytes, not 4"),
        ({"answer": 1 << 32}, "the constant answer has 4 bytes: 4294967296 does not fit"),
    ],
    ids=["unknown", "too short", "too large"],
)
def test_constant_that_the_object_does_not_have_is_refused(
    constants: dict[str, int | bytes], complaint: str
) -> None:
    with pytest.raises(BpfError) as raised:
        BpfObject(compiled(), constants=constants)
    assert str(raised.value) == complaint


def test_variant_has_the_constant_that_its_define_brings() -> None:
    with BpfObject(compiled("loader", "EXTRA_CONSTANT=5"), constants={"extra": 6}):
        pass


def test_program_that_the_verifier_refuses_is_one_line_with_its_reason_and_a_log() -> None:
    with pytest.raises(BpfError) as raised:
        BpfObject(compiled("unbounded"))
    message = str(raised.value)
    assert message.startswith("the eBPF program unbounded is refused by the kernel: prog 'overrun': ")
    assert "\n" not in message
    assert message.endswith("R1 offset is outside of the packet")
    assert len(raised.value.log.splitlines()) > 3


def test_load_without_privileges_is_refused_in_one_line() -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom common.bpf.errors import BpfError\n"
        "from common.bpf.objects import BpfObject\n"
        "source = os.open(sys.argv[1], os.O_RDONLY)\nos.setgid(65534)\nos.setuid(65534)\n"
        "try:\n    BpfObject(Path(f'/proc/self/fd/{source}'))\n"
        "except BpfError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, compiled()], check=True, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.endswith(": eBPF needs root\n")
    assert done.stdout.count("\n") == 1


def test_map_is_made_as_large_as_asked() -> None:
    with BpfObject(compiled(), max_entries={"flows": 1000}) as loaded:
        assert maps.describe(loaded.map("flows")).max_entries == 1000
        assert maps.describe(loaded.map("slots")).max_entries == 65537


def test_declared_maps_are_listed_without_those_of_the_variables(loaded: BpfObject) -> None:
    declared = {"counters", "flows", "generations", "recent", "slots"}
    assert sorted(loaded.map_names()) == sorted(declared)


def test_unknown_program_and_map_are_key_errors(loaded: BpfObject) -> None:
    with pytest.raises(KeyError):
        loaded.program("nothing")
    with pytest.raises(KeyError):
        loaded.map("nothing")
    with pytest.raises(KeyError):
        BpfObject(compiled(), max_entries={"nothing": 1})


def test_map_that_is_used_again_keeps_its_entries_when_its_first_object_is_closed() -> None:
    first = BpfObject(compiled())
    HashMap(first.map("flows")).update(b"flow0001", b"node")
    with BpfObject(compiled(), reuse={"flows": first.map("flows")}) as second:
        first.close()
        assert HashMap(second.map("flows")).lookup(b"flow0001") == b"node"
        assert HashMap(second.map("recent")).count() == 0


@pytest.mark.parametrize(
    ("stand_in", "complaint"),
    [
        ("recent", "the map flows cannot be used again: its type is 9, not 1"),
        ("flows", "the map flows cannot be used again: its max_entries is 4, not 8"),
    ],
)
def test_map_of_another_making_is_not_used_again(loaded: BpfObject, stand_in: str, complaint: str) -> None:
    with pytest.raises(BpfError) as raised:
        BpfObject(compiled(), max_entries={"flows": 8}, reuse={"flows": loaded.map(stand_in)})
    assert str(raised.value) == complaint


def test_syscall_program_runs_and_changes_what_it_was_given(loaded: BpfObject) -> None:
    mark = loaded.program("mark")
    assert run_syscall(mark, b"\x05\0\0\0\0\0\0\0") == (0, b"\x05\0\0\0\x06\0\0\0")
    assert run_syscall(mark, b"\xff\xff\xff\0\0\0\0\0") == (1, b"\xff\xff\xff\0\0\0\0\0")
    slots = ArrayMap(loaded.map("slots"))
    assert [slots.lookup(at) for at in (4, 5, 6)] == [b"\0\0", b"\xff\xff", b"\0\0"]


def test_run_that_the_kernel_refuses_is_an_error(loaded: BpfObject) -> None:
    with pytest.raises(BpfError, match="does not run the eBPF program: Invalid argument"):
        run_packet(loaded.program("drop"), b"too short")
    assert run_packet(loaded.program("drop"), PACKET).verdict == SHOT


def test_closed_object_leaves_no_descriptor() -> None:
    def open_descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    BpfObject(compiled()).close()  # whatever libbpf keeps for itself
    before = open_descriptors()
    loaded = BpfObject(compiled())
    loaded.close()
    loaded.close()
    with pytest.raises(BpfError):
        BpfObject(compiled("unbounded"))
    assert open_descriptors() == before
