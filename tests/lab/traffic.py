"""Clients that go on while something happens to a lab's hosts.

To each node there is a slow download, and a connection that is kept for a request now and then; and there is
one fresh request after the other, by a connection each.

    with traffic(lab) as going:
        ...
        going.must_go_on()
    assert going.failures() == []
"""

import mmap
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from lab import Lab
from tests.lab.conversation import VIP
from tests.lab.fetch import curl
from tests.lab.sockets import PATIENCE_SECONDS, ask, await_that, connection, say

RATE = 400_000
"""Of a download, in bytes a second."""
GOING_ON_BYTES = 100_000
GOING_ON_REQUESTS = 10
NODES = ("node1", "node2", "node3")
_TARGETS = 12
_CLIENTS = 3
_PAUSE_SECONDS = 0.03


class Request(NamedTuple):
    begun: float
    """By `time.monotonic`."""
    ended: float
    node: str
    error: str
    """Empty where the answer was as it should be."""


class Traffic:
    def __init__(self, lab: Lab, content: mmap.mmap, patience: float) -> None:
        self._lab = lab
        self._patience = patience
        self._content = content
        self._stopped = threading.Event()
        self._requests: list[Request] = []
        self._received: dict[str, int] = {}
        """By node, of its download."""
        self._complaints: list[str] = []

    def must_go_on(self, *, nodes: Collection[str] = NODES, seconds: float = PATIENCE_SECONDS) -> None:
        """From now on: every download, the kept connections, and fresh requests, to these ``nodes`` at least.
        LabError where that takes longer.
        """
        now, before = time.monotonic(), dict(self._received)

        def goes_on() -> bool:
            fresh = [request for request in list(self._requests) if request.begun >= now]
            good = [request.node for request in fresh if not request.error]
            downloads = (self._received[node] - before[node] for node in before)
            return bool(self._complaints) or (
                len(good) >= GOING_ON_REQUESTS * bool(nodes)
                and {*good} >= {*nodes}
                and all(more >= GOING_ON_BYTES for more in downloads)
            )

        await_that(goes_on, seconds)
        assert self._complaints == [], self._complaints
        for node, (client, target) in self._kept.items():
            assert ask(client, target).node == node

    def failures(self, *, besides: tuple[float, float] | None = None) -> list[str]:
        """Of fresh requests, but for those that overlap the time between two moments; and of downloads."""
        began, ended = besides or (0.0, 0.0)
        bad = (request for request in self._requests if request.error)
        return [
            *self._complaints,
            *(request.error for request in bad if request.ended < began or request.begun > ended),
        ]

    def count(self) -> int:
        """Fresh requests so far."""
        return len(self._requests)

    def slowest(self) -> float:
        """Seconds of the fresh request that took longest."""
        return max(request.ended - request.begun for request in self._requests)

    @contextmanager
    def run(self) -> Iterator[None]:
        downloads = _by_node(self._lab, lambda number: f"/slow/file/{RATE + number}/100m")
        kept = _by_node(self._lab, lambda number: f"/kept/{number}")
        with ExitStack() as stack:
            self._kept: dict[str, tuple[socket.socket, str]] = {}
            for node, target in kept.items():
                client = stack.enter_context(connection(self._lab))
                assert ask(client, target).node == node
                self._kept[node] = client, target
            self._received = dict.fromkeys(downloads, 0)
            threads = [
                *(threading.Thread(target=self._download, args=item) for item in downloads.items()),
                *(threading.Thread(target=self._request, args=(number,)) for number in range(_CLIENTS)),
            ]
            for thread in threads:
                thread.start()
                stack.callback(thread.join)
            stack.callback(self._stopped.set)
            self.must_go_on()
            yield

    def _download(self, node: str, target: str) -> None:
        try:
            with connection(self._lab) as client:
                say(client, target)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(4096)
                _, _, piece = head.partition(b"\r\n\r\n")
                at = 0
                while not self._stopped.is_set():
                    if piece != self._content[at : at + len(piece)]:
                        self._complaints.append(f"the download from {node} is wrong in bytes {at} and on")
                        return
                    at += len(piece)
                    self._received[node] = at
                    piece = client.recv(1 << 16)
                    if not piece:
                        self._complaints.append(f"the download from {node} ended early")
                        return
        except OSError as error:
            self._complaints.append(f"the download from {node}: {error!r}")

    def _request(self, number: int) -> None:
        count = 0
        while not self._stopped.wait(_PAUSE_SECONDS):
            count += 1
            begun, node, error = time.monotonic(), "", ""
            target = f"/fresh/{number}/{count}"
            try:
                with connection(self._lab) as client:
                    client.settimeout(self._patience)
                    said = ask(client, target)
                node = said.node
                if said.body.decode() != f"{node} {target}\n":
                    error = f"{target}: {said}"
            except OSError as trouble:
                error = f"{target}: {trouble!r}"
            self._requests.append(Request(begun, time.monotonic(), node, error))


@contextmanager
def traffic(lab: Lab, *, patience: float = PATIENCE_SECONDS) -> Iterator[Traffic]:
    """It goes when the block begins, and ends with it. A fresh request waits ``patience`` seconds."""
    path = lab.content.path("100m")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        going = Traffic(lab, content, patience)
        with going.run():
            yield going


def _by_node(lab: Lab, target: Callable[[int], str]) -> Mapping[str, str]:
    """A target of each node, by its name."""
    targets = [target(number) for number in range(_TARGETS)]
    said = curl(lab.client, "-I", "-H", "Connection: close", *(VIP + each for each in targets))
    found = dict(zip(re.findall(r"X-Node: (\w+)\r\n", said), targets, strict=True))
    assert {*found} == {node.name for node in lab.topology.nodes}
    return found
