"""A lab's directory: what belongs to it, whether its owner lives, and how it is removed.

Every lab has a directory under DIRECTORY, made before anything else of it and removed after everything
else. `lab.json` in it names the namespaces. The process that runs the lab holds a lock on the file
`owner`, which the kernel gives up when that process dies, however it dies. So:

    locked                          a living process's lab; left alone
    not locked, "standing": true    `python -m lab up` made it, to stand until `down`
    not locked otherwise            left behind by a run that was killed
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab import state_directory
from lab.errors import LabError

DIRECTORY = Path("/var/lib/l3dsr-lab")
STANDING_PREFIX = "l3dsr"
PREFIX = re.compile(STANDING_PREFIX + r"(-[a-z0-9]+)*")
STATE_FILE = "lab.json"
OWNER_FILE = "owner"
STOP_SECONDS = 15
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A lab of the process's own, locked."""

    path: Path
    namespaces: tuple[str, ...]
    owner_fd: int

    @property
    def prefix(self) -> str:
        return self.path.name

    def remove(self) -> None:
        with _exclusive():
            _remove(self.path, self.namespaces)
        os.close(self.owner_fd)

    def leave_standing(self) -> None:
        """The lab stays when this process ends."""
        _write_state(self.path, self.namespaces, standing=True)
        os.close(self.owner_fd)


@dataclass(frozen=True, slots=True)
class FoundLab:
    path: Path
    namespaces: tuple[str, ...]
    standing: bool
    living: bool

    @property
    def prefix(self) -> str:
        return self.path.name


def create(host_names: Iterable[str], prefix: str | None = None) -> RunDirectory:
    """With a namespace's name `<prefix>-<host>` for each host; none is made here. The prefix is
    `l3dsr-<pid>-<n>` unless given. Raises LabError where a lab of the given prefix is there already.
    """
    if prefix is not None and not PREFIX.fullmatch(prefix):
        raise LabError(f"{prefix!r} is no prefix of a lab")
    with _exclusive():
        path = DIRECTORY / (prefix or _free_prefix())
        try:
            path.mkdir(mode=0o755)
        except FileExistsError:
            raise LabError(f"there is a lab {prefix} already ({path})") from None
        owner_fd = os.open(path / OWNER_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(owner_fd, fcntl.LOCK_EX)
        namespaces = tuple(f"{path.name}-{host}" for host in host_names)
        _write_state(path, namespaces, standing=False)
    return RunDirectory(path, namespaces, owner_fd)


def find() -> list[FoundLab]:
    """All labs of this machine, living ones too."""
    with _exclusive():
        return _find()


def remove(wanted: Callable[[FoundLab], bool]) -> list[str]:
    """Remove the labs that are wanted away, never one of a living process. Returns their prefixes."""
    removed = []
    with _exclusive():
        for found in _find():
            if not found.living and wanted(found):
                _remove(found.path, found.namespaces)
                removed.append(found.prefix)
    return removed


def processes(namespace: str) -> list[int]:
    """The pids in a namespace; none where there is no such namespace."""
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


def _remove(path: Path, namespaces: Iterable[str]) -> None:
    """End every process in the namespaces, then remove them and, last, the directory."""
    present = _existing_namespaces()
    existing = [name for name in namespaces if name in present]
    _end_processes(existing)
    for name in existing:
        done = subprocess.run(["ip", "netns", "delete", name], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"ip netns delete {name}: {done.stderr}")
    state_directory.unmount_below(path)
    if path.exists():  # not where a signal broke off an earlier removal behind this line
        shutil.rmtree(path)


def _find() -> list[FoundLab]:
    return [_read(path) for path in sorted(DIRECTORY.iterdir()) if PREFIX.fullmatch(path.name)]


def _free_prefix() -> str:
    count = 1
    while (DIRECTORY / f"{STANDING_PREFIX}-{os.getpid()}-{count}").exists():
        count += 1
    return f"{STANDING_PREFIX}-{os.getpid()}-{count}"


def _write_state(path: Path, namespaces: Iterable[str], *, standing: bool) -> None:
    (path / STATE_FILE).write_text(json.dumps({"namespaces": list(namespaces), "standing": standing}))


@contextmanager
def _exclusive() -> Iterator[None]:
    """One process at a time makes, looks for and clears labs: between its making and its lock, a lab would
    look abandoned.
    """
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (DIRECTORY / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> FoundLab:
    try:
        state = json.loads((path / STATE_FILE).read_text())
    except (FileNotFoundError, ValueError):  # killed while it was made: no namespace is there yet
        state = {"namespaces": [], "standing": False}
    return FoundLab(path, tuple(state["namespaces"]), bool(state["standing"]), _is_owned(path))


def _is_owned(path: Path) -> bool:
    try:
        with (path / OWNER_FILE).open("r+") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _existing_namespaces() -> set[str]:
    shown = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in shown.splitlines() if line}


def _end_processes(namespaces: list[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _pids(namespaces):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + STOP_SECONDS
        while _pids(namespaces) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    if remaining := _pids(namespaces):
        raise LabError(f"processes {remaining} do not end")


def _pids(namespaces: list[str]) -> list[int]:
    return [pid for name in namespaces for pid in processes(name)]
