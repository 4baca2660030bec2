"""What the kernel says of its TCP sockets."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from common.net import sock_diag
from common.net.errors import HostError
from common.net.sock_diag import SocketQuery
from tests.root.namespaces import CLIENT, SERVER, Hosts, three_hosts

pytestmark = pytest.mark.root

PORT = 9000


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        yield hosts


@pytest.fixture
def query(hosts: Hosts) -> Iterator[SocketQuery]:
    """Asks the server's kernel."""
    with hosts.server.entered():
        query = SocketQuery()
    yield query
    query.close()


@pytest.fixture
def pair(hosts: Hosts) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection's two sockets, at the client and at the server."""
    with hosts.server.entered():
        listener = socket.create_server((str(SERVER), PORT))
    with hosts.client.entered():
        client = socket.socket()
    with listener, client:
        client.connect((str(SERVER), PORT))
        accepted, _ = listener.accept()
        with accepted:
            yield client, accepted


def key_of(client: socket.socket, service_port: int = PORT) -> bytes:
    """Server to client."""
    client_port: int = client.getsockname()[1]
    return SERVER.packed + CLIENT.packed + service_port.to_bytes(2, "big") + client_port.to_bytes(2, "big")


def test_an_established_connection_exists(
    query: SocketQuery, pair: tuple[socket.socket, socket.socket]
) -> None:
    assert query.exists(key_of(pair[0]))


def test_only_this_very_connection_counts(
    query: SocketQuery, pair: tuple[socket.socket, socket.socket]
) -> None:
    key = key_of(pair[0])
    assert not query.exists(key[:10] + b"\x00\x01"), "the listening socket is no connection"
    assert not query.exists(key_of(pair[0], PORT + 1))
    assert not query.exists(key[4:8] + key[:4] + key[10:] + key[8:10]), "the client's end is elsewhere"


def test_a_half_closed_connection_exists(
    query: SocketQuery, pair: tuple[socket.socket, socket.socket]
) -> None:
    client, accepted = pair
    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    assert query.exists(key_of(client)), "CLOSE_WAIT"


def test_a_connection_in_time_wait_is_over(
    query: SocketQuery, pair: tuple[socket.socket, socket.socket]
) -> None:
    client, accepted = pair
    key = key_of(client)
    accepted.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert query.exists(key), "FIN_WAIT_2"
    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    assert not query.exists(key)


def test_a_reset_connection_is_over(query: SocketQuery, pair: tuple[socket.socket, socket.socket]) -> None:
    client, accepted = pair
    key = key_of(client)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    client.close()
    with pytest.raises(ConnectionResetError):
        accepted.recv(1)
    assert not query.exists(key)


def test_a_kernel_that_cannot_tell_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol for which there is no diag module stands for TCP without tcp_diag."""
    monkeypatch.setattr(socket, "IPPROTO_TCP", socket.IPPROTO_EGP)
    with pytest.raises(
        HostError, match=r"the kernel cannot tell its TCP sockets .*: run `modprobe tcp_diag`"
    ):
        SocketQuery()


@pytest.fixture(params=[1, 500], ids=["listed", "one by one"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock_diag, "FEW", request.param)


@pytest.mark.usefixtures("few")
def test_of_many_flows_those_are_found_that_exist(
    query: SocketQuery, pair: tuple[socket.socket, socket.socket]
) -> None:
    key = key_of(pair[0])
    others = [key_of(pair[0], PORT + 1), key[4:8] + key[:4] + key[10:] + key[8:10], key[:10] + b"\x00\x01"]
    assert query.existing([*others, key]) == {key}
    assert query.exists(key), "nothing is left of the list"


@pytest.mark.usefixtures("few")
def test_of_many_flows_those_are_not_found_that_are_over(
    query: SocketQuery, pair: tuple[socket.socket, socket.socket]
) -> None:
    client, accepted = pair
    accepted.close()
    client.close()
    key = SERVER.packed + CLIENT.packed + PORT.to_bytes(2, "big")
    keys = [key + port.to_bytes(2, "big") for port in range(32768, 61000, 7)]
    end = time.monotonic() + 20
    while query.existing(keys):
        assert time.monotonic() < end


@pytest.mark.usefixtures("few")
def test_server_that_listens_for_both_families_is_found(hosts: Hosts, query: SocketQuery) -> None:
    with hosts.server.entered():
        listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    with hosts.client.entered():
        client = socket.socket()
    with listener, client:
        client.connect((str(SERVER), PORT))
        accepted, _ = listener.accept()
        with accepted:
            assert query.existing([key_of(client)]) == {key_of(client)}


@pytest.mark.usefixtures("few")
def test_hundreds_of_flows_are_all_found(hosts: Hosts, query: SocketQuery) -> None:
    with hosts.server.entered():
        listener = socket.create_server((str(SERVER), PORT), backlog=400)
    with ExitStack() as opened:
        opened.enter_context(listener)
        clients = []
        for _ in range(300):
            with hosts.client.entered():
                clients.append(opened.enter_context(socket.socket()))
            clients[-1].connect((str(SERVER), PORT))
            opened.enter_context(listener.accept()[0])
        keys = {key_of(client) for client in clients}
        assert query.existing(list(keys)) == keys
