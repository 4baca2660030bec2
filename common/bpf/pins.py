"""What outlives a daemon: maps and links under names in a directory of a bpf file system."""

import os
from collections.abc import Iterator
from pathlib import Path

from common.bpf import libbpf
from common.bpf.errors import BpfError

DEFAULT_MOUNT = Path("/sys/fs/bpf")
_KINDS = ("map", "link", "prog")


def is_bpf_filesystem(path: Path) -> bool:
    """Whether ``path`` exists within one."""
    try:
        device = path.stat().st_dev
    except OSError:
        return False
    return f"{os.major(device)}:{os.minor(device)}" in _mounted_devices()


class PinDirectory:
    """One daemon's directory. Names are the caller's; they have no dots, which the file system refuses."""

    def __init__(self, path: Path) -> None:
        """Its parent must be there; the directory itself comes with `create`. `BpfError`."""
        if not is_bpf_filesystem(path.parent):
            raise BpfError(
                f"{path.parent} is not in a bpf file system: mount one"
                f" (mount -t bpf bpf {DEFAULT_MOUNT}) or name a directory of another"
            )
        self.path = path

    def create(self) -> None:
        """For its owner only. It may be there already. `BpfError`."""
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise BpfError(f"cannot make the directory {self.path}: {error.strerror}") from error

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path)) if self.path.is_dir() else []

    def pin(self, name: str, descriptor: int) -> None:
        """A map, link or program. `BpfError`, also where the name is taken."""
        result = libbpf.library().bpf_obj_pin(descriptor, os.fsencode(self.path / name))
        if result < 0:
            raise BpfError(f"cannot pin {self.path / name}: {os.strerror(-result)}")

    def get_map(self, name: str) -> int | None:
        """Descriptor, owned by the caller, of a pinned map; None where there is no such name. `BpfError`."""
        return self._get(name, "map")

    def get_link(self, name: str) -> int | None:
        return self._get(name, "link")

    def unpin(self, name: str) -> None:
        """Does nothing where it is not there. `BpfError`."""
        path = self.path / name
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise BpfError(f"{path} is no pin: remove it ({error.strerror})") from error

    def clear(self) -> None:
        """Unpin all and remove the directory. What nobody else holds goes soon after that, not at once.

        `BpfError` where something else than pins is there.
        """
        for name in self.names():
            self.unpin(name)
        if self.path.is_dir():
            self.path.rmdir()

    def _get(self, name: str, kind: str) -> int | None:
        path = self.path / name
        if not path.exists():
            return None
        result: int = libbpf.library().bpf_obj_get(os.fsencode(path))
        if result < 0:
            raise BpfError(f"cannot open the pin {path}: {os.strerror(-result)}")
        found = _kind(result)
        if found != kind:
            os.close(result)
            raise BpfError(f"{path} is a {found}, not a {kind}: remove it")
        return result


def _kind(descriptor: int) -> str:
    fields = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    return next((kind for kind in _KINDS if f"\n{kind}_type:" in fields), "thing of another kind")


def _mounted_devices() -> Iterator[str]:
    """major:minor of the bpf file systems; proc(5), mountinfo."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        own, _, filesystem = line.partition(" - ")
        if filesystem.split()[0] == "bpf":
            yield own.split()[2]
