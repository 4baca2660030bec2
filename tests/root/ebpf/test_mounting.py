"""A daemon's own bpf file system: when it is mounted, and when it goes again."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.bpf.errors import BpfError
from common.bpf.maps import create_array
from common.bpf.mounting import bpf_directory, unmount_if_empty
from common.bpf.pins import PinDirectory, is_bpf_filesystem
from common.bpf.residence import remove_left

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where nothing is yet; nothing stays mounted there."""
    path = tmp_path / "state" / "bpf"
    yield path
    while path.is_mount():
        subprocess.run(["umount", path], check=True, timeout=20)


def pin(directory: Path) -> None:
    pins = PinDirectory(directory)
    pins.create()
    descriptor = create_array("pinned", 4, 1)
    pins.pin("map", descriptor)
    os.close(descriptor)


def mounts(path: Path) -> int:
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8").count(f" {path} ")


def test_file_system_is_there_for_as_long_as_it_is_used(path: Path) -> None:
    with bpf_directory(path) as directory:
        assert directory == path
        assert is_bpf_filesystem(path)
        assert path.stat().st_mode & 0o777 == 0o700
        line = next(
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path} " in line
        )
        assert {"nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
    assert mounts(path) == 0
    assert list(path.iterdir()) == []


def test_file_system_stays_while_pins_are_in_it_and_is_used_again(path: Path) -> None:
    with bpf_directory(path):
        pin(path / "daemon")
    assert mounts(path) == 1
    with bpf_directory(path):
        assert mounts(path) == 1
        assert PinDirectory(path / "daemon").names() == ["map"]
        PinDirectory(path / "daemon").clear()
    assert mounts(path) == 0


def test_pins_of_another_daemon_keep_it(path: Path) -> None:
    with bpf_directory(path):
        pin(path / "one")
        with bpf_directory(path):
            pin(path / "other")
        PinDirectory(path / "one").clear()
    assert PinDirectory(path / "other").names() == ["map"]


def test_who_has_nothing_pinned_yet_loses_it_not_to_one_that_ends(path: Path) -> None:
    with bpf_directory(path):
        directory = os.open(path, os.O_RDONLY)
        with bpf_directory(path):
            pass
        assert mounts(path) == 1, "it is in use"
        os.close(directory)


def test_failure_leaves_nothing_mounted(path: Path) -> None:
    with pytest.raises(BpfError, match="no"), bpf_directory(path):
        raise BpfError("no")
    assert mounts(path) == 0


def test_directory_of_a_bpf_file_system_is_used_as_it_is(path: Path) -> None:
    with bpf_directory(path):
        inside = path / "inside"
        with bpf_directory(inside):
            pass
        assert mounts(path) == 1
        inside.rmdir()
    assert mounts(path) == 0


def test_unmounting_what_is_not_mounted_does_nothing(path: Path) -> None:
    unmount_if_empty(path)
    path.mkdir(parents=True)
    unmount_if_empty(path)


def test_taking_away_what_was_left_takes_the_file_system_too(path: Path) -> None:
    with bpf_directory(path):
        pin(path / "daemon")
    assert remove_left(path / "daemon")
    assert mounts(path) == 0
    assert not remove_left(path / "daemon")


def test_path_that_is_a_file_is_an_error_in_one_line(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    line = f"^cannot make {path} .File exists.: choose another --state-dir$"
    with pytest.raises(BpfError, match=line), bpf_directory(path):
        pass


def test_who_may_not_mount_is_told_in_one_line(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from common.bpf.errors import BpfError;"
        "from common.bpf.mounting import bpf_directory\n"
        "try:\n  bpf_directory(Path(sys.argv[1])).__enter__()\nexcept BpfError as error: print(error)"
    )
    command = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == f"cannot mount a bpf file system at {path}: Operation not permitted\n"
    assert done.stderr == ""
