"""A thousand reloads under load: no request fails, and the daemon is as large as after some hundred."""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lab import Host, Lab, Process
from tests.lab.configured import answers, bridge, generation, pool, reload, service, vip
from tests.lab.conftest import check_for_bugs
from tests.lab.conversation import VIP, VIP_ADDRESS
from tests.lab.footprint import footprint
from tests.lab.observed import daemon_of
from tests.lab.sockets import await_that

pytestmark = pytest.mark.root

OTHER_VIP = f"{VIP_ADDRESS}:8080"
MAIN_SERVICE = service(f"{VIP_ADDRESS}:80", 1, name="www")
RELOADS = 1000
IDLE_SECONDS = 60
"""In which a worker thread that has nothing to do has ended."""
SETTLED = 400
"""After as many, threads have the memory that they need."""
GROWTH_KIB = 8 * 1024
"""Between the two: flows of the load are remembered, too. A lookup table has 128 KiB."""


def configurations(lab: Lab, daemon: str) -> tuple[str, str]:
    """The balancer's differ in weights and a node, those of node1's packetbridge in a VIP with its port."""
    if daemon == "balancer":
        pools = (pool(lab, {"node1": 1, "node2": 1, "node3": 1}), pool(lab, {"node1": 3, "node2": 1}))
        return pools[0] + MAIN_SERVICE, pools[1] + MAIN_SERVICE
    more = vip(OTHER_VIP, 2, f"{lab.topology.nodes[0].second_backend}:80")
    return bridge_text(lab, "node1"), bridge_text(lab, "node1") + more


def bridge_text(lab: Lab, node: str) -> str:
    return bridge(lab, node, vip(f"{VIP_ADDRESS}:80", 1, f"{lab.topology.node(node).backend}:80"))


@pytest.fixture(scope="module")
def lab(engine: str) -> Iterator[Lab]:
    with Lab(engine=engine) as fresh:
        for node in fresh.nodes:
            fresh.start_configured(node, "packetbridge", bridge_text(fresh, node.name))
        fresh.start_configured(fresh.balancer, "balancer", configurations(fresh, "balancer")[0])
        yield fresh
        check_for_bugs(fresh)


@contextmanager
def kept_connections_in_use(lab: Lab) -> Iterator[None]:
    """At node3, which comes and goes. No request on them fails or waits for long."""
    targets = [f"{VIP}/slow/answer/0.0{number}" for number in range(10, 40)]
    found = zip(answers(lab, targets, "-I"), targets, strict=True)
    target = next(target for answer, target in found if answer.node == "node3")
    wrk = lab.client.start(["wrk", "-t1", "-c4", "-d600s", "--timeout=10s", target])
    try:
        yield
    finally:
        wrk.send_signal(signal.SIGINT)
        wrk.wait()
    said = wrk.read_log()
    assert int(re.findall(r"(\d+) requests in", said)[0]) > 100
    assert "Socket errors" not in said
    assert "Non-2xx" not in said


@contextmanager
def new_connections(lab: Lab) -> Iterator[None]:
    """Twenty a second, to all nodes, one after another. All are answered."""
    said = ["-o", "/dev/null", "-w", "%{http_code} %{exitcode}\\n"]
    rate = ["--rate", "20/s", "-H", "Connection: close", "--max-time", "10"]
    curl = lab.client.start(["stdbuf", "-oL", "curl", "-s", *rate, *said, f"{VIP}/many/[1-1000000]"])
    await_that(lambda: "\n" in curl.read_log())
    try:
        yield
        before = len(curl.read_log())
        await_that(lambda: len(curl.read_log()) > before)
        assert curl.running
    finally:
        curl.stop()
    lines = curl.read_log().splitlines()
    assert len(lines) > 20
    assert set(lines[:-1]) == {"200 0"}


def descriptors(daemon: Process) -> Counter[str]:
    """How many there are of each kind, maps and programs among them."""
    kinds: Counter[str] = Counter()
    for path in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            kinds[re.sub(r"\d+", "", os.readlink(path))] += 1
    return kinds


def threads(daemon: Process) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/task").iterdir()))


def resident_kib(daemon: Process) -> int:
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


def reload_times(times: int, host: Host, program: str, path: Path, texts: Sequence[str]) -> None:
    for number in range(1, times + 1):
        path.write_text(texts[number % 2])
        reload(host, program)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("program", ["balancer", "packetbridge"])
def test_reloads_under_load_fail_no_request_and_leave_nothing_behind(lab: Lab, program: str) -> None:
    host = lab.balancer if program == "balancer" else lab.nodes[0]
    daemon = daemon_of(host)
    changing = (host, program, lab.configuration_file(host, program), configurations(lab, program))
    first = generation(host, program)
    with kept_connections_in_use(lab), new_connections(lab):
        reload_times(SETTLED, *changing)
        before, size = descriptors(daemon), resident_kib(daemon)
        workers, shape = threads(daemon), footprint(host)
        reload_times(RELOADS - SETTLED, *changing)
        await_that(lambda: not descriptors(daemon) - before)
        await_that(lambda: threads(daemon) <= workers, IDLE_SECONDS)
        assert footprint(host) == shape
        assert resident_kib(daemon) < size + GROWTH_KIB
    assert generation(host, program) == first + RELOADS
