"""Daemons under a service manager: what they tell it, what they may do, and how they are replaced."""

import json
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from common.control_client import NotRunningError, ask_once
from lab import Host, Lab, Process
from tests.lab.configured import outcomes
from tests.lab.fetch import curl
from tests.lab.observed import daemon_of, tun_of
from tests.lab.sockets import PATIENCE_SECONDS, await_that
from tests.lab.supervised import WATCHDOG_SECONDS, Manager, environment, start_again
from tests.lab.traffic import traffic
from tests.lab.wellbeing import assert_all_is_well

pytestmark = pytest.mark.root

DAEMONS = {"balancer": "balancer", "node1": "packetbridge"}
each_role = pytest.mark.parametrize("role", list(DAEMONS))
NET_ADMIN, NET_RAW, SYS_ADMIN, PERFMON, BPF = (1 << number for number in (12, 13, 21, 38, 39))
WORKING = NET_ADMIN | NET_RAW | PERFMON | BPF


@pytest.fixture
def replaced(running_lab: Lab, role: str) -> Iterator[Host]:
    """The host of a role, without its daemon. The lab's own is back afterwards."""
    host = running_lab.hosts[role]
    daemon_of(host).stop()
    yield host
    for process in host.processes:
        if process.running and Path(process.argv[4]).name == DAEMONS[role]:
            process.stop()
    start_again(running_lab, role)


# --- the notification protocol


@each_role
@pytest.mark.usefixtures("replaced")
def test_a_manager_is_told_ready_reloading_and_stopping(running_lab: Lab, role: str) -> None:
    """Ready means that requests are served."""
    with Manager() as manager:
        with environment(manager.environment):
            daemon = start_again(running_lab, role)
        manager.hear_until("READY=1", PATIENCE_SECONDS)
        assert_all_is_well(running_lab)
        daemon.send_signal(signal.SIGHUP)
        reloading = manager.hear_until("RELOADING=1", PATIENCE_SECONDS)
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]+", reloading)
        manager.hear_until("READY=1", PATIENCE_SECONDS)
        assert len(outcomes(daemon)) == 1
        assert daemon.stop() == 0
        manager.hear_until("STOPPING=1", PATIENCE_SECONDS)
        assert {message.partition("=")[0] for message in manager.said} == {
            "READY",
            "RELOADING",
            "STOPPING",
            "WATCHDOG",
        }


@each_role
@pytest.mark.usefixtures("replaced")
def test_a_daemon_whose_loop_stands_still_gives_no_sign_of_life(running_lab: Lab, role: str) -> None:
    with Manager() as manager:
        with environment(manager.environment):
            daemon = start_again(running_lab, role)
        for _ in range(4):
            manager.hear_until("WATCHDOG=1", WATCHDOG_SECONDS)
        daemon.send_signal(signal.SIGSTOP)
        while manager.hear(0.0) is not None:
            pass
        assert manager.hear(WATCHDOG_SECONDS) is None
        daemon.send_signal(signal.SIGCONT)
        manager.hear_until("WATCHDOG=1", WATCHDOG_SECONDS)


@each_role
def test_restarted_by_a_supervisor_a_daemon_whose_tun_is_deleted_serves_again(
    running_lab: Lab, role: str
) -> None:
    host = running_lab.hosts[role]
    daemon, tun = daemon_of(host), tun_of(host)
    host.run(["ip", "link", "delete", tun])
    assert daemon.wait() == 2
    assert daemon.read_log().splitlines()[-1] == (
        f"{DAEMONS[role]}: device {tun} has been deleted: start the daemon again"
    )
    start_again(running_lab, role)
    assert_all_is_well(running_lab)


# --- privileges


def status_of_threads(daemon: Process) -> list[dict[str, str]]:
    """Of /proc/PID/task/TID/status, proc(5)."""
    tasks = Path(f"/proc/{daemon.pid}/task").iterdir()
    pairs = [[line.split(":\t", 1) for line in (task / "status").read_text().splitlines()] for task in tasks]
    return [
        {key: value.strip() for key, value, *_ in (pair for pair in each if len(pair) == 2)} for each in pairs
    ]


@each_role
def test_a_running_daemon_has_no_more_than_its_four_capabilities(
    running_lab: Lab, role: str, engine: str
) -> None:
    """In any thread. The one to unmount with is in reserve where there is something to unmount."""
    allowed = WORKING | (SYS_ADMIN if engine == "ebpf" else 0)
    for thread in status_of_threads(daemon_of(running_lab.hosts[role])):
        assert int(thread["CapEff"], 16) == WORKING
        assert int(thread["CapPrm"], 16) == allowed
        assert int(thread["CapBnd"], 16) == allowed
        assert int(thread["CapInh"], 16) == 0
        assert int(thread["CapAmb"], 16) == 0
        assert thread["NoNewPrivs"] == "1"


# --- what others may


@each_role
def test_the_control_socket_is_for_root_and_the_group(running_lab: Lab, replaced: Host, role: str) -> None:
    path = replaced.state_directory / f"{DAEMONS[role]}.sock"
    daemon = start_again(running_lab, role, "--control-group=nogroup")
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), path.owner(), path.group()) == (0o660, "root", "nogroup")
    assert daemon.stop() == 0
    assert not path.exists()


@each_role
def test_metrics_are_on_the_loopback_interface_alone(running_lab: Lab, role: str) -> None:
    host = running_lab.hosts[role]
    port = {"balancer": 9713, "node1": 9714}[role]
    shown = host.run(["ss", "-Htln", "sport", "=", f":{port}"]).stdout
    assert [line.split()[3] for line in shown.splitlines()] == [f"127.0.0.1:{port}"]
    assert "\n# HELP " in curl(host, f"http://127.0.0.1:{port}/metrics")


# --- a log that cannot be written


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def start_with_log(host: Host, argv: list[str], log: Path, control: Path) -> Process:
    """Returns once it answers at its control socket."""
    daemon = host.start(["sh", "-c", f'exec "$@" 2>>{log}', "sh", *argv], name="unlogged")

    def answers() -> bool:
        try:
            return ask_once(control, "status") is not None
        except NotRunningError:
            return False

    await_that(answers)
    return daemon


@each_role
def test_a_full_disk_for_the_log_disturbs_nothing(running_lab: Lab, role: str, small_disk: Path) -> None:
    """What is said meanwhile is lost; once there is room again, lines are whole."""
    host, name = running_lab.hosts[role], DAEMONS[role]
    control, log, filling = host.state_directory / f"{name}.sock", small_disk / "log", small_disk / "filling"
    argv = daemon_of(host).argv[4:]
    daemon_of(host).stop()
    with filling.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    daemon = start_with_log(host, argv, log, control)
    try:
        with traffic(running_lab) as going:
            for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR1):
                daemon.send_signal(number)
            running_lab.tool(host, "reload")
            assert json.loads(running_lab.tool(host, "status", "--json").stdout)["generation"] == 3
            assert log.read_text() == ""
            going.must_go_on()
            filling.unlink()
            daemon.send_signal(signal.SIGUSR1)
            await_that(lambda: re.fullmatch(f".* {name} INFO: counters: .*\n", log.read_text()) is not None)
        assert going.failures() == []
    finally:
        daemon.stop()
        start_again(running_lab, role)


@each_role
def test_a_log_that_refuses_every_line_disturbs_nothing(running_lab: Lab, role: str) -> None:
    host, name = running_lab.hosts[role], DAEMONS[role]
    argv = daemon_of(host).argv[4:]
    daemon_of(host).stop()
    daemon = start_with_log(host, argv, Path("/dev/full"), host.state_directory / f"{name}.sock")
    try:
        with traffic(running_lab) as going:
            daemon.send_signal(signal.SIGUSR1)
            running_lab.tool(host, "reload")
            going.must_go_on()
        assert going.failures() == []
        assert daemon.stop() == 0
    finally:
        daemon.stop()
        start_again(running_lab, role)
