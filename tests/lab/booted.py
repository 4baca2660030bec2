"""A lab's host as a machine on which systemd is the first process, for what an operator types there.

It has the host's network, and namespaces of its own for all else: files where the documents say, which are
gone with it, units, a journal, cgroups. `booted.sh` makes what it sees of this host.
"""

import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab import Host, LabError, Process
from lab.process import POLL_SECONDS
from tests.lab.sockets import await_that

CHECKOUT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("booted.sh")
SYSTEMD = Path("/lib/systemd/systemd")
BOOT_SECONDS = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = ("HOME=/root", "LANG=C.UTF-8", f"PATH={_PATH}")
_NAMESPACES = ("--mount", "--root", "--pid", "--uts", "--ipc", "--cgroup")


def reason_against() -> str | None:
    """Why systemd cannot be booted on this host, or None."""
    if not SYSTEMD.exists():
        return f"there is no {SYSTEMD}: install the package systemd"
    script = """\
mount -t tmpfs tmpfs "$1"
mkdir "$1/cgroup" "$1/upper" "$1/work" "$1/etc"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" overlay "$1/etc"
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir "$1/cgroup/$2"
rmdir "$1/cgroup/$2"
"""
    unsharing = ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup"]
    with tempfile.TemporaryDirectory() as directory:
        argv = [*unsharing, "sh", "-ec", script, "sh", directory, f"trial-{secrets.token_hex(4)}"]
        trial = subprocess.run(argv, capture_output=True, text=True, timeout=BOOT_SECONDS, check=False)
    return None if trial.returncode == 0 else f"this host boots no systemd: {trial.stderr.strip()}"


class Machine:
    """Of a host in which `boot` has started systemd."""

    def __init__(self, host: Host, init: int) -> None:
        self.name = host.name
        self.host = host
        self._init = init

    def path(self, name: str) -> Path:
        """A file of the machine's, as others see it."""
        return Path(f"/proc/{self._init}/root") / name.lstrip("/")

    def run(self, line: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command line as root types it; its exit code is for the caller to judge."""
        return self.host.run(self._inside(line), timeout=timeout, check=False)

    def do(self, line: str, timeout: float = 60) -> str:
        """The same, what it prints. Raises LabError where it fails."""
        return self.host.run(self._inside(line), timeout=timeout).stdout

    def _inside(self, line: str) -> Sequence[str]:
        entering = ["nsenter", f"--target={self._init}", *_NAMESPACES]
        return [*entering, "env", "--ignore-environment", "--chdir=/", *_ENVIRONMENT, "bash", "-c", line]


@contextmanager
def boot(host: Host) -> Iterator[Machine]:
    """A machine that has come up. It ends as by a power cut: no unit is stopped."""
    directory = host.directory / f"boot-{secrets.token_hex(4)}"
    cgroup = f"{host.namespace}-{directory.name}"
    for part in ("root", "layers", "cgroup"):
        (directory / part).mkdir(parents=True)
    unsharing = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc"]
    booting = [str(SCRIPT), host.name, str(directory), cgroup, str(CHECKOUT)]
    process = host.start([*unsharing, *booting], name="systemd")
    try:
        machine = Machine(host, _first_child(process))
        await_that(lambda: _is_up(process, machine), BOOT_SECONDS)
        yield machine
    finally:
        process.kill()
        _remove_cgroup(directory, cgroup)
        shutil.rmtree(directory)


def _first_child(process: Process) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    await_that(lambda: not process.running or children.read_text() != "")
    if not process.running:
        raise LabError(f"no machine: {process.read_log()}")
    return int(children.read_text().split()[0])


def _is_up(process: Process, machine: Machine) -> bool:
    if not process.running:
        raise LabError(f"systemd does not boot on {machine.name}: {process.read_log()}")
    return machine.run("systemctl is-active --quiet basic.target").returncode == 0


def _remove_cgroup(directory: Path, cgroup: str) -> None:
    """Its processes are all ended, or about to be: with its first process a pid namespace dies. Those that a
    killed run has left go, too.
    """
    script = """\
mount -t cgroup2 cgroup2 "$1/cgroup"
cd "$1/cgroup"
if [ -d "$2" ]; then
    timeout 10 sh -c 'while grep -q "populated 1" "$1/cgroup.events"; do sleep "$2"; done' sh "$2" "$3"
    find "$2" -depth -type d -exec rmdir {} +
fi
for left in *-boot-*; do
    if [ -d "$left" ] && [ ! -e "/run/netns/${left%-boot-*}" ]; then
        find "$left" -depth -type d -exec rmdir {} + || true
    fi
done
"""
    argv = ["unshare", "--mount", "sh", "-ec", script, "sh", str(directory), cgroup, str(POLL_SECONDS)]
    subprocess.run(argv, check=True)
