"""A daemon's control socket: requests and answers as JSON lines over a Unix stream socket (docs/control.md).

Who asks may be broken or hostile: connections are bounded in number, requests in size, and waiting for a
client in time. Where there are too many, one that keeps the daemon waiting makes room. An answer is written
as it is made, so that a client that reads slowly holds up its own command and nothing else.

    owned.enter_context(closing(control := ControlSocket(path, group)))
    nursery.start_soon(control.serve, {"status": Command(Arguments, status)}, logger)
"""

import fcntl
import grp
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec
import trio

from common.commands import CHANGES, Arguments
from common.config import ConfigError
from common.net.errors import HostError

DEFAULT_GROUP = "l3dsr"
"""Who may use the socket besides root, if there is such a group."""
CLIENTS = 32
REQUEST_SIZE = 64 * 1024
"""Of a line, in bytes."""
IDLE_SECONDS = 10.0
"""Within which a connection must bring a whole request, the next one counting from the answer before."""
WRITE_SECONDS = 10.0
"""Within which a client must have taken a line of an answer."""
_BACKLOG = 2 * CLIENTS
_READ_SIZE = 4096
_MODE = 0o660
_PEER_CREDENTIALS = struct.Struct("@iII")


class CommandError(Exception):
    """One line for whoever asked: why it cannot be, and what to do."""


class _ClientGoneError(Exception):
    """Nobody is there to read the rest."""


class Command(NamedTuple):
    """What one command takes and does.

    ``answer`` is called with an instance of ``arguments``: an async function that returns the only value of
    the answer, or an async generator of any number of values, which are what `msgspec.json.encode` takes. It
    raises `CommandError`, `ConfigError` or `HostError` for what the client is to read; anything else is a
    bug, is logged, and ends nothing but this answer. A generator is closed at its ``yield`` when the client
    is found gone, so one that waits should yield every few seconds.
    """

    arguments: type[Arguments]
    answer: Callable[[Any], Awaitable[Any] | AsyncGenerator[Any, None]]


class ControlSocket:
    """Listens from the start, answers while `serve` runs, and removes its file when closed.

    `HostError` if another daemon listens there, or the file cannot be made.
    """

    def __init__(self, path: Path, group: str = DEFAULT_GROUP) -> None:
        """The file is root's and ``group``'s; only root's if that is the default group and does not exist."""
        self._path = path
        self._socket = _listen(path, _group_id(group))
        made = path.stat()
        self._file = made.st_dev, made.st_ino
        self._held: dict[_Conversation, trio.CancelScope] = {}
        """The oldest first."""

    def close(self) -> None:
        self._socket.close()
        try:
            made = self._path.stat()
            if (made.st_dev, made.st_ino) == self._file:
                self._path.unlink()
        except OSError:
            pass  # gone already, or no longer this user's to remove; the next start replaces it

    async def serve(self, commands: Mapping[str, Command], logger: logging.Logger) -> NoReturn:
        """Answer, for ever."""

        async def serve_client(stream: trio.SocketStream) -> None:
            async with stream:
                if len(self._held) >= CLIENTS and not self._make_room():
                    await _say_last(stream, f"{CLIENTS} clients are connected already: try again later")
                    return
                await self._hold(_Conversation(stream, commands, logger), logger)

        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket.dup()))
        await trio.serve_listeners(serve_client, [listener])
        raise AssertionError("listeners do not end")

    async def _hold(self, conversation: "_Conversation", logger: logging.Logger) -> None:
        with trio.CancelScope() as scope:
            self._held[conversation] = scope
            try:
                await conversation.hold()
            except _ClientGoneError as error:
                logger.debug("control: %s", error)
            finally:
                self._held.pop(conversation, None)
        if scope.cancelled_caught:
            await conversation.turn_away()

    def _make_room(self) -> bool:
        """Turn the oldest of the clients away that keep the daemon waiting, if there is one."""
        for conversation, scope in self._held.items():
            if not conversation.is_at_work:
                del self._held[conversation]
                scope.cancel()
                return True
        return False


class _Conversation:
    """With one client: requests one after the other."""

    def __init__(
        self, stream: trio.SocketStream, commands: Mapping[str, Command], logger: logging.Logger
    ) -> None:
        self._stream = stream
        self._commands = commands
        self._logger = logger
        self._unread = bytearray()
        self.is_at_work = False
        """It is not the client that is waited for."""

    async def turn_away(self) -> None:
        await _say_last(
            self._stream, f"{CLIENTS} clients are connected, and this one keeps the daemon waiting"
        )

    async def hold(self) -> None:
        """Until the client ends it, says nothing, or says what cannot be understood."""
        while (line := await self._line()) is not None:
            try:
                request = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                await _say_last(self._stream, f'not a request such as {{"do": "status"}}: {error}')
                return
            self.is_at_work = True
            await self._answer(request)
            self.is_at_work = False

    async def _line(self) -> bytes | None:
        """The next one. None where there is none; the client has been told why."""
        with trio.move_on_after(IDLE_SECONDS):
            while (end := self._unread.find(b"\n")) < 0 and len(self._unread) <= REQUEST_SIZE:
                received = await _hear(self._stream)
                if not received:
                    return None
                self._unread += received
            if not 0 <= end <= REQUEST_SIZE:
                await _say_last(self._stream, f"a request has at most {REQUEST_SIZE} bytes")
                return None
            line = bytes(self._unread[:end])
            del self._unread[: end + 1]
            return line
        await _say_last(self._stream, f"no request within {IDLE_SECONDS:g} seconds")
        return None

    async def _answer(self, request: dict[str, Any]) -> None:
        name = request.pop("do", None)
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join(sorted(self._commands))
            await self._tell({"error": f'"do" is {name!r}, must be one of {known}'})
            return
        try:
            arguments = msgspec.convert(request, command.arguments)
        except msgspec.ValidationError as error:
            await self._tell({"error": f"{name}: {error}"})
            return
        if name in CHANGES:
            self._logger.info("control: %s %s, asked for by user id %d", name, request, self._user())
        try:
            await self._say_values(command.answer(arguments))
            await self._tell({"ok": True})
        except (CommandError, ConfigError, HostError) as error:
            if name in CHANGES:
                self._logger.error("control: %s is refused, all stays as it was: %s", name, error)
            await self._tell({"error": str(error)})
        except _ClientGoneError:
            raise
        except Exception:
            self._logger.exception("control: a bug in %s", name)
            await self._tell({"error": f"{name} failed by a bug: the daemon's log has the details"})

    async def _say_values(self, answer: Awaitable[Any] | AsyncGenerator[Any, None]) -> None:
        if isinstance(answer, AsyncGenerator):
            async with aclosing(answer):
                async for value in answer:
                    await self._tell({"value": value})
        else:
            await self._tell({"value": await answer})

    async def _tell(self, message: dict[str, Any]) -> None:
        self.is_at_work = False
        await _say(self._stream, message)
        self.is_at_work = True

    def _user(self) -> int:
        """Who connected: their effective user id then."""
        size = _PEER_CREDENTIALS.size
        credentials = self._stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        user: int = _PEER_CREDENTIALS.unpack(credentials)[1]
        return user


async def _hear(stream: trio.SocketStream) -> bytes:
    """Nothing where the client has said all."""
    try:
        return bytes(await stream.receive_some(_READ_SIZE))
    except trio.BrokenResourceError:
        raise _ClientGoneError("a client went away") from None


async def _say(stream: trio.SocketStream, message: dict[str, Any]) -> None:
    line = msgspec.json.encode(message) + b"\n"
    try:
        with trio.fail_after(WRITE_SECONDS):
            await stream.send_all(line)
    except trio.BrokenResourceError:
        raise _ClientGoneError("a client went away") from None
    except trio.TooSlowError:
        raise _ClientGoneError("a client did not read its answer") from None


async def _say_last(stream: trio.SocketStream, error: str) -> None:
    """What the client gets before the connection is closed, if it still listens."""
    try:
        await _say(stream, {"error": error})
    except _ClientGoneError:
        pass


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name == DEFAULT_GROUP:
            return None
    raise HostError(f"there is no group {name} for the control socket: make it (groupadd --system {name})")


def _listen(path: Path, group: int | None) -> socket.socket:
    """A file that a dead daemon has left is replaced."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            _remove_left(path)
            before = os.umask(0o777 & ~stat.S_IRUSR & ~stat.S_IWUSR)
            try:
                listening.bind(str(path))
            finally:
                os.umask(before)
            listening.listen(_BACKLOG)
            if group is not None:
                os.chown(path, -1, group)
                path.chmod(_MODE)
    except OSError as error:
        listening.close()
        raise HostError(f"control socket {path} cannot be made: {error.strerror or error}") from None
    except HostError:
        listening.close()
        raise
    return listening


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Of two daemons that start at the same time, one finds the other's socket listening."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_left(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(f"{path} is there and is no socket: remove it, or name another control socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.setblocking(False)
        try:
            trial.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its backlog is full: it lives
    raise HostError(f"a daemon listens on {path} already: stop it, or name another control socket")
