"""Clients of the control sockets that hang, or keep to no protocol: traffic and operator notice nothing."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from common.control import CLIENTS, REQUEST_SIZE
from lab import Lab
from tests.lab import checked
from tests.lab.observed import daemon_of
from tests.lab.sockets import await_that
from tests.lab.traffic import traffic
from tests.lab.wellbeing import assert_all_is_well
from tests.unit.serving import damaged, said_to

pytestmark = pytest.mark.root

PROGRAMS = {"balancer": "balancer", "node1": "packetbridge"}
each_role = pytest.mark.parametrize("role", PROGRAMS)
HARMLESS = [
    b'{"do": "status"}\n',
    b'{"do": "flows", "client": "198.51.100.10", "limit": 3}\n',
    b'{"do": "flow", "client": "198.51.100.10", "port": 4001}\n',
]
RUBBISH = [b"\0" * 5000, b"GET / HTTP/1.1\r\n\r\n", b"[" * 60000 + b"\n", b"x" * 2 * REQUEST_SIZE]
DAMAGED = 300


@contextmanager
def connected(path: Path, data: bytes) -> Iterator[None]:
    """By a client that says this, and then neither reads nor goes."""
    with ExitStack() as stack:
        client = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(data)
        yield


@each_role
def test_clients_that_hang_or_send_rubbish_disturb_nothing(running_lab: Lab, role: str) -> None:
    host = running_lab.hosts[role]
    daemon, path = daemon_of(host), host.state_directory / f"{PROGRAMS[role]}.sock"
    descriptors = Path(f"/proc/{daemon.pid}/fd")

    def status_is_told() -> None:
        told = running_lab.tool(host, "status", "--json").stdout
        assert json.loads(told)["engine"] == running_lab.engine

    status_is_told()
    checked.await_all_up(running_lab)  # a channel has a socket for each node
    before = len(list(descriptors.iterdir()))
    with traffic(running_lab) as going:
        with ExitStack() as hanging:
            for number in range(2 * CLIENTS):
                unread = HARMLESS[0] * 500 if number % 4 == 0 else b'{"do": "sta'
                hanging.enter_context(connected(path, unread))
            status_is_told()
            going.must_go_on()
        for number in range(DAMAGED):
            rubbish = RUBBISH[number] if number < len(RUBBISH) else damaged(HARMLESS, number)
            with closing(socket.socket(socket.AF_UNIX)) as client:
                client.settimeout(10)
                client.connect(str(path))
                said_to(client, rubbish)
        status_is_told()
        going.must_go_on()
    assert going.failures() == []
    await_that(lambda: len(list(descriptors.iterdir())) <= before)
    assert_all_is_well(running_lab)
