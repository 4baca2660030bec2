"""A terminal in which a program runs on a host of the lab."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from lab import Host, LabError

_WINDOW = struct.Struct("=HHHH")
_CHUNK = 1 << 16


class Terminal:
    """The program has it as controlling terminal, so that Ctrl-C reaches it as SIGINT."""

    def __init__(self, host: Host, argv: Sequence[str], *, columns: int = 120, rows: int = 40) -> None:
        self.output = b""
        """All that the program has written so far."""
        self._master, self._slave = pty.openpty()
        self.resize(columns, rows)
        self.before = self.settings()
        self._child = subprocess.Popen(
            ["setsid", "--ctty", "ip", "netns", "exec", host.namespace, *argv],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        os.close(self._slave)
        os.close(self._master)

    def settings(self) -> list[Any]:
        """As tcgetattr(3) has them."""
        return termios.tcgetattr(self._slave)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, _WINDOW.pack(rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def read_until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Raises LabError where it does not come about within ``seconds``."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(
                    f"not so within {seconds} s; the end of what was written: {self.output[-2000:]!r}"
                )
            self._read(0.1)

    def wait(self, seconds: float = 30.0) -> int:
        """The program's exit code, with all that it wrote in `output`."""
        self.read_until(lambda: self._child.poll() is not None, seconds)
        while self._read(0.0):
            pass
        return self._child.wait()

    def _read(self, seconds: float) -> bool:
        readable, _, _ = select.select([self._master], [], [], seconds)
        if readable:
            self.output += os.read(self._master, _CHUNK)
        return bool(readable)
