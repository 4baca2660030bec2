"""The HTTP server, asked by http.client, and by strangers that keep to no protocol."""

import http.client
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Address

import pytest
import trio

from common import http as served_http
from common.config import Endpoint
from common.http import CONNECTIONS, HEADER_SIZE, HttpServer, Page
from common.net.errors import HostError
from common.reports import Report, parse_report
from common.web import pages
from tests.unit.metrics import reports
from tests.unit.serving import damaged, said_to, serving

LOGGER = logging.getLogger("http-test")
LOOPBACK = IPv4Address("127.0.0.1")


async def _hello() -> bytes:
    return b"hello\n"


async def _broken() -> bytes:
    raise ValueError("a bug")


async def _much() -> bytes:
    return b"x" * 50_000_000


PAGES = {
    "/": Page("text/plain", _hello, "default-src 'self'"),
    "/broken": Page("text/plain", _broken),
    "/much": Page("text/plain", _much),
}


@contextmanager
def _served(pages_: Mapping[str, Page] = PAGES) -> Iterator[Endpoint]:
    with closing(HttpServer(Endpoint(LOOPBACK, 0))) as server, serving(lambda: server.serve(pages_, LOGGER)):
        yield server.address


@pytest.fixture
def address() -> Iterator[Endpoint]:
    with _served() as at:
        yield at


@contextmanager
def _client(address: Endpoint) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection(str(address.address), address.port, timeout=60)) as client:
        yield client


@contextmanager
def _stranger(address: Endpoint) -> Iterator[socket.socket]:
    with socket.create_connection((str(address.address), address.port), timeout=60) as connection:
        yield connection


def _until_closed(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def _status(address: Endpoint, request: bytes) -> bytes:
    """Of the answer to a request that is the connection's last."""
    with _stranger(address) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        line, _, _ = _until_closed(connection).partition(b"\r\n")
    return line


def test_page_comes_with_what_browsers_are_to_be_told(address: Endpoint) -> None:
    with _client(address) as client:
        client.request("GET", "/")
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, b"hello\n")
    headers = dict(answer.getheaders())
    assert headers.pop("Date").endswith(" GMT")
    assert headers == {
        "Content-Type": "text/plain",
        "Content-Length": "6",
        "Content-Security-Policy": "default-src 'self'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def test_head_is_the_header_of_get(address: Endpoint) -> None:
    with _client(address) as client:
        client.request("HEAD", "/")
        answer = client.getresponse()
        assert (answer.status, answer.getheader("Content-Length"), answer.read()) == (200, "6", b"")
        client.request("GET", "/")
        assert client.getresponse().read() == b"hello\n"


def test_one_connection_carries_many_requests(address: Endpoint) -> None:
    with _client(address) as client:
        for _ in range(3):
            client.request("GET", "/?at=now")
            assert client.getresponse().read() == b"hello\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"GET http://127.0.0.1:9713/?at=now HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200 OK"),
        (b"GET HTTP://localhost?at=now HTTP/1.1\r\nHost: a.name\r\n\r\n", b"200 OK"),
        (b"GET http://localhost/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404 Not Found"),
        (b"GET http://a.name/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"421 Misdirected Request"),
        (b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404 Not Found"),
        (b"GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404 Not Found"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405 Method Not Allowed"),
        (b"CONNECT / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n", b"413 Request Entity Too Large"),
        (
            b"HEAD / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            b"413 Request Entity Too Large",
        ),
        (b"GET / HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b'{"do": "status"}\n\n', b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400 Bad Request"),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2 * HEADER_SIZE,
            b"431 Request Header Fields Too Large",
        ),
        (b"GET /broken HTTP/1.1\r\nHost: localhost\r\n\r\n", b"500 Internal Server Error"),
    ],
)
def test_odd_request_gets_its_status(address: Endpoint, request_bytes: bytes, status: bytes) -> None:
    assert _status(address, request_bytes) == b"HTTP/1.1 " + status
    assert _status(address, b"GET / HTTP/1.0\r\n\r\n") == b"HTTP/1.1 200 OK"


def test_damaged_requests_end_no_more_than_their_connection(
    address: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    seeds = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\nabc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    for seed in range(400):
        with _stranger(address) as connection:
            answer = said_to(connection, damaged(seeds, seed))
        assert answer == b"" or answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 4")), seed
    assert caplog.records == []
    assert _status(address, b"GET / HTTP/1.0\r\n\r\n") == b"HTTP/1.1 200 OK"


def test_bug_in_a_page_is_logged(address: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    with _client(address) as client:
        client.request("GET", "/broken")
        assert client.getresponse().read() == b"a bug: the log has the details\n"
    assert [record.getMessage() for record in caplog.records] == ["http: a bug in /broken"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:9713", "localhost:9713", "LOCALHOST", "[::1]:9713", "::1"]
)
def test_loopback_server_answers_to_addresses(address: Endpoint, host: str) -> None:
    assert _status(address, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "host", ["rebound.example", "rebound.example:9713", "127.0.0.1.example", "localhost.a", ""]
)
def test_loopback_server_answers_to_no_names(address: Endpoint, host: str) -> None:
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    assert _status(address, request) == b"HTTP/1.1 421 Misdirected Request"


def test_connection_that_asks_for_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_http, "IDLE_SECONDS", 0.05)
    with _served() as address, _stranger(address) as silent, _stranger(address) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert _until_closed(silent) == b""
        assert _until_closed(slow) == b""


def test_client_that_does_not_read_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served_http, "WRITE_SECONDS", 0.3)
    caplog.set_level(logging.DEBUG, LOGGER.name)
    with _served() as address, _stranger(address) as deaf:
        deaf.sendall(b"GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with _client(address) as client:
            client.request("GET", "/")
            assert client.getresponse().read() == b"hello\n"
        _eventually(lambda: "http: a client went away, or did not read its answer" in caplog.messages)


def test_of_too_many_connections_the_oldest_that_keeps_the_server_waiting_makes_room(
    address: Endpoint,
) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(_stranger(address)) for _ in range(CONNECTIONS)]
        # The last one of them is served, so all are known by now.
        idle[-1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle[-1].recv(1000).startswith(b"HTTP/1.1 200")
        for number in range(3):
            assert _status(address, b"GET / HTTP/1.0\r\n\r\n") == b"HTTP/1.1 200 OK"
            assert number > 0 or _until_closed(idle[0]) == b""
        idle[-1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle[-1].recv(1000).startswith(b"HTTP/1.1 200")


def test_connections_beyond_the_bound_are_refused_while_all_are_being_answered() -> None:
    is_open, asked = threading.Event(), threading.Semaphore(0)

    async def slow() -> bytes:
        asked.release()
        await trio.to_thread.run_sync(is_open.wait, 60)
        return b"at last\n"

    with _served({"/": Page("text/plain", slow)}) as address, ExitStack() as stack:
        busy = [stack.enter_context(_stranger(address)) for _ in range(CONNECTIONS)]
        for connection in busy:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        for _ in busy:
            assert asked.acquire(timeout=60)
        with _stranger(address) as refused:
            assert _until_closed(refused).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        is_open.set()
        assert all(_until_closed(connection).endswith(b"at last\n") for connection in busy)


def _eventually(is_so: Callable[[], bool]) -> None:
    for _ in range(1000):
        try:
            if is_so():
                return
        except ConnectionError:
            pass
        threading.Event().wait(0.02)
    raise AssertionError("not within twenty seconds")


def test_port_in_use_is_one_line(address: Endpoint) -> None:
    with pytest.raises(HostError) as refused:
        HttpServer(address)
    assert str(refused.value) == (
        f"metrics cannot be served at {address}: the port is taken, choose another one"
    )


def test_address_of_nobody_here_is_one_line() -> None:
    with pytest.raises(HostError) as refused:
        HttpServer(Endpoint(IPv4Address("203.0.113.7"), 9713))
    assert str(refused.value) == (
        "metrics cannot be served at 203.0.113.7:9713: no interface has this address"
    )


def _get(address: Endpoint, path: str) -> tuple[str | None, bytes]:
    with _client(address) as client:
        client.request("GET", path)
        answer = client.getresponse()
        assert answer.status == 200
        return answer.getheader("Content-Type"), answer.read()


def _reporting(report: Report) -> Callable[[], Awaitable[Report]]:
    async def make_report() -> Report:
        return report

    return make_report


def test_daemon_shows_its_page_its_report_and_its_metrics() -> None:
    with _served(pages(_reporting(reports.BALANCER))) as address:
        kind, page = _get(address, "/")
        assert kind == "text/html; charset=utf-8"
        assert page.startswith(b"<!doctype html>")
        kind, report = _get(address, "/report.json")
        assert kind == "application/json"
        assert parse_report(report) == reports.BALANCER
        kind, metrics = _get(address, "/metrics")
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        assert b"\nl3dsr_balancer_sent_to_nodes_bytes_total 3000.0\n" in metrics


def test_many_askers_share_a_report() -> None:
    made = 0

    async def make_report() -> Report:
        nonlocal made
        made += 1
        return reports.PACKETBRIDGE

    with _served(pages(make_report, fresh_seconds=60)) as address:
        for path in ("/report.json", "/metrics", "/report.json"):
            _get(address, path)
    assert made == 1
