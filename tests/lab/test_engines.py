"""Which engine a daemon takes, and that each works with the other."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bpf import build
from lab import Host, Lab, Process
from lab.demo import engine_of
from lab.testbed import daemon_program
from tests.lab.conversation import VIP
from tests.lab.fetch import md5_of_download, md5_of_echo
from tests.lab.footprint import footprint, pins, programs
from tests.lab.instead import balancer_with
from tests.lab.observed import daemon_of
from tests.lab.wellbeing import assert_all_is_well

pytestmark = pytest.mark.root

LIBRARY = "libbpf.so.1"
OTHER = {"raw": "ebpf", "ebpf": "raw"}
either = pytest.mark.parametrize("program", ["balancer", "packetbridge"])


def library_path() -> str:
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    return next(line.split()[-1] for line in known.splitlines() if line.split()[:1] == [LIBRARY])


def with_mount(*mount: str) -> list[str]:
    """What stands before a command line, for mounts of its own with this one among them."""
    return ["unshare", "--mount", "sh", "-c", f'mount {" ".join(mount)} && exec "$@"', "sh"]


OBSTACLES: dict[str, Callable[[], list[str]]] = {
    "privileges": lambda: ["setpriv", "--bounding-set=-bpf,-sys_admin"],
    "library": lambda: with_mount("--bind", "/dev/null", library_path()),
    "programs": lambda: with_mount("-t", "tmpfs", "none", str(build.BUILT)),
}
REASONS = {
    "privileges": "Operation not permitted",
    "library": f"cannot load {LIBRARY}: install the package libbpf1",
    "programs": "install the packages clang libbpf-dev linux-libc-dev, then install l3dsr again",
}
each_obstacle = pytest.mark.parametrize("what", REASONS)


def host_of(lab: Lab, program: str) -> Host:
    return lab.balancer if program == "balancer" else lab.nodes[0]


def command(lab: Lab, program: str, engine: str, tmp_path: Path) -> list[str]:
    """The daemons' defaults are the lab's balancer, with node1 only, and node1's packetbridge."""
    options = [f"--key-file={lab.key_file}", f"--state-dir={tmp_path}", f"--engine={engine}"]
    options += ["--config=/dev/null", "--log-format=human"]
    return [str(daemon_program(program)), *options]


def lines_of_start(daemon: Process) -> tuple[str, str]:
    """The first line of the log, which says the engine and why, and the engine that it is ready with."""
    log = daemon.read_log()
    return log.splitlines()[0], engine_of(log)


@each_obstacle
@either
def test_auto_is_raw_where_ebpf_cannot_be_used_and_says_why(
    running_lab: Lab, program: str, what: str, tmp_path: Path
) -> None:
    host = host_of(running_lab, program)
    daemon_of(host).stop()
    before = footprint(host)
    daemon = host.start([*OBSTACLES[what](), *command(running_lab, program, "auto", tmp_path)], name="auto")
    try:
        daemon.wait_for("ready")
        chosen, engine = lines_of_start(daemon)
        assert f"{program} INFO: engine raw, because engine ebpf cannot be used: " in chosen
        assert chosen.endswith(REASONS[what])
        assert engine == "raw"
        assert md5_of_download(running_lab.client, f"{VIP}/1m") == running_lab.content.md5("1m")
    finally:
        assert daemon.stop() == 0
        assert footprint(host) == before
        start_again(running_lab, program)


def start_again(lab: Lab, program: str, *options: str) -> Process:
    if program == "balancer":
        return lab.start_balancer(*options)
    return lab.start_packetbridge("node1", *options)


@each_obstacle
@either
def test_ebpf_is_refused_where_it_cannot_be_used(
    bare_lab: Lab, program: str, what: str, tmp_path: Path
) -> None:
    host = host_of(bare_lab, program)
    before = footprint(host)
    done = host.run([*OBSTACLES[what](), *command(bare_lab, program, "ebpf", tmp_path)], check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"{program}: ")
    assert done.stderr.endswith(REASONS[what] + "\n")
    assert footprint(host) == before


@either
def test_auto_is_ebpf_where_its_programs_load_and_says_so(
    bare_lab: Lab, program: str, tmp_path: Path
) -> None:
    daemon = host_of(bare_lab, program).start(command(bare_lab, program, "auto", tmp_path), name="auto")
    try:
        daemon.wait_for("ready")
        chosen, engine = lines_of_start(daemon)
        assert chosen.endswith(f"{program} INFO: engine ebpf, because its programs load here")
        assert engine == "ebpf"
    finally:
        assert daemon.stop() == 0


def test_a_balancer_on_one_engine_works_with_packetbridges_on_the_other(
    running_lab: Lab, engine: str
) -> None:
    with balancer_with(running_lab, f"--engine={OTHER[engine]}"):
        assert md5_of_download(running_lab.client, f"{VIP}/1m") == running_lab.content.md5("1m")
        assert md5_of_echo(running_lab.client, running_lab.content.path("1m")) == running_lab.content.md5(
            "1m"
        )
        assert_all_is_well(running_lab)


@either
def test_a_daemon_takes_the_place_of_a_killed_one_on_the_other_engine(
    running_lab: Lab, program: str, engine: str
) -> None:
    """And leaves nothing of it."""
    host = host_of(running_lab, program)
    assert daemon_of(host).stop() == 0
    before = footprint(host)
    start_again(running_lab, program).kill()
    successor = start_again(running_lab, program, f"--engine={OTHER[engine]}")
    try:
        assert_all_is_well(running_lab)
        assert md5_of_download(running_lab.client, f"{VIP}/1m") == running_lab.content.md5("1m")
        if engine == "ebpf":
            assert (programs(host), pins(host)) == ([], [])
            assert "programs of an earlier run are removed" in successor.read_log()
    finally:
        assert successor.stop() == 0
        left = footprint(host)
        start_again(running_lab, program)
    assert left == before
