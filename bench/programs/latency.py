"""Run as a program on the lab's client: HOST PORT kept|fresh COUNT PAUSE PATH...

Makes COUNT requests one after the other for the PATHs in turn, PAUSE seconds apart: all over one
connection, or each over one of its own. Prints the seconds of each as a JSON list; over a fresh
connection they are those from the call of connect to the end of the answer.
"""

import json
import socket
import sys
import time
from itertools import cycle, islice

TIMEOUT_SECONDS = 5
READ_BYTES = 65536


def request(host: str, path: str, *, close: bool) -> bytes:
    further = "Connection: close\r\n" if close else ""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{further}\r\n".encode()


def read_answer(connection: socket.socket) -> None:
    """Raises ConnectionError where the answer is not a 200 with all of its body."""
    answer = b""
    while True:
        received = connection.recv(READ_BYTES)
        answer += received
        head, blank, body = answer.partition(b"\r\n\r\n")
        if not received or not answer.startswith(b"HTTP/1.1 200 "[: len(answer)]):
            raise ConnectionError(f"answered {answer[:80]!r}")
        if blank and len(body) >= content_length(head):
            return


def content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ConnectionError(f"answered without a length: {head[:80]!r}")


def over_fresh_connection(address: tuple[str, int], path: str) -> float:
    asked = request(address[0], path, close=True)
    started = time.perf_counter()
    with socket.create_connection(address, TIMEOUT_SECONDS) as connection:
        connection.sendall(asked)
        read_answer(connection)
        return time.perf_counter() - started


def over_kept_connection(connection: socket.socket, host: str, path: str) -> float:
    asked = request(host, path, close=False)
    started = time.perf_counter()
    connection.sendall(asked)
    read_answer(connection)
    return time.perf_counter() - started


def main() -> None:
    host, port, kind, count, pause = sys.argv[1:6]
    address = (host, int(port))
    paths = islice(cycle(sys.argv[6:]), int(count))
    times = []
    if kind == "fresh":
        for path in paths:
            times.append(over_fresh_connection(address, path))
            time.sleep(float(pause))
    else:
        with socket.create_connection(address, TIMEOUT_SECONDS) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for path in paths:
                times.append(over_kept_connection(connection, host, path))
                time.sleep(float(pause))
    print(json.dumps(times))


if __name__ == "__main__":
    main()
