"""The lab as a fixture. A module has one of its own, so what one module breaks stays in it.

Every test whose fixtures want the `engine` runs on both of them. One that is about the means of one engine
says so, and why: `@pytest.mark.engine("raw", reason="...")`.
"""

import signal
from collections.abc import Iterator

import pytest

from bpf import build
from common.config import EBPF, RAW
from lab import Lab
from tests.lab import booted
from tests.lab.crafted import Line, ghost, line_to
from tests.lab.installation import Installation


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "engine(name, reason): runs on this engine only, and why")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("engine")
    if "engine" in metafunc.fixturenames:
        engines = (RAW, EBPF) if mark is None else mark.args
        metafunc.parametrize("engine", engines, indirect=True, scope="module")
    elif mark is not None:
        raise pytest.UsageError(f"{metafunc.definition.nodeid} is for one engine and wants none")


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
def engine(request: pytest.FixtureRequest) -> str:
    """What the daemons run on."""
    name: str = request.param
    if name == EBPF and (reason := build.reason_against()) is not None:
        pytest.skip(reason)
    return name


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """For machines with a systemd of their own."""
    if (reason := booted.reason_against()) is not None:
        pytest.skip(reason)
    return Installation(tmp_path_factory.mktemp("installation"))


@pytest.fixture(scope="module")
def bare_lab() -> Iterator[Lab]:
    """For tests that start no daemon, or only by themselves."""
    with Lab() as fresh:
        yield fresh


@pytest.fixture(scope="module")
def lab(engine: str) -> Iterator[Lab]:
    """Network and NGINX; the daemons are not started."""
    with Lab(engine=engine) as fresh:
        yield fresh
        check_for_bugs(fresh)


@pytest.fixture(scope="module")
def running_lab(engine: str) -> Iterator[Lab]:
    """A lab with the balancer and all packetbridges, ready."""
    with Lab(engine=engine) as fresh:
        fresh.start_daemons()
        yield fresh
        check_for_bugs(fresh)


@pytest.fixture(scope="module")
def spliced_lab(engine: str) -> Iterator[Lab]:
    """A running lab in which every backend leg has a handshake of its own, whatever the kernel can do."""
    with Lab(engine=engine) as fresh:
        for node in fresh.topology.nodes:
            fresh.start_packetbridge(node.name, "--adopt=off")
        fresh.start_balancer()
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
