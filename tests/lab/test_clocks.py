"""The wall clock of one daemon, or of all, is set while they run.

Only a handoff's age goes by it: a node refuses one that is more than a minute off.
"""

import struct
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import Lab
from tests.lab import checked
from tests.lab.observed import counters_of, daemon_of
from tests.lab.sockets import await_that
from tests.lab.supervised import environment
from tests.lab.traffic import traffic

pytestmark = pytest.mark.root

ALL = ("balancer", "node1", "node2", "node3")
HOUR = 3600
IMPATIENCE_SECONDS = 5.0
SOURCE = Path(__file__).with_name("shifted_clock.c")
_SECONDS = struct.Struct("=q")


class Clocks:
    """Of the daemons of a lab."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._library = directory / "shifted_clock.so"
        build = [
            "clang",
            "-shared",
            "-fPIC",
            "-O2",
            "-Wall",
            "-Werror",
            "-o",
            str(self._library),
            str(SOURCE),
        ]
        subprocess.run(build, check=True)
        for role in ALL:
            self._file(role).write_bytes(_SECONDS.pack(0))

    def environment(self, role: str) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "SHIFTED_CLOCK": str(self._file(role))}

    @contextmanager
    def shifted(self, *roles: str, seconds: int) -> Iterator[None]:
        """So much ahead of the right time, meanwhile."""
        self._shift(roles, seconds)
        try:
            yield
        finally:
            self._shift(roles, 0)

    def _shift(self, roles: Iterable[str], seconds: int) -> None:
        for role in roles:
            with self._file(role).open("r+b") as file:
                file.write(_SECONDS.pack(seconds))

    def _file(self, role: str) -> Path:
        return self._directory / role


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Clocks:
    return Clocks(tmp_path_factory.mktemp("clocks"))


@pytest.fixture(scope="module")
def started_lab(lab: Lab, clocks: Clocks) -> Lab:
    """With health checks."""
    for node in lab.topology.nodes:
        with environment(clocks.environment(node.name)):
            lab.start_packetbridge(node.name)
    with environment(clocks.environment("balancer")):
        checked.start(lab)
    return lab


@pytest.fixture
def clocked_lab(started_lab: Lab) -> Lab:
    checked.await_all_up(started_lab)
    return started_lab


@pytest.mark.parametrize("seconds", [30, -30])
@pytest.mark.parametrize("role", ["balancer", "node1"])
def test_half_a_minute_is_nothing(clocked_lab: Lab, clocks: Clocks, role: str, seconds: int) -> None:
    with traffic(clocked_lab) as going:
        with clocks.shifted(role, seconds=seconds):
            going.must_go_on()
        going.must_go_on()
    assert going.failures() == []


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_step_of_all_clocks_is_nothing(clocked_lab: Lab, clocks: Clocks, seconds: int) -> None:
    with traffic(clocked_lab) as going:
        with clocks.shifted(*ALL, seconds=seconds):
            going.must_go_on()
        going.must_go_on()
    assert going.failures() == []


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_node_whose_clock_is_an_hour_off_is_found_and_comes_back(
    clocked_lab: Lab, clocks: Clocks, seconds: int
) -> None:
    """Its flows go on; new ones go to the others."""
    node = clocked_lab.nodes[0]
    with traffic(clocked_lab, patience=IMPATIENCE_SECONDS) as going:
        began = time.monotonic()
        with clocks.shifted(node.name, seconds=seconds):
            checked.await_state(clocked_lab, node.name, "down")
            going.must_go_on(nodes={"node2", "node3"})
            direction = "ahead of" if seconds > 0 else "behind"
            await_that(
                lambda: f"{direction} ours; set the clocks" in checked.nodes(clocked_lab)[node.name].channel
            )
            await_that(lambda: "set the clocks" in checked.nodes(clocked_lab)[node.name].reason)
            daemon_of(node).wait_for("are the clocks of balancer and node right?")
            assert counters_of(daemon_of(node))["handoff_too_old"] > 0
        ended = time.monotonic()
        checked.await_all_up(clocked_lab)
        going.must_go_on()
    assert going.failures(besides=(began, ended)) == []
    assert checked.nodes(clocked_lab)[node.name].channel == "ok"


def test_of_a_balancer_whose_clock_is_an_hour_off_flows_go_on_and_it_comes_back(
    clocked_lab: Lab, clocks: Clocks
) -> None:
    with traffic(clocked_lab, patience=IMPATIENCE_SECONDS) as going:
        with clocks.shifted("balancer", seconds=HOUR):
            await_that(lambda: {node.state for node in checked.nodes(clocked_lab).values()} == {"down"})
            going.must_go_on(nodes=())
        checked.await_all_up(clocked_lab)
        going.must_go_on()
