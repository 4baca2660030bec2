"""Sockets that this process has in the lab's namespaces.

A socket belongs to the namespace in which it was made, whichever thread uses it later, so a thread that
enters the namespace, makes it and ends is enough.
"""

import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPResponse
from typing import NamedTuple, TypeVar

from lab import Host, Lab, LabError
from lab.process import POLL_SECONDS
from tests.lab.conversation import VIP_ADDRESS

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
PATIENCE_SECONDS = 30.0
Result = TypeVar("Result")


class Response(NamedTuple):
    status: int
    node: str
    """X-Node."""
    backend: str
    """X-Backend."""
    body: bytes


def inside(host: Host, function: Callable[[], Result]) -> Result:
    """What ``function`` returns in the host's namespace."""

    def enter() -> Result:
        namespace = os.open(f"/run/netns/{host.namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(namespace, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter {host.namespace}")
        finally:
            os.close(namespace)
        return function()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(enter).result()


def socket_in(host: Host, *kind: int) -> socket.socket:
    """``kind`` is what `socket.socket` wants: family, type, protocol."""
    return inside(host, lambda: socket.socket(*kind))


@contextmanager
def connection(
    lab: Lab, *, port: int = 0, address: str = VIP_ADDRESS, vip_port: int = 80, receive_buffer: int = 0
) -> Iterator[socket.socket]:
    """From the client's main address and ``port``, which may have connections elsewhere, too."""
    with socket_in(lab.client, socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE_SECONDS)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.bind((str(lab.topology.client.addresses[0]), port))
        client.connect((address, vip_port))
        yield client


def abort(client: socket.socket) -> None:
    """Close with a RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def say(client: socket.socket, target: str, *fields: str, method: str = "GET", body: bytes = b"") -> None:
    """A request after whose answer the connection stays."""
    lines = [f"{method} {target} HTTP/1.1", "Host: lab", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    client.sendall("".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body)


def hear(client: socket.socket) -> Response:
    with HTTPResponse(client) as response:
        response.begin()
        headers = response.headers
        return Response(
            response.status, headers.get("X-Node", ""), headers.get("X-Backend", ""), response.read()
        )


def ask(client: socket.socket, target: str) -> Response:
    say(client, target)
    return hear(client)


def await_that(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Raises LabError where it does not come about within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not so within {seconds} s")
        time.sleep(POLL_SECONDS)


def sockets_of(host: Host, client_port: int) -> list[str]:
    """States of the host's TCP sockets whose peer has this port."""
    shown = host.run(["ss", "-Htan", "dport", "=", f":{client_port}"]).stdout
    return [line.split()[0] for line in shown.splitlines()]
