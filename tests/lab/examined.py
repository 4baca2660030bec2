"""What `l3dsr doctor` finds on the hosts of a lab, and a lab in which it finds nothing."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from lab import Host, Lab, Process, daemon_program
from tests.lab import checked
from tests.lab.checked import await_all_up
from tests.lab.observed import daemon_of
from tests.lab.sockets import await_that

FAULT, WARNING, OK = "fault", "warning", "ok"


class Finding(NamedTuple):
    daemon: str
    check: str
    level: str
    found: str
    change: str


class Examined(NamedTuple):
    code: int
    findings: list[Finding]

    def of(self, check: str, name: str = "") -> list[Finding]:
        """Of one check, and of what is called so."""
        return [each for each in self.findings if each.check == check and name in each.found]

    def bad(self, *levels: str) -> list[Finding]:
        return [each for each in self.findings if each.level in levels]


def start_sound(lab: Lab) -> None:
    """GRO is on, as it is with real network cards; a veth device has it off at first."""
    for host in (lab.balancer, *lab.nodes):
        host.run(["ethtool", "-K", "eth0", "gro", "on"])
    for node in lab.topology.nodes:
        lab.start_packetbridge(node.name)
    checked.start(lab)
    await_sound(lab)


def examined(host: Host, *options: str, under: Sequence[str] = ()) -> Examined:
    """``under`` is a command that runs the tool with less."""
    tool = [str(daemon_program("l3dsr")), "doctor", f"--state-dir={host.state_directory}", "--json"]
    run = host.run([*under, *tool, *options], check=False)
    assert run.stderr == ""
    said = [json.loads(line) for line in run.stdout.splitlines()]
    return Examined(run.returncode, [Finding(**each) for each in said])


def await_sound(lab: Lab) -> None:
    await_all_up(lab)
    await_that(lambda: examined(lab.balancer).code == 0, 30)


def awaited(host: Host, *options: str, under: Sequence[str] = (), code: int = 0) -> Examined:
    """As `examined`, once it ends with this exit code: on a busy machine a check may fail now and then."""
    found: list[Examined] = []

    def is_so() -> bool:
        found.append(examined(host, *options, under=under))
        return found[-1].code == code

    await_that(is_so, 30)
    return found[-1]


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


# --- what may be missing


@contextmanager
def instead(lab: Lab, node: str, start: Callable[[], Process | None]) -> Iterator[None]:
    """Another packetbridge, or none, in place of the node's own."""
    daemon_of(lab.hosts[node]).stop()
    other: Process | None = None
    try:
        other = start()
        yield
    finally:
        if other is not None:
            other.stop()
        lab.start_packetbridge(node)


def no_packetbridge(lab: Lab, node: str) -> AbstractContextManager[None]:
    return instead(lab, node, lambda: None)


@contextmanager
def no_backend(lab: Lab, node: str) -> Iterator[None]:
    lab.nginx[node].stop()
    try:
        yield
    finally:
        lab.nginx[node].start()
