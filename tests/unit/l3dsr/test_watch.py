"""The live screen on a real pseudo-terminal."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from l3dsr import watch
from tests.unit.l3dsr import reports
from tests.unit.l3dsr.daemon import answering

ON, OFF = b"\x1b[?1049h", b"\x1b[?1049l"


class Screen:
    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master = master
        self.process = process
        self.seen = b""

    def read_until(self, wanted: bytes, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while wanted not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:  # the other side has closed
                    break
        assert wanted in self.seen


@contextmanager
def watching(directory: Path, rows: int = 24, columns: int = 80) -> Iterator[Screen]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    before = termios.tcgetattr(slave)
    command = [sys.executable, "-m", "l3dsr", "status", "--watch", "--state-dir", str(directory)]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    try:
        yield Screen(master, process)
        assert termios.tcgetattr(slave) == before
    finally:
        process.kill()
        process.wait(60)
        os.close(master)
        os.close(slave)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with answering(tmp_path / "balancer.sock", {"status": lambda _: [reports.BALANCER]}):
        yield tmp_path


def test_q_ends_it_and_gives_the_terminal_back(directory: Path) -> None:
    with watching(directory) as screen:
        screen.read_until(b"balancer 0.2.0")
        assert screen.seen.startswith(ON)
        os.write(screen.master, b"q")
        screen.read_until(OFF)
        assert screen.process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_give_the_terminal_back(directory: Path, number: signal.Signals) -> None:
    with watching(directory) as screen:
        screen.read_until(b"balancer 0.2.0")
        screen.process.send_signal(number)
        screen.read_until(OFF)
        assert screen.process.wait(60) == 0


def test_it_is_not_suspended_with_the_screen_taken(directory: Path) -> None:
    with watching(directory) as screen:
        screen.read_until(b"balancer 0.2.0")
        screen.process.send_signal(signal.SIGTSTP)
        os.write(screen.master, b"q")
        screen.read_until(OFF)
        assert screen.process.wait(60) == 0


def test_a_small_screen_gets_what_it_has_room_for(directory: Path) -> None:
    with watching(directory, rows=6, columns=30) as screen:
        screen.read_until(b"more lines")
        os.write(screen.master, b"q")
        screen.read_until(OFF)
        screen.process.wait(60)
    frame = screen.seen.split(b"\x1b[H")[1].split(b"\x1b[J")[0]
    lines = [line.replace(b"\x1b[K", b"").decode() for line in frame.split(b"\r\n")]
    assert len(lines) == 6
    assert max(map(len, lines)) == 30


def test_a_daemon_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    with watching(tmp_path) as screen:
        screen.read_until(b"no answer: no daemon listens on")
        with answering(tmp_path / "balancer.sock", {"status": lambda _: [reports.BALANCER]}):
            screen.read_until(b"balancer 0.2.0")
            os.write(screen.master, b"q")
            screen.read_until(OFF)
            assert screen.process.wait(60) == 0


def test_lines_are_cut_with_a_mark() -> None:
    assert watch.fitted(["abcdef", "ab"], 4, 5) == ["abc…", "ab"]
    assert watch.fitted(["a", "b", "c"], 20, 2) == ["a", "... 2 more lines"]
