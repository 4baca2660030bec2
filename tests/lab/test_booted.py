"""Machines with a systemd of their own: what they share with this host, and what they leave on it."""

from pathlib import Path

import pytest

from lab import Lab, run_directory
from tests.lab.booted import CHECKOUT, boot

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("installation")]


def test_what_a_machine_writes_is_its_own(bare_lab: Lab) -> None:
    written = [
        f"{place}/written" for place in ("/etc", "/opt", "/run", "/tmp", "/usr/local", "/var", CHECKOUT)
    ]
    with boot(bare_lab.balancer) as one, boot(bare_lab.hosts["node1"]) as other:
        one.do(f"touch {' '.join(written)}")
        assert other.run(f"ls {' '.join(written)}").stdout == ""
        assert [path for path in written if Path(path).exists()] == []
        assert [each.do("cat /proc/sys/kernel/hostname").strip() for each in (one, other)] == [
            "balancer",
            "node1",
        ]


def test_a_machine_has_its_hosts_network_and_no_other_sysctls(bare_lab: Lab) -> None:
    with boot(bare_lab.balancer) as machine:
        assert "10.33.0.2" in machine.do("ip address")
        machine.do("sysctl -w net.ipv4.ip_forward=0")
        for path in ("/proc/sys/kernel/hostname", "/proc/sys/vm/swappiness", "/sys/kernel/uevent_seqnum"):
            assert "Read-only file system" in machine.run(f"echo 1 >{path}").stderr


def test_nothing_of_this_hosts_own_units_runs(bare_lab: Lab) -> None:
    with boot(bare_lab.balancer) as machine:
        assert machine.do("systemctl is-system-running").strip() == "running"
        running = machine.do("systemctl list-units --type=service --state=running --no-legend --plain")
        assert [line.split()[0] for line in running.splitlines()] == ["systemd-journald.service"]


def test_a_machine_leaves_neither_processes_nor_files(bare_lab: Lab) -> None:
    host = bare_lab.balancer
    before = host.run(["find", str(host.directory), "-type", "d"]).stdout
    with boot(host) as machine:
        machine.do("setsid sleep 600 >/dev/null 2>&1 &")
    assert run_directory.processes(host.namespace) == []
    assert host.run(["find", str(host.directory), "-type", "d"]).stdout == before
    names = host.run(
        ["unshare", "--mount", "sh", "-c", f"mount -t cgroup2 c {host.directory} && ls {host.directory}"]
    )
    assert host.namespace not in names.stdout
