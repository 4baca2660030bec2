"""HTTP/1.1 on top of model endpoints: a server that knows every object, and a client."""

import functools
import hashlib
import random
from typing import NamedTuple

from tests.sim.endpoint import Connection
from tests.sim.segment import Socket


@functools.cache
def body_of(path: str) -> bytes:
    """What a server answers to a GET of ``/name/size``: bytes that only this path has."""
    size = path.partition("?")[0].rpartition("/")[2]
    return random.Random(path).randbytes(int(size) if size.isdigit() else 100)


class Served(NamedTuple):
    """A request that a server has carried out."""

    method: str
    path: str
    body: bytes
    client: Socket


class Server:
    """One connection's application. Carried out requests are appended to ``log``."""

    def __init__(self, log: list[Served], answer_delay: float = 0.0) -> None:
        self._log = log
        self._received = b""
        self._ended = False
        self._busy = 0
        self._delay = answer_delay

    def on_open(self, connection: Connection) -> None: ...

    def on_data(self, connection: Connection, data: bytes) -> None:
        self._received += data
        while self._carry_out(connection):
            pass

    def on_end(self, connection: Connection) -> None:
        self._ended = True
        if not self._busy:
            connection.close()

    def on_reset(self, connection: Connection) -> None: ...

    def _carry_out(self, connection: Connection) -> bool:
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        if not blank:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(fields.get("content-length", "0"))
        if len(rest) < size:
            return False
        body, self._received = rest[:size], rest[size:]
        self._log.append(Served(method, path, body, connection.remote))
        closes = fields.get("connection") == "close"
        self._busy += 1
        connection.owner.timeline.after(
            self._delay, lambda: self._answer(connection, method, path, body, closes)
        )
        return bool(self._received)

    def _answer(self, connection: Connection, method: str, path: str, body: bytes, closes: bool) -> None:
        self._busy -= 1
        content = body_of(path) if method != "POST" else hashlib.sha256(body).hexdigest().encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        connection.write(head + (b"" if method == "HEAD" else content))
        if closes or (self._ended and not self._busy):
            connection.close()


def request(method: str, path: str, body: bytes = b"", close: bool = False) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: example.test"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Response(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes


class Fetch:
    """One connection of a client: what it writes and when, and what came back."""

    def __init__(
        self,
        writes: list[tuple[float, bytes]],
        half_closes: bool = False,
        heads: frozenset[int] = frozenset(),
    ) -> None:
        """``writes``: seconds after the handshake, and bytes. ``heads``: which answers have no body."""
        self.connection: Connection
        self.received = bytearray()
        self.opened_at: float | None = None
        self.has_ended = self.was_reset = False
        self._writes = writes
        self._half_closes = half_closes
        self._heads = heads

    def on_open(self, connection: Connection) -> None:
        self.opened_at = connection.now
        for at, data in self._writes:
            if at:
                connection.owner.timeline.after(at, functools.partial(connection.write, data))
            else:
                connection.write(data)
        if self._half_closes:
            connection.close()

    def on_data(self, connection: Connection, data: bytes) -> None:  # noqa: ARG002
        self.received += data

    def on_end(self, connection: Connection) -> None:
        self.has_ended = True
        connection.close()

    def on_reset(self, connection: Connection) -> None:  # noqa: ARG002
        self.was_reset = True

    @property
    def is_over(self) -> bool:
        return self.has_ended or self.was_reset

    def responses(self) -> list[Response]:
        """The complete ones so far."""
        found: list[Response] = []
        rest = bytes(self.received)
        while rest:
            head, blank, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            size = 0 if len(found) in self._heads else int(fields.get("content-length", "0"))
            if not blank or len(rest) < size:
                break
            found.append(Response(int(first.split(" ")[1]), fields, rest[:size]))
            rest = rest[size:]
        return found
