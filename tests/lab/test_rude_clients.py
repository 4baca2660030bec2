"""Clients of the control sockets that do not behave, while requests go on."""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab import Lab
from tests.lab.checked import channels
from tests.lab.observed import daemon_of
from tests.lab.sockets import await_that
from tests.lab.traffic import traffic

pytestmark = pytest.mark.root

CLIENTS = 100
ANSWER_SECONDS = 20.0
DAEMONS = {"balancer": "balancer", "node1": "packetbridge"}

CROWDS = 6
GROWTH_KIB = 2048
FLOW_KIB = 4
"""At most, of a request that has been served and is remembered for a while."""

SAID = [
    b"",
    b'{"do": "sta',
    bytes(range(256)) * 16 + b"\n",
    b"x" * (1 << 20),
    b"[" * 60_000 + b"\n",
    b"GET /metrics HTTP/1.1\r\nHost: lab\r\n\r\n",
    b'{"do": "flows"}\n' * 2000,
]


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_kib(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def rude_client(path: Path, said: bytes) -> socket.socket:
    """It never reads, and says as much as there is room for."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(path))
    client.setblocking(False)
    try:
        client.send(said)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        pass
    return client


@contextmanager
def crowd(path: Path) -> Iterator[None]:
    with ExitStack() as clients:
        for said in SAID * (CLIENTS // len(SAID)):
            clients.enter_context(rude_client(path, said))
        yield


@pytest.mark.parametrize("role", DAEMONS)
def test_the_tool_is_answered_and_requests_go_on(running_lab: Lab, role: str) -> None:
    """And the daemon is no larger after many of them than after some."""
    host, name = running_lab.hosts[role], DAEMONS[role]
    path = host.state_directory / f"{name}.sock"
    daemon = daemon_of(host)
    sizes: list[int] = []
    """Without what requests have left."""
    await_that(lambda: {each.state for each in channels(running_lab).values()} == {"ok"})
    with traffic(running_lab) as going:
        before = open_files(daemon.pid)
        for _ in range(CROWDS):
            with crowd(path):
                began = time.monotonic()
                said = json.loads(running_lab.tool(host, "status", "--json").stdout)
                assert said["daemon"] == name
                assert time.monotonic() - began < ANSWER_SECONDS
            await_that(lambda: open_files(daemon.pid) <= before)
            sizes.append(resident_kib(daemon.pid) - FLOW_KIB * going.count())
        going.must_go_on()
    assert going.failures() == []
    assert sizes[-1] - sizes[1] < GROWTH_KIB
    assert "Traceback" not in daemon.read_log()
