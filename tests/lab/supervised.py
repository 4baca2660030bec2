"""Daemons as a service manager starts them: with a socket for notifications, a watchdog, and a standard error
of its choice.
"""

import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from lab import Lab, Process

WATCHDOG_SECONDS = 1.5


class Manager:
    """Its end of the notification protocol (sd_notify(3)); `said` is what has come, in order."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.said: list[str] = []

    def __enter__(self) -> Self:
        directory = self._stack.enter_context(tempfile.TemporaryDirectory())
        self.path = Path(directory) / "notify"
        self._socket = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._socket.bind(str(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """What a process that it starts is told. No WATCHDOG_PID: the pid is not known before the start."""
        microseconds = round(WATCHDOG_SECONDS * 1e6)
        return {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": str(microseconds)}

    def hear(self, within: float) -> str | None:
        """The next message, None where there is none ``within`` seconds."""
        self._socket.settimeout(within)
        try:
            self.said.append(self._socket.recv(4096).decode())
        except (TimeoutError, BlockingIOError):
            return None
        return self.said[-1]

    def hear_until(self, start: str, within: float) -> str:
        """The first message that starts so, of those that come with no pause as long as ``within``."""
        while (message := self.hear(within)) is not None:
            if message.startswith(start):
                return message
        raise AssertionError(f"no {start}, but {self.said}")


@contextmanager
def environment(added: Mapping[str, str]) -> Iterator[None]:
    """Of all that is started meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in added.items():
            patch.setenv(name, value)
        yield


def start_again(lab: Lab, role: str, *options: str) -> Process:
    """The role is `balancer` or a node's name."""
    if role == "balancer":
        return lab.start_balancer(*options)
    return lab.start_packetbridge(role, *options)
