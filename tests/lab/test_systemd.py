"""The balancer and a node as `make install` leaves them, under a systemd of each one's own.

A system call that the units filter out ends the daemon here, so that none goes unnoticed.
"""

import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.config import EBPF
from common.release import RELEASE
from lab import Lab
from tests.lab import booted, checked
from tests.lab.booted import Machine, boot
from tests.lab.configured import bridge, vip
from tests.lab.conftest import check_for_bugs
from tests.lab.conversation import VIP, Client, converse, request
from tests.lab.footprint import programs
from tests.lab.installation import Installation
from tests.lab.observed import node_of
from tests.lab.sockets import ask, await_that, connection
from tests.lab.traffic import traffic

pytestmark = pytest.mark.root

UNITS = {"balancer": "balancer", "node1": "packetbridge"}
each_role = pytest.mark.parametrize("role", list(UNITS))
with_kept_flows = pytest.mark.engine("ebpf", reason="the raw data plane ends with its process")
REQUESTS = 20
USUAL_BURST = 5
"""DefaultStartLimitBurst of systemd."""
NEWER_RELEASE = f"{RELEASE}.1"
TAKEN_OVER = "the flows of an earlier run are carried on"
WORKING = "000000c000003000"
"""CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON and CAP_BPF: 12, 13, 38 and 39."""
CONFINED = {
    **{name: {WORKING} for name in ("CapEff", "CapPrm", "CapBnd")},
    **{name: {"0" * 16} for name in ("CapInh", "CapAmb")},
    "NoNewPrivs": {"1"},
    "Seccomp": {"2"},
}
"""Of proc(5), status."""
HEALTH = {"interval": 1, "timeout": 1, "fall": 3}
STRICTER = """\
[Service]
SystemCallErrorNumber=
RestartSec=100ms
"""
WATCHED = """\
[Service]
WatchdogSec=3
"""


@dataclass
class Site:
    """node2 and node3 have packetbridges of the lab's own."""

    lab: Lab
    machines: dict[str, Machine]

    def unit(self, role: str) -> "Unit":
        return Unit(self.machines[role], UNITS[role])

    def requests_are_answered(self) -> bool:
        clients = [Client((request(f"/well/{number}"),)) for number in range(REQUESTS)]
        answers = converse(self.lab.client, clients)
        return {answer.error for answer in answers} == {""} and {answer.node for answer in answers} == {
            node.name for node in self.lab.topology.nodes
        }


@dataclass
class Unit:
    machine: Machine
    name: str

    def systemctl(self, verb: str) -> None:
        """LabError where it fails."""
        self.machine.do(f"systemctl {verb} {self.name}", timeout=120)

    def shows(self, name: str) -> str:
        return self.machine.do(f"systemctl show --property={name} --value {self.name}").strip()

    @property
    def active(self) -> bool:
        return self.shows("ActiveState") == "active"

    def restarted_after(self, before: int) -> bool:
        return self.active and int(self.shows("NRestarts")) > before

    def journal(self) -> str:
        return self.machine.do(f"journalctl --no-pager --output=cat --unit={self.name}")

    def release(self) -> str:
        """Of the daemon that runs."""
        return self.machine.do("l3dsr status").split()[1].rstrip(",")

    @contextmanager
    def dropped_in(self, name: str, text: str) -> Iterator[None]:
        """With a drop-in, meanwhile. It is heeded from the next start on."""
        path = self.machine.path(f"/etc/systemd/system/{self.name}.service.d") / f"{name}.conf"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        try:
            self.machine.do("systemctl daemon-reload")
            yield
        finally:
            path.unlink()
            self.machine.do("systemctl daemon-reload")

    def configuration(self) -> Path:
        return self.machine.path(f"/etc/l3dsr/{self.name}.toml")


@pytest.fixture(scope="module")
def site(engine: str, installation: Installation) -> Iterator[Site]:
    """Both units are started and not enabled."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(engine=engine))
        balancer, node = (stack.enter_context(boot(lab.hosts[role])) for role in UNITS)
        found = Site(lab, {"balancer": balancer, "node1": node})
        service, node1 = lab.topology.service, lab.topology.node("node1")
        mapped = vip(f"{service.vip}:{service.port}", service.dscp, f"{node1.backend}:{service.port}")
        files = {"balancer": checked.configuration(lab, health=HEALTH), "node1": bridge(lab, "node1", mapped)}
        for role, machine in found.machines.items():
            installation.install(machine)
            machine.path("/etc/l3dsr/handoff.key").write_text(lab.key_file.read_text())
            unit = found.unit(role)
            unit.configuration().write_text(f'engine = "{engine}"\n{files[role]}')
            stack.enter_context(unit.dropped_in("stricter", STRICTER))
        for name in ("node2", "node3"):
            lab.start_packetbridge(name)
        for role in ("node1", "balancer"):
            found.unit(role).systemctl("start")
        yield found
        for role in UNITS:
            said = found.unit(role).journal()
            assert "Traceback" not in said
            assert "status=31/SYS" not in said
        check_for_bugs(lab)


def answering(lab: Lab, target: str) -> str:
    """The name of the node, empty where nobody answers soon."""
    argv = ["curl", "-sS", "--max-time", "1", "-o", "/dev/null", "-w", "%header{X-Node}", VIP + target]
    return lab.client.run(argv, check=False).stdout


def target_of(lab: Lab, node: str) -> str:
    """One that the node answers."""
    return next(target for number in range(99) if node_of(lab, target := f"/own/{number}") == node)


@each_role
def test_a_unit_is_started_when_the_daemon_is_ready(site: Site, role: str, engine: str) -> None:
    unit = site.unit(role)
    assert [unit.shows(name) for name in ("Type", "ActiveState", "SubState")] == [
        "notify",
        "active",
        "running",
    ]
    assert re.search(rf'"event": "ready: .*engine {engine}"', unit.journal())
    await_that(site.requests_are_answered)


# --- what the daemon may


@each_role
def test_every_thread_of_the_daemon_is_confined(site: Site, role: str) -> None:
    unit = site.unit(role)
    lines = unit.machine.do(f"cat /proc/{unit.shows('MainPID')}/task/*/status")
    found = {name: set(re.findall(rf"^{name}:\t(\w+)$", lines, re.MULTILINE)) for name in CONFINED}
    assert found == CONFINED


@each_role
def test_the_daemon_sees_files_that_it_cannot_write_and_no_homes(site: Site, role: str) -> None:
    unit = site.unit(role)
    entering = f"nsenter --target={unit.shows('MainPID')} --mount --root"
    for place in ("/etc/l3dsr", "/opt/l3dsr", "/usr/local/bin", "/var/lib", "/sys/fs/cgroup", "/run"):
        assert "Read-only file system" in unit.machine.run(f"{entering} mkdir {place}/tried").stderr
    assert unit.machine.do(f"{entering} ls /root /home").split() == ["/home:", "/root:"]
    assert unit.machine.do(f"{entering} ls /tmp /var/tmp").split() == ["/tmp:", "/var/tmp:"]


@each_role
def test_the_control_socket_is_for_the_group_that_was_installed(site: Site, role: str) -> None:
    unit = site.unit(role)
    path = f"/run/l3dsr/{unit.name}.sock"
    mode, owner, group = unit.machine.do(f"stat --format '%f %U %G' {path}").split()
    assert (stat.S_IMODE(int(mode, 16)), owner, group) == (0o660, "root", "l3dsr")
    as_nobody = "setpriv --reuid=nobody --clear-groups --regid={} l3dsr status"
    assert unit.machine.do(as_nobody.format("l3dsr")).startswith(unit.name)
    refused = unit.machine.run(as_nobody.format("nogroup"))
    assert refused.returncode == 1
    assert refused.stderr.endswith(" is not for you: add yourself to its group (l3dsr), or use sudo\n")


def test_checks_and_the_channel_work(site: Site) -> None:
    balancer = site.machines["balancer"]

    def all_up() -> bool:
        said = balancer.do("l3dsr status")
        return len(re.findall(r"^node[123] .* up .* ok$", said, re.MULTILINE)) == 3

    await_that(all_up)


@each_role
def test_the_doctor_finds_no_fault(site: Site, role: str) -> None:
    await_that(lambda: " 0 faults\n" in site.machines[role].run("l3dsr doctor").stdout)


def test_a_node_is_drained_and_comes_back(site: Site) -> None:
    balancer = site.machines["balancer"]
    assert "the last flow is gone" in balancer.do("l3dsr drain node1 --wait --timeout 30")
    answers = converse(site.lab.client, [Client((request(f"/drained/{n}"),)) for n in range(REQUESTS)])
    assert "node1" not in {answer.node for answer in answers}
    balancer.do("l3dsr undrain node1")
    await_that(site.requests_are_answered)


@each_role
def test_packets_are_traced_and_metrics_served(site: Site, role: str) -> None:
    machine = site.machines[role]
    assert "HANDOFF" in machine.do("l3dsr trace handoffs -c 1 --time 20")
    port = {"balancer": 9713, "node1": 9714}[role]
    assert "\n# HELP " in machine.do(f"curl -sS http://127.0.0.1:{port}/metrics")


# --- reloads


def test_a_reload_has_taken_the_changed_document_when_it_returns(site: Site) -> None:
    unit = site.unit("balancer")
    path = unit.configuration()
    before = path.read_text()
    path.write_text(before.replace('name = "node1"', 'name = "node1"\nweight = 3'))
    unit.systemctl("reload")
    assert re.search(r"^node1 +\S+ +\w+ +3 ", unit.machine.do("l3dsr status"), re.MULTILINE)
    path.write_text(before)
    unit.systemctl("reload")
    assert unit.active
    await_that(site.requests_are_answered)


@each_role
def test_a_reload_of_a_broken_document_fails_and_the_old_one_goes_on(site: Site, role: str) -> None:
    unit = site.unit(role)
    path = unit.configuration()
    before, pid = path.read_text(), unit.shows("MainPID")
    path.write_text(re.sub(r"^dscp = 1$", "dscp = 77", before, flags=re.MULTILINE))
    assert unit.machine.run(f"systemctl reload {unit.name}").returncode == 1
    path.write_text(before)
    assert re.search(r"^l3dsr reload: .*dscp 77", unit.journal(), re.MULTILINE)
    assert unit.active
    assert unit.shows("MainPID") == pid
    await_that(site.requests_are_answered)


# --- ends and beginnings


@with_kept_flows
def test_restarts_under_load_fail_no_request(site: Site) -> None:
    with traffic(site.lab) as going:
        for role in UNITS:
            site.unit(role).systemctl("restart")
            going.must_go_on()
    assert going.failures() == []


def test_a_silent_connection_outlives_a_restart_of_its_packetbridge(site: Site) -> None:
    """On engine raw, too."""
    with connection(site.lab) as client:
        assert ask(client, target_of(site.lab, "node1")).node == "node1"
        site.unit("node1").systemctl("restart")
        assert ask(client, "/again").node == "node1"


@with_kept_flows
@each_role
def test_after_a_kill_the_next_daemon_carries_the_flows_on(site: Site, role: str) -> None:
    unit = site.unit(role)
    before = int(unit.shows("NRestarts"))
    with traffic(site.lab) as going:
        unit.systemctl("kill --signal=KILL")
        await_that(lambda: unit.restarted_after(before))
        assert unit.journal().count(TAKEN_OVER)
        going.must_go_on()
    assert going.failures() == []


@with_kept_flows
@each_role
def test_a_daemon_that_hangs_is_replaced_and_flows_go_on(site: Site, role: str) -> None:
    unit = site.unit(role)
    with unit.dropped_in("watched", WATCHED):
        unit.systemctl("restart")
        before = int(unit.shows("NRestarts"))
        with traffic(site.lab) as going:
            unit.systemctl("kill --kill-who=main --signal=STOP")
            await_that(lambda: unit.restarted_after(before))
            going.must_go_on()
    assert going.failures() == []
    assert "Watchdog timeout" in unit.journal()


@pytest.mark.engine("raw", reason="the key is read before any data plane is loaded")
def test_a_daemon_that_cannot_start_says_why_and_is_started_until_it_can(site: Site) -> None:
    unit = site.unit("node1")
    key = unit.machine.path("/etc/l3dsr/handoff.key")
    key.chmod(0o644)
    assert unit.machine.run(f"systemctl restart {unit.name}").returncode == 1
    assert re.search(r"^packetbridge: .*/etc/l3dsr/handoff\.key.*", unit.journal(), re.MULTILINE)
    await_that(lambda: int(unit.shows("NRestarts")) > USUAL_BURST, 60)
    key.chmod(0o600)
    await_that(lambda: unit.active)
    await_that(site.requests_are_answered)


@with_kept_flows
def test_an_upgrade_in_place_is_noticed_by_nobody(site: Site, tmp_path: Path) -> None:
    newer = Installation(tmp_path)
    for machine in site.machines.values():
        project = machine.path(str(booted.CHECKOUT / "pyproject.toml"))
        project.write_text(
            re.sub(r'(?m)^version = ".*"$', f'version = "{NEWER_RELEASE}"', project.read_text())
        )
        newer.install(machine)
    with traffic(site.lab) as going:
        for role in ("node1", "balancer"):
            unit = site.unit(role)
            assert unit.release() != NEWER_RELEASE
            unit.systemctl("restart")
            assert unit.release() == NEWER_RELEASE
            going.must_go_on()
    assert going.failures() == []
    warning = f"node node2 runs release {RELEASE}, the balancer {NEWER_RELEASE}: "
    await_that(lambda: warning in site.unit("balancer").journal())


@each_role
def test_a_stop_leaves_the_programs_and_remove_takes_them(site: Site, role: str, engine: str) -> None:
    """Those of engine ebpf; of engine raw nothing is left."""
    unit = site.unit(role)
    target = target_of(site.lab, "node1")
    unit.systemctl("stop")
    assert (answering(site.lab, target) == "node1") == (engine == EBPF)
    unit.machine.do(f"{unit.name} --remove")
    assert programs(unit.machine.host) == []
    assert "l3dsr0" not in unit.machine.do("ip link")
    assert answering(site.lab, target) != "node1"
    unit.systemctl("start")
    await_that(site.requests_are_answered)
