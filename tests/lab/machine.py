"""A lab's host as a machine of its own, for what an operator types there.

Its /etc, /usr/local and /run are its own, so that files are where the documents say. Of systemd there is what
the project's units need: ExecStart, ExecReload, the condition and the mount that a unit requires.
"""

import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab import Host, Process
from lab.errors import LabError
from lab.testbed import READY, READY_SECONDS, daemon_program
from tests.lab.sockets import await_that

SETUP = Path(__file__).parents[2] / "setup"
BINDIR = "/usr/local/bin"
PROGRAMS = ("balancer", "packetbridge", "l3dsr")
_OWN_ROOT = """\
set -e
mkdir {directory}/layers
mount -t tmpfs tmpfs {directory}/layers
for place in etc usr/local; do
    mkdir -p {directory}/layers/$place/upper {directory}/layers/$place/work
    layers=lowerdir=/$place,upperdir={directory}/layers/$place/upper,workdir={directory}/layers/$place/work
    mount -t overlay -o $layers overlay /$place
done
mount -t tmpfs tmpfs /run
mkdir -p /etc/l3dsr
mount -t tmpfs -o mode=755 tmpfs /etc/l3dsr
echo made
exec sleep infinity
"""


class Machine:
    def __init__(self, host: Host) -> None:
        self.name = host.name
        self._host = host
        script = _OWN_ROOT.format(directory=host.directory)
        self._init = host.start(["unshare", "--mount", "sh", "-c", script], name="machine")
        self._init.wait_for("made")
        self._services: dict[str, Process] = {}
        self._journal: dict[str, list[Process]] = {}

    def path(self, name: str) -> Path:
        """A file of the machine's, as others see it."""
        return Path(f"/proc/{self._init.pid}/root") / name.lstrip("/")

    def install(self) -> None:
        """What `make install` leaves, with the programs of the Python that runs the lab."""
        for program in PROGRAMS:
            link = self.path(f"{BINDIR}/{program}")
            link.unlink(missing_ok=True)
            link.symlink_to(daemon_program(program))
        self.run(f"{SETUP}/make-key /etc/l3dsr/handoff.key")
        for example in SETUP.glob("examples/*.toml"):
            self.path(f"/etc/l3dsr/{example.name}.example").write_text(example.read_text())

    def uninstall(self) -> None:
        for unit in list(self._services):
            self._stop(unit)
        self.run("umount /run/l3dsr/bpf")
        for program in PROGRAMS:
            self.path(f"{BINDIR}/{program}").unlink()

    def run(self, line: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command line as typed; its exit code is for the caller to judge."""
        return self._host.run(self._inside(["bash", "-c", line]), timeout=timeout, check=False)

    def start(self, line: str) -> Process:
        """The same, in the background."""
        return self._host.start(self._inside(["bash", "-c", f"exec {line}"]), name="typed")

    def systemctl(self, line: str) -> str:
        """A line of `systemctl` or `journalctl`: what it does to the project's units, and what it prints."""
        program, verb, *rest = (word for word in shlex.split(line) if not word.startswith("-"))
        if program == "journalctl":
            return "".join(process.read_log() for process in self._journal[verb])
        actions = {
            "enable": self._start,
            "disable": self._stop,
            "reload": self._reload,
        }
        for unit in rest:
            if verb == "restart":
                self._stop(unit)
                self._start(unit)
            else:
                actions[verb](unit)
        return ""

    def processes(self) -> Iterator[Process]:
        """All daemons that there were."""
        for started in self._journal.values():
            yield from started

    def _start(self, unit: str) -> None:
        if unit in self._services:
            return
        settings = _settings(f"{unit}.service")
        if not self.path(settings["ConditionPathExists"]).exists():
            raise LabError(f"{settings['ConditionPathExists']} is not there, and {unit} would not be started")
        self._mount(settings["Requires"])
        process = self._host.start(self._inside(shlex.split(settings["ExecStart"])), name=unit)
        self._journal.setdefault(unit, []).append(process)
        process.wait_for(READY, READY_SECONDS)
        self._services[unit] = process

    def _stop(self, unit: str) -> None:
        if process := self._services.pop(unit, None):
            process.begin_stop()
            process.wait()

    def _reload(self, unit: str) -> None:
        if "HUP" not in _settings(f"{unit}.service")["ExecReload"]:
            raise LabError(f"{unit} is not reloaded by SIGHUP")
        process = self._services[unit]
        before = process.read_log().count("reloaded")
        process.send_signal(signal.SIGHUP)
        await_that(lambda: process.read_log().count("reloaded") > before)

    def _mount(self, unit: str) -> None:
        settings = _settings(unit)
        place = settings["Where"]
        if self.run(f"mountpoint -q {place}").returncode:
            mounting = f"mount -t {settings['Type']} -o {settings['Options']} {settings['What']} {place}"
            made = self.run(f"mkdir -p {place} && {mounting}")
            if made.returncode:
                raise LabError(f"{unit}: {made.stderr}")

    def _inside(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self._init.pid}", "--mount", "--root", "env", "--chdir=/", *argv]


def _settings(unit: str) -> dict[str, str]:
    """The keys of a unit; of several with one name the last."""
    text = (SETUP / "systemd" / unit).read_text().replace("@bindir@", BINDIR)
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
