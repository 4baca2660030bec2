"""Real TCP through the headers' programs: superpackets and partial checksums, which no test run has."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from common.bpf.attach import Direction, Hook, attach
from tests.root.bpf.topics import Question, Topics, topics
from tests.root.namespaces import SERVER, Hosts, three_hosts

pytestmark = pytest.mark.root

PUBLIC_PORT, PORT = 9000, 8080
BACKEND = "10.98.2.3"
BODY = hashlib.sha256(b"l3dsr").digest() * (8_000_000 // 32)
SUPERPACKETS = 0
"""The counter of those that came to the server."""
HANDLE = 0x4832


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        hosts.server.run(f"ip address add {BACKEND}/24 dev s0")
        yield hosts


@pytest.fixture
def spliced(hosts: Hosts, tmp_path: Path) -> Iterator[Topics]:
    """The server's interface with numbers that are shifted across their wrap-around."""
    with topics(tmp_path) as bpf, ExitStack() as stack, hosts.server.entered():
        bpf.ask(
            Question(
                source=SERVER.packed,
                destination=socket.inet_aton(BACKEND),
                source_port=PUBLIC_PORT.to_bytes(2, "big"),
                destination_port=PORT.to_bytes(2, "big"),
                seq_delta=0x81234567,
                value_delta=0x70000001,
            )
        )
        interface = socket.if_nametoindex("s0")
        for name, direction in (("to_server", Direction.INGRESS), ("to_client", Direction.EGRESS)):
            attached = attach(Hook(interface, direction), bpf.program(name), HANDLE)
            stack.enter_context(closing(attached))
        yield bpf


def checksum_errors() -> int:
    """TcpInCsumErrors of the namespace."""
    lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
    labels, values = (line for line in lines if line[0] == "Tcp:")
    return int(dict(zip(labels, values, strict=True))["InCsumErrors"])


def echo_once(listener: socket.socket) -> None:
    """Sends back what it has received, at the end of it."""
    connection, _ = listener.accept()
    connection.settimeout(20)
    with connection:
        connection.sendall(received(connection))


def received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 20), b""))


def conversation(hosts: Hosts) -> bytes:
    """What comes back of BODY."""
    with hosts.server.entered():
        listener = socket.create_server((BACKEND, PORT))
    with hosts.client.entered():
        client = socket.socket()
    with listener, client:
        for each in (listener, client):
            each.settimeout(20)
        echo = threading.Thread(target=echo_once, args=(listener,), daemon=True)
        echo.start()
        client.connect((str(SERVER), PUBLIC_PORT))
        client.sendall(BODY)
        client.shutdown(socket.SHUT_WR)
        echoed = received(client)
        echo.join(20)
        return echoed


def errors_of(hosts: Hosts) -> list[int]:
    errors = []
    for host in (hosts.client, hosts.server):
        with host.entered():
            errors.append(checksum_errors())
    return errors


def test_superpackets_keep_their_partial_checksums_through_a_splice(hosts: Hosts, spliced: Topics) -> None:
    assert conversation(hosts) == BODY
    assert errors_of(hosts) == [0, 0]
    assert spliced.counter(SUPERPACKETS) > 10


def test_complete_checksums_stay_right_through_a_splice(hosts: Hosts, spliced: Topics) -> None:
    """To the server; what leaves it is cut behind the program."""
    for host, interface in ((hosts.client, "c0"), (hosts.middle, "m0"), (hosts.middle, "m1")):
        host.run(f"ethtool -K {interface} tx off tso off gso off gro off")
    assert conversation(hosts) == BODY
    assert errors_of(hosts) == [0, 0]
    assert spliced.counter(SUPERPACKETS) == 0
