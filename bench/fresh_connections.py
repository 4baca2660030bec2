"""Run as a program on the lab's client: HOST PORT PATH COUNT PAUSE.

Makes COUNT requests, each over a connection of its own and PAUSE seconds after the last, and prints a
line for each: the seconds from the call of connect to the end of the answer.
"""

import socket
import sys
import time

TIMEOUT_SECONDS = 5
READ_BYTES = 65536


def timed_request(host: str, port: int, request: bytes) -> float:
    """Raises ConnectionError where the answer is not a 200."""
    started = time.perf_counter()
    with socket.create_connection((host, port), TIMEOUT_SECONDS) as connection:
        connection.sendall(request)
        answer = received = connection.recv(READ_BYTES)
        while received:
            received = connection.recv(READ_BYTES)
        ended = time.perf_counter()
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(f"{host}:{port} answered {answer[:80]!r}")
    return ended - started


def main() -> None:
    host, port, path, count, pause = sys.argv[1:]
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    for _ in range(int(count)):
        print(timed_request(host, int(port), request))
        time.sleep(float(pause))


if __name__ == "__main__":
    main()
