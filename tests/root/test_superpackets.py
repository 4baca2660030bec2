"""Superpackets of real TCP pass through tap and TUN whole, both ways, with their checksums intact."""

import hashlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from common.net import intake
from common.net.buffer import new_buffer
from common.net.interfaces import interface_of, interfaces
from common.net.ownership import OwnedTable, drop_rules
from common.net.packet_socket import Tap
from common.net.routes import ReplyRoutes
from common.net.tun import Tun
from tests.root.namespaces import MIDDLE, SERVER, Hosts, three_hosts

pytestmark = pytest.mark.root

PORT = 9000
SERVICE = intake.of_balancer(SERVER, PORT)
BODY = hashlib.sha256(b"l3dsr").digest() * (20_000_000 // 32)
BODY_DIGEST = hashlib.md5(BODY, usedforsecurity=False).digest()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        yield hosts


def pump(source: Tap | Tun, tun: Tun, finished: Callable[[], bool]) -> int:
    """Passes packets from source to TUN until finished, 30 s at most; returns the longest one's length."""
    buffer = new_buffer()
    longest = 0
    poll = select.poll()
    poll.register(source.fileno(), select.POLLIN)
    deadline = time.monotonic() + 30
    while not finished() and time.monotonic() < deadline:
        poll.poll(50)
        for _ in range(64):
            try:
                length = source.receive_into(buffer)
            except BlockingIOError:
                break
            longest = max(longest, length)
            tun.send(buffer, length)
    return longest


class Transfer(NamedTuple):
    """Between a client and the server; runs in two threads."""

    client: socket.socket
    listener: socket.socket
    digests: list[bytes]

    def start(self, *, upload: bool) -> None:
        """BODY goes from the server to the client, or the other way; its digest ends in ``digests``."""

        def at_client() -> None:
            self.client.connect((str(SERVER), PORT))
            (send if upload else receive)(self.client)

        def at_server() -> None:
            connection, _ = self.listener.accept()
            connection.settimeout(20)
            (receive if upload else send)(connection)

        def send(connection: socket.socket) -> None:
            with connection:
                connection.sendall(BODY)

        def receive(connection: socket.socket) -> None:
            digest = hashlib.md5(usedforsecurity=False)
            with connection:
                while data := connection.recv(1 << 20):
                    digest.update(data)
            self.digests.append(digest.digest())

        for work in (at_server, at_client):
            threading.Thread(target=work, daemon=True).start()


def checksum_errors() -> int:
    """TcpInCsumErrors of the namespace."""
    lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
    labels, values = (line for line in lines if line[0] == "Tcp:")
    return int(dict(zip(labels, values, strict=True))["InCsumErrors"])


@pytest.fixture
def transfer(hosts: Hosts) -> Iterator[Transfer]:
    with hosts.server.entered():
        listener = socket.create_server((str(SERVER), PORT))
    with hosts.client.entered():
        client = socket.socket()
    with listener, client:
        listener.settimeout(20)
        client.settimeout(20)
        yield Transfer(client, listener, [])


def test_superpackets_pass_from_tap_to_tun(hosts: Hosts, transfer: Transfer) -> None:
    with hosts.middle.entered():
        interface = interface_of(MIDDLE, interfaces())
        tun, tap, table = (
            Tun(),
            Tap(interface, SERVICE),
            OwnedTable(SERVICE.name, drop_rules(SERVICE, [interface])),
        )
    transfer.start(upload=True)
    longest = pump(tap, tun, lambda: bool(transfer.digests))
    with hosts.server.entered():
        errors = checksum_errors()
    assert transfer.digests == [BODY_DIGEST]
    assert (errors, tun.refused, tap.malformed, tap.errors, tap.kernel_drops()) == (0, {}, 0, 0, 0)
    assert longest > 9000
    for each in (table, tap, tun):
        each.close()


def test_superpackets_of_a_backend_pass_through_the_tun(hosts: Hosts, transfer: Transfer) -> None:
    with hosts.server.entered():
        tun = Tun()
        routes = ReplyRoutes([(SERVER, PORT)], tun.index)
    transfer.start(upload=False)
    longest = pump(tun, tun, lambda: bool(transfer.digests))
    with hosts.client.entered():
        errors = checksum_errors()
    with hosts.server.entered():
        routes.close()
    tun.close()
    assert transfer.digests == [BODY_DIGEST]
    assert (errors, tun.refused, tun.malformed) == (0, {}, 0)
    assert longest > 9000
