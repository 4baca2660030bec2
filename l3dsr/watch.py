"""A page of text that is shown anew every second, as on a live screen, by plain ANSI sequences.

The terminal's alternate screen is used, and the terminal is given back as it was, whatever ends it.
"""

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from common.config import ConfigError
from common.control_client import ControlError

PERIOD_SECONDS = 1.0
_ALTERNATE_ON, _ALTERNATE_OFF = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_QUIT = b"qQ\x03\x04"
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class _Ended(BaseException):
    """A signal came. Not an `Exception`: nothing but `run` is to catch it."""


def run(page: Callable[[], Sequence[str]], period: float = PERIOD_SECONDS) -> int:
    """Until somebody types q or Ctrl-C. `ConfigError` where there is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("--watch needs a terminal: use `l3dsr status`, or --json for programs")
    terminal = sys.stdin.fileno()
    try:
        with _screen(terminal):
            while True:
                _show(_lines_of(page))
                if _is_quit(terminal, period):
                    return 0
    except _Ended:
        return 0


def _lines_of(page: Callable[[], Sequence[str]]) -> Sequence[str]:
    stamp = time.strftime("%H:%M:%S") + "  (q ends)"
    try:
        return [stamp, "", *page()]
    except ControlError as error:
        return [stamp, "", f"no answer: {error}"]


def fitted(lines: Sequence[str], columns: int, rows: int) -> list[str]:
    """As much of ``lines`` as the screen has room for; where some do not fit, the last row says so."""
    if len(lines) > rows:
        lines = [*lines[: rows - 1], f"... {len(lines) - rows + 1} more lines"]
    return [line if len(line) <= columns else line[: max(columns - 1, 0)] + "…" for line in lines]


def _show(lines: Sequence[str]) -> None:
    size = os.get_terminal_size(sys.stdout.fileno())
    shown = fitted(lines, size.columns, size.lines)
    sys.stdout.write(_HOME + f"{_CLEAR_LINE}\n".join(shown) + _CLEAR_LINE + _CLEAR_BELOW)
    sys.stdout.flush()


def _is_quit(terminal: int, seconds: float) -> bool:
    """Wait, until somebody types something at the latest."""
    readable, _, _ = select.select([terminal], [], [], seconds)
    if not readable:
        return False
    typed = os.read(terminal, 64)
    return not typed or any(key in _QUIT for key in typed)


@contextmanager
def _screen(terminal: int) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    handlers = {number: signal.signal(number, _end) for number in _ENDING}
    handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        tty.setcbreak(terminal)
        sys.stdout.write(_ALTERNATE_ON)
        yield
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        try:
            sys.stdout.write(_ALTERNATE_OFF)
            sys.stdout.flush()
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        except (OSError, termios.error):  # the terminal itself is gone
            pass
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(_number: int, _frame: object) -> None:
    raise _Ended
