"""A small HTTP/1.1 server for a few read-only pages: GET and HEAD, nothing is taken from a client but a path.

Who asks may be broken or hostile: connections are bounded in number, headers in size, and waiting for a
client in time. Where there are too many, one that keeps the server waiting makes room.

A server on a loopback address answers only requests whose Host is an address or localhost. Otherwise a page
of somebody else's, whose name is made to resolve to 127.0.0.1, could have a browser on this host read the
answers (DNS rebinding).
"""

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple, NoReturn

import h11
import trio

from common.config import Endpoint
from common.net.errors import HostError

CONNECTIONS = 32
HEADER_SIZE = 16 * 1024
"""Of a request's line and header, in bytes."""
IDLE_SECONDS = 10.0
"""Within which a connection must bring a whole request, the next one counting from the answer before."""
WRITE_SECONDS = 10.0
"""Within which a client must have taken an answer."""
_BACKLOG = 2 * CONNECTIONS
_READ_SIZE = 4096
_DRAIN_SECONDS = 1.0
_METHODS = (b"GET", b"HEAD")
_EVERYWHERE = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
_PLAIN = "text/plain; charset=utf-8"
_REASONS = {
    errno.EADDRINUSE: "the port is taken, choose another one",
    errno.EADDRNOTAVAIL: "no interface has this address",
    errno.EACCES: "the port is for root only, choose one from 1024 on",
}


class Page(NamedTuple):
    """What a path answers with: ``content`` is asked each time."""

    content_type: str
    content: Callable[[], Awaitable[bytes]]
    security_policy: str = "default-src 'none'; frame-ancestors 'none'"
    """Content-Security-Policy."""


class HttpServer:
    """Listens from the start, answers while `serve` runs. `HostError` if the address cannot be had."""

    def __init__(self, address: Endpoint) -> None:
        self._names_matter = address.address.is_loopback
        self._socket = _listen(address)
        host, port = self._socket.getsockname()
        self.address = Endpoint(IPv4Address(host), port)
        """With the port that the kernel has chosen where 0 was asked for."""
        self._held: dict[_Connection, trio.CancelScope] = {}
        """The oldest first."""

    def close(self) -> None:
        self._socket.close()

    async def serve(self, pages: Mapping[str, Page], logger: logging.Logger) -> NoReturn:
        """Answer, for ever. ``pages`` are by their path."""

        async def serve_connection(stream: trio.SocketStream) -> None:
            async with stream:
                connection = _Connection(stream, pages, logger, names_matter=self._names_matter)
                try:
                    if len(self._held) >= CONNECTIONS and not self._make_room():
                        await connection.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
                        return
                    with trio.CancelScope() as scope:
                        self._held[connection] = scope
                        try:
                            await connection.hold()
                        finally:
                            self._held.pop(connection, None)
                except (trio.BrokenResourceError, trio.TooSlowError):
                    logger.debug("http: a client went away, or did not read its answer")

        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket.dup()))
        await trio.serve_listeners(serve_connection, [listener])
        raise AssertionError("listeners do not end")

    def _make_room(self) -> bool:
        """Close the oldest of the connections whose client is waited for, if there is one."""
        for connection, scope in self._held.items():
            if not connection.is_at_work:
                del self._held[connection]
                scope.cancel()
                return True
        return False


class _Connection:
    def __init__(
        self,
        stream: trio.SocketStream,
        pages: Mapping[str, Page],
        logger: logging.Logger,
        *,
        names_matter: bool,
    ) -> None:
        self._stream = stream
        self._pages = pages
        self._logger = logger
        self._names_matter = names_matter
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_SIZE)
        self._request: h11.Request | None = None
        """The one that is being answered."""
        self.is_at_work = False
        """It is not the client that is waited for."""

    async def hold(self) -> None:
        """Answer requests until one side has had enough."""
        while True:
            try:
                with trio.move_on_after(IDLE_SECONDS):
                    self._request = await self._next_request()
            except h11.RemoteProtocolError as error:
                await self.refuse(HTTPStatus(error.error_status_hint), str(error))
                await self._drain()
                return
            if self._request is None:
                return
            await self._answer(self._request)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()
            self._request = None

    async def refuse(self, status: HTTPStatus, why: str) -> None:
        """The last answer of the connection."""
        await self._say(status, f"{why}\n".encode(), [("Connection", "close")])

    async def _next_request(self) -> h11.Request | None:
        """None where there is none."""
        request = None
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some(_READ_SIZE))
            elif isinstance(event, h11.Request):
                request = self._request = event
                headers = dict(event.headers)
                if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
                    raise h11.RemoteProtocolError("no body is taken", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            elif isinstance(event, h11.EndOfMessage):
                return request
            else:
                return None

    async def _answer(self, request: h11.Request) -> None:
        host, path = _asked(request)
        page = self._pages.get(path)
        if self._names_matter and not _is_address(host):
            await self._say(HTTPStatus.MISDIRECTED_REQUEST, b"ask by address, or as localhost\n")
        elif page is None:
            await self._say(HTTPStatus.NOT_FOUND, f"what there is: {' '.join(self._pages)}\n".encode())
        elif request.method not in _METHODS:
            allowed = ("Allow", b", ".join(_METHODS).decode())
            await self._say(HTTPStatus.METHOD_NOT_ALLOWED, b"this is for reading only\n", [allowed])
        else:
            self.is_at_work = True
            try:
                content = await page.content()
            except Exception:
                self._logger.exception("http: a bug in %s", path)
                await self._say(HTTPStatus.INTERNAL_SERVER_ERROR, b"a bug: the log has the details\n")
                return
            finally:
                self.is_at_work = False
            policy = ("Content-Security-Policy", page.security_policy)
            await self._say(HTTPStatus.OK, content, [policy], content_type=page.content_type)

    async def _say(
        self,
        status: HTTPStatus,
        content: bytes,
        more: Iterable[tuple[str, str]] = (),
        *,
        content_type: str = _PLAIN,
    ) -> None:
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", content_type),
            ("Content-Length", str(len(content))),
            *_EVERYWHERE,
            *more,
        ]
        response = h11.Response(status_code=status, headers=headers, reason=status.phrase.encode())
        parts: list[h11.Event] = [response, h11.Data(data=content), h11.EndOfMessage()]
        if self._request is not None and self._request.method == b"HEAD":
            del parts[1]
        message = b"".join(self._http.send(part) or b"" for part in parts)
        with trio.fail_after(WRITE_SECONDS):
            await self._stream.send_all(message)

    async def _drain(self) -> None:
        """Take what still comes: if it were unread at the end, the kernel would take the answer back."""
        with trio.move_on_after(_DRAIN_SECONDS):
            await self._stream.send_eof()
            while await self._stream.receive_some(_READ_SIZE):
                pass


def _asked(request: h11.Request) -> tuple[str | None, str]:
    """The host, if one is named, and the path. In an absolute target it is its host that counts (RFC 9112,
    section 3.2.2).
    """
    target = request.target.decode("ascii").partition("?")[0]
    scheme, _, rest = target.partition("://")
    if scheme.lower() == "http":
        authority, _, path = rest.partition("/")
        return authority, f"/{path}"
    field = dict(request.headers).get(b"host")
    return None if field is None else field.decode("latin-1"), target


def _is_address(host: str | None) -> bool:
    """Whether it is an IP address or localhost, with or without a port, or is missing."""
    if host is None:
        return True
    name = host.lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name == "localhost":
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _listen(address: Endpoint) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((str(address.address), address.port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        why = _REASONS.get(error.errno or 0, error.strerror)
        raise HostError(f"metrics cannot be served at {address}: {why}") from None
    return listening
