"""Run as a program on the lab's client: HOST PORT AT_ONCE SECONDS PATH...

Downloads the PATHs in turn, AT_ONCE at the same time, each over a connection of its own that the next one
follows; ends after SECONDS, wherever the downloads are. Prints as JSON what came meanwhile: `seconds`,
`bytes`, `requests` (begun) and `failures` (ended early, or not answered with 200).
"""

import json
import selectors
import socket
import sys
import time
from itertools import cycle

BUFFER_BYTES = 1 << 18
READS_IN_A_ROW = 16
STALL_SECONDS = 5.0


class Download:
    """`left` is None until the head of the answer has told the length."""

    def __init__(self, address: tuple[str, int], path: str) -> None:
        self.connection = socket.create_connection(address, STALL_SECONDS)
        self.connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\n\r\n".encode()
        )
        self.connection.setblocking(False)
        self.left: int | None = None
        self.failed = False

    def read(self, buffer: memoryview) -> int:
        """Bytes that are there now; raises BlockingIOError where there are none."""
        count = self.connection.recv_into(buffer)
        if count and self.left is None:
            head, _, _ = bytes(buffer[:count]).partition(b"\r\n\r\n")
            self.left = _content_length(head) + len(head) + 4
            self.failed = not head.startswith(b"HTTP/1.1 200 ")
        if self.left is not None:
            self.left -= count
        if not count:
            self.failed |= self.left != 0
        return count


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def drain(download: Download, buffer: memoryview) -> tuple[int, bool]:
    """The bytes of a few reads, and whether the server has closed the connection."""
    received = 0
    for _ in range(READS_IN_A_ROW):
        try:
            count = download.read(buffer)
        except BlockingIOError:
            return received, False
        except OSError:
            download.failed = True
            return received, True
        received += count
        if not count:
            return received, True
    return received, False


def main() -> None:
    host, port, at_once, seconds = sys.argv[1:5]
    address = (host, int(port))
    paths = cycle(sys.argv[5:])
    buffer = memoryview(bytearray(BUFFER_BYTES))
    selector = selectors.DefaultSelector()
    requests = failures = received = 0
    started = time.perf_counter()
    ending = started + float(seconds)
    while time.perf_counter() < ending:
        while len(selector.get_map()) < int(at_once):
            download = Download(address, next(paths))
            selector.register(download.connection, selectors.EVENT_READ, download)
            requests += 1
        for key, _ in selector.select(max(0, ending - time.perf_counter())):
            count, closed = drain(key.data, buffer)
            received += count
            if closed:
                failures += key.data.failed
                selector.unregister(key.fileobj)
                key.data.connection.close()
    took = time.perf_counter() - started
    print(json.dumps({"seconds": took, "bytes": received, "requests": requests, "failures": failures}))


if __name__ == "__main__":
    main()
