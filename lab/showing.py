"""How the demo shows what it does: steps with their time, bars, commands as a user types them."""

import shlex
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.host import Host
from lab.process import Process

BAR_WIDTH = 40
COLUMNS = 100
INDENT = " " * 5
SIGN_SECONDS = 0.2

_last_sign = 0.0


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """`share` of `width` cells in eighths of a cell, at least one of them."""
    eighths = max(1, round(share * width * 8))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def show(text: str) -> None:
    print(INDENT + text)


def show_bar(name: str, value: float, longest: float, text: str) -> None:
    """`longest` is the value of a bar of full length."""
    show(f"{name:14}{bar(value / longest):{BAR_WIDTH}}  {text}")


def show_command(host: Host, process: Process) -> None:
    """As a user would type it on that host."""
    entering = ["ip", "netns", "exec", host.namespace]
    program, *options = process.argv[len(entering) :]
    typed = shlex.join([Path(program).name, *options])
    indent = INDENT + " " * len(prompt := f"{host.name}# ")
    lines = textwrap.wrap(
        prompt + typed,
        COLUMNS,
        initial_indent=INDENT,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print(" \\\n".join(lines))


def sign_of_life() -> None:
    """A dot, now and then, however often it is called."""
    global _last_sign  # noqa: PLW0603 - there is one terminal
    now = time.monotonic()
    if now - _last_sign >= SIGN_SECONDS:
        _last_sign = now
        print(".", end="", flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Says what is going on, and how long it took."""
    started = time.monotonic()
    print(f" * {title} ", end="", flush=True)
    yield
    print(f" {time.monotonic() - started:.1f} s")
