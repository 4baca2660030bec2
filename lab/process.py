"""A program that runs in the background of a lab, with a log file and an end."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.errors import LabError

POLL_SECONDS = 0.01
SHOWN_LOG_BYTES = 4000


class Process:
    """Runs `argv` in a process group of its own; stdout and stderr go to the file `log`."""

    def __init__(self, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.argv = list(argv)
        self.log = log
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal's number where a signal ended it."""
        return self._child.poll()

    def read_log(self) -> str:
        return self.log.read_text(errors="replace")

    def send_signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """The exit code. Raises LabError where the program still runs after `timeout` seconds."""
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(self._complaint(f"still runs after {timeout} s")) from None

    def wait_for(self, text: str, timeout: float = 30) -> None:
        """Until the log says `text`. Raises LabError showing the log where the program ends first, or does
        not say so within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = not self.running
            if text in self.read_log():
                return
            if ended:
                raise LabError(self._complaint(f"ended with {self.returncode} before it said {text!r}"))
            if time.monotonic() > deadline:
                raise LabError(self._complaint(f"did not say {text!r} within {timeout} s"))
            time.sleep(POLL_SECONDS)

    def begin_stop(self) -> None:
        """SIGTERM, without waiting for the end."""
        self._child.terminate()

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM, and SIGKILL after `timeout` seconds: a return code of -9 tells that it was needed."""
        if self.running:
            self.begin_stop()
            try:
                return self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                self._child.kill()
        return self._child.wait()

    def kill(self) -> int:
        """SIGKILL: the program cannot clean up after itself."""
        self._child.kill()
        return self._child.wait()

    def _complaint(self, what: str) -> str:
        tail = self.log.read_bytes()[-SHOWN_LOG_BYTES:].decode(errors="replace")
        return f"{' '.join(self.argv)} {what}; {self.log}:\n{tail}"
