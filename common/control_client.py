"""The client's side of a control socket (docs/control.md), blocking."""

import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

ANSWER_SECONDS = 30.0
"""Within which each line of an answer must come."""
_READ_SIZE = 64 * 1024
_TIMEVAL = struct.Struct("@ll")


class ControlError(Exception):
    """What was asked for did not happen. One line: why, and what to do."""


class NotRunningError(ControlError):
    """There is no daemon at the socket."""


class NotAllowedError(ControlError):
    """The socket is not for this user."""


def ask(path: Path, do: str, /, *, within: float = ANSWER_SECONDS, **arguments: Any) -> Iterator[Any]:
    """Ask the daemon at ``path``, and yield the values of its answer as they come.

    ``within`` is how many seconds may pass between two of them. `ControlError` with the daemon's own words
    if it refuses, at the start or after some values. The connection is closed with the generator.
    """
    request = _request(do, arguments)
    with _connected(path, within) as connection:
        try:
            connection.sendall(request)
        except BrokenPipeError:
            pass  # it has refused the connection, and what it said comes below
        for line in _lines(connection, path, within):
            message = _message(line, path)
            if "value" in message:
                yield message["value"]
            elif "error" in message:
                raise ControlError(str(message["error"]))
            elif "ok" in message:
                return
            else:
                raise _stranger(path)
    raise ControlError(f"the daemon at {path} broke off its answer: see its log")


def ask_once(path: Path, do: str, /, *, within: float = ANSWER_SECONDS, **arguments: Any) -> Any:
    """The value of a command that answers with one, or None if it answers with none."""
    return next(iter(list(ask(path, do, within=within, **arguments))), None)


def _request(do: str, arguments: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode({"do": do, **arguments}) + b"\n"
    except UnicodeEncodeError as error:  # what the command line had was not UTF-8
        raise ControlError(
            f"{error.object!r} is not UTF-8: percent-encode it, or see the terminal's locale"
        ) from None


def _message(line: bytes, path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise _stranger(path) from None


def _stranger(path: Path) -> ControlError:
    return ControlError(f"what listens on {path} is no daemon of l3dsr: name the right socket")


def _connected(path: Path, within: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A socket with a timeout of Python's does not wait for room in the backlog (unix(7), EAGAIN).
    seconds = int(within)
    waiting = _TIMEVAL.pack(seconds, round((within - seconds) * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, waiting)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise _explained(path, error) from None
    connection.settimeout(within)
    return connection


def _explained(path: Path, error: OSError) -> ControlError:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            return NotRunningError(f"no daemon listens on {path}: start it, or name its socket")
        case PermissionError():
            return NotAllowedError(f"{path} is not for you: {_way_in(path)}")
        case BlockingIOError():
            return ControlError(f"the daemon at {path} has too many clients: try again later")
    return ControlError(f"cannot connect to {path}: {error.strerror or error}")


def _way_in(path: Path) -> str:
    """A socket is for root, and for its group where it has one of its own."""
    try:
        mode, group = path.stat().st_mode, path.group()
    except (OSError, KeyError):  # its directory is closed, or the group has no name
        return "use sudo"
    if group == "root" or not mode & stat.S_IWGRP:
        return "use sudo"
    return f"add yourself to its group ({group}), or use sudo"


def _lines(connection: socket.socket, path: Path, within: float) -> Iterator[bytes]:
    """Whole lines, until the daemon closes the connection."""
    unread = bytearray()
    while True:
        try:
            received = connection.recv(_READ_SIZE)
        except ConnectionResetError:
            return
        except TimeoutError:
            raise ControlError(f"the daemon at {path} said nothing for {within:g} seconds") from None
        if not received:
            return
        *lines, rest = (unread + received).split(b"\n")
        yield from map(bytes, lines)
        unread = bytearray(rest)
