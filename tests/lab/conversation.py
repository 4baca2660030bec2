"""Clients that choose how their request is cut into segments, and what they are answered."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lab import Host

VIP_ADDRESS = "192.168.33.10"
VIP = f"http://{VIP_ADDRESS}"
PROGRAM = Path(__file__).with_name("talker.py")


@dataclass(frozen=True, slots=True)
class Client:
    """One connection, which reads until the server ends it."""

    chunks: tuple[bytes, ...]
    """Each is written at once."""
    nodelay: bool = True
    ending: Literal["open", "behind_last_segment", "in_last_segment"] = "open"
    """Where the client's FIN is, if it sends one before the server has."""


@dataclass(frozen=True, slots=True)
class Answer:
    data: bytes
    """All that came."""
    error: str
    """Name of the exception that ended the connection, empty where the server closed it orderly."""
    client_port: int

    @property
    def status(self) -> int:
        """Of the first response; 0 where there is none."""
        words = self.data.split(b" ", 2)
        return int(words[1]) if words[0].startswith(b"HTTP/1.") else 0

    @property
    def body(self) -> bytes:
        """Of the only response, decoded where it came in chunks."""
        head, _, body = self.data.partition(b"\r\n\r\n")
        return _joined(body) if b"\r\nTransfer-Encoding: chunked" in head else body

    @property
    def node(self) -> str:
        """Which one answered, by the first response's X-Node."""
        _, _, rest = self.data.partition(b"\r\nX-Node: ")
        return rest.partition(b"\r\n")[0].decode()


def request(target: str, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
    """After its answer, NGINX closes the connection."""
    lines = [f"{method} {target} HTTP/1.1", "Host: lab", "Connection: close", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def converse(
    host: Host, clients: Iterable[Client], *, address: str = VIP_ADDRESS, pause: float = 0.0
) -> list[Answer]:
    """What each client is answered. All are connected before the first one speaks. With a ``pause`` (seconds)
    the chunks of all are sent in turns; without one each client sends all its chunks in a row.
    """
    described = [asdict(client) for client in clients]
    for client in described:
        client["chunks"] = [chunk.decode("latin-1") for chunk in client["chunks"]]
    told = {"address": address, "port": 80, "pause": pause, "clients": described}
    said = host.run([sys.executable, str(PROGRAM)], input=json.dumps(told), timeout=150).stdout
    return [
        Answer(answer["answer"].encode("latin-1"), answer["error"], answer["port"])
        for answer in json.loads(said)
    ]


def _joined(body: bytes) -> bytes:
    """The chunks' data (RFC 9112 section 7.1). Raises ValueError where the last chunk is missing."""
    data = b""
    while True:
        size_line, found, body = body.partition(b"\r\n")
        size = int(size_line, 16)
        if not size or not found:
            return data
        data += body[:size]
        body = body[size + 2 :]
