"""Where a host's daemons keep what outlives them, with a bpf file system for pins.

`ip netns exec` gives each program mounts of its own, so what a daemon mounts ends with it. The lab mounts
beforehand, outside of all namespaces: what is pinned there stays until the lab is removed.
"""

import subprocess
from pathlib import Path

from lab.errors import LabError

PINS = "bpf"
_MOUNT_POINT = 4


def make(directory: Path) -> None:
    """It may be there already. Where no bpf file system can be mounted, a daemon that needs one says so."""
    pins = directory / PINS
    if not pins.is_dir():
        directory.mkdir(mode=0o700, exist_ok=True)
        pins.mkdir(mode=0o700)
    if not mounts_below(pins):
        subprocess.run(["mount", "-t", "bpf", "bpf", pins], capture_output=True, check=False)


def unmount_below(directory: Path) -> None:
    """Nothing that is pinned there lives on. Raises LabError where somebody still uses it."""
    for mount_point in mounts_below(directory):
        done = subprocess.run(["umount", mount_point], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"umount {mount_point}: {done.stderr}")


def mounts_below(directory: Path) -> list[Path]:
    """Mount points, the last one first; ``directory`` itself may be one. proc(5), mountinfo."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    found = [Path(line.split()[_MOUNT_POINT]) for line in lines]
    return [point for point in reversed(found) if point.is_relative_to(directory)]
