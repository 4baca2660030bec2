"""The service manager's notification protocol (sd_notify(3), sd_watchdog_enabled(3)).

Without $NOTIFY_SOCKET, that is outside of systemd, nothing is sent. What cannot be sent is nobody's loss.
"""

import os
import socket
import time

import trio

_PER_PERIOD = 3
"""Signs of life within the time that the manager waits for one."""


def ready() -> None:
    """Also after `reloading`."""
    _send("READY=1")


def reloading() -> None:
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    _send("STOPPING=1")


def watchdog_seconds() -> float | None:
    """How long the manager waits for a sign of life; None where it does not, or means another process."""
    period = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not (period.isascii() and period.isdigit() and int(period) and meant == str(os.getpid())):
        return None
    return int(period) / 1e6


async def keep_watchdog() -> None:
    """Give signs of life for as long as the loop that runs this goes round, where somebody waits for them."""
    seconds = watchdog_seconds()
    while seconds is not None:
        _send("WATCHDOG=1")
        await trio.sleep(seconds / _PER_PERIOD)


def _send(message: str) -> None:
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.sendto(message.encode(), address)
        except OSError:  # a manager that does not listen
            pass
