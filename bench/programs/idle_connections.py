"""Run as a program on the lab's client: HOST PORT PATH COUNT ADDRESS...

Opens COUNT connections from the ADDRESSes in turn, makes one request over each, prints `open COUNT` when
all are answered, and keeps them open until it is ended.
"""

import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator
from itertools import cycle

OPENING_AT_ONCE = 32
STALL_SECONDS = 10
IP_BIND_ADDRESS_NO_PORT = 24
READ_BYTES = 65536


class Opening:
    """Connections on their way: each is asked the request once it stands, and kept once it is answered."""

    def __init__(self, address: tuple[str, int], sources: list[str], request: bytes) -> None:
        self.kept: list[socket.socket] = []
        self._address = address
        self._sources = cycle(sources)
        self._request = request
        self._selector = selectors.DefaultSelector()

    @property
    def under_way(self) -> int:
        return len(self._selector.get_map())

    def begin(self) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((next(self._sources), 0))
        try:
            connection.connect(self._address)
        except BlockingIOError:
            pass
        self._selector.register(connection, selectors.EVENT_WRITE)

    def advance(self) -> None:
        """Raises OSError where a connection fails, TimeoutError where nothing happens any more."""
        events = self._selector.select(STALL_SECONDS)
        if not events:
            raise TimeoutError(f"{len(self.kept)} connections stand, and no other one does")
        for connection in self._ready(events):
            answer = connection.recv(READ_BYTES)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise ConnectionError(f"answered {answer[:80]!r}")
            self._selector.unregister(connection)
            self.kept.append(connection)

    def _ready(self, events: list[tuple[selectors.SelectorKey, int]]) -> Iterator[socket.socket]:
        """Those that have an answer; those that stand are asked."""
        for key, event in events:
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if event & selectors.EVENT_WRITE:
                connection.sendall(self._request)
                self._selector.modify(connection, selectors.EVENT_READ)
            else:
                yield connection


def main() -> None:
    host, port, path, count = sys.argv[1:5]
    wanted = int(count)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    opening = Opening((host, int(port)), sys.argv[5:], request)
    begun = 0
    said_at = time.monotonic()
    while len(opening.kept) < wanted:
        while begun < wanted and opening.under_way < OPENING_AT_ONCE:
            opening.begin()
            begun += 1
        opening.advance()
        if time.monotonic() > said_at + 1:
            print(f"{len(opening.kept)} of {wanted}", flush=True)
            said_at = time.monotonic()
    print(f"open {wanted}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
