"""The lab as a fixture. A module has one of its own, so what one module breaks stays in it."""

import signal
from collections.abc import Iterator

import pytest

from lab import Lab
from tests.lab.crafted import Line, ghost, line_to


@pytest.fixture(scope="session", autouse=True)
def sigterm_ends_the_run() -> Iterator[None]:
    """As Ctrl-C does, so that fixtures take their labs down; the lab's own SystemExit would fail one test."""
    previous = signal.signal(signal.SIGTERM, lambda _number, _frame: pytest.exit("SIGTERM", returncode=143))
    yield
    signal.signal(signal.SIGTERM, previous)


def check_for_bugs(lab: Lab) -> None:
    """A daemon survives a bug that a packet brings to light, and logs its traceback; a test run does not."""
    logs = [process.read_log() for host in lab.hosts.values() for process in host.processes]
    assert [log for log in logs if "Traceback (most recent call last)" in log] == []


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Network and NGINX; the daemons are not started."""
    with Lab() as fresh:
        yield fresh
        check_for_bugs(fresh)


@pytest.fixture(scope="module")
def running_lab() -> Iterator[Lab]:
    """A lab with the balancer and all packetbridges, ready."""
    with Lab() as fresh:
        fresh.start_daemons()
        yield fresh
        check_for_bugs(fresh)


@pytest.fixture(scope="module")
def ghost_lab(running_lab: Lab) -> Iterator[Lab]:
    """A running lab in which clients may be crafted."""
    with ghost(running_lab):
        yield running_lab


@pytest.fixture(scope="module")
def to_node1(ghost_lab: Lab) -> Iterator[Line]:
    with line_to(ghost_lab, "node1") as line:
        yield line
