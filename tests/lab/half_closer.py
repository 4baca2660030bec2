"""A server that half-closes, for a node's backend address: a program that runs in a lab's namespace.

    python half_closer.py 192.168.33.30

Of requests that begin with `GET /before` it reads the head, answers and ends its side, and then reads all
that the client still says. Of others it reads everything first, and answers when the client has ended its
side. The answer is always `HTTP/1.0 200 OK`, an empty line and what was read so far. Each connection is one
line of its log: the number of bytes that came, and their md5.
"""

import hashlib
import socket
import sys

PORT = 80
HEAD = b"HTTP/1.0 200 OK\r\n\r\n"


def main() -> None:
    listener = socket.create_server((sys.argv[1], PORT))
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            print(serve(connection), flush=True)


def serve(connection: socket.socket) -> str:
    try:
        received = read_head(connection)
        if received.startswith(b"GET /before"):
            connection.sendall(HEAD + received)
            connection.shutdown(socket.SHUT_WR)
            received = read_on(connection, received)
        else:
            received = read_on(connection, received)
            connection.sendall(HEAD + received)
    except OSError as error:
        return type(error).__name__
    return f"{len(received)} {hashlib.md5(received).hexdigest()}"


def read_head(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
        received += byte
    return received


def read_on(connection: socket.socket, received: bytes) -> bytes:
    """``received`` and all that comes until the client ends its side."""
    pieces = [received]
    while more := connection.recv(1 << 20):
        pieces.append(more)
    return b"".join(pieces)


if __name__ == "__main__":
    main()
