"""A daemon for the tool's tests: a real control socket that gives literal answers."""

import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import trio

from common.commands import BALANCER, COMMON
from common.control import Command, CommandError, ControlSocket

Answers = Mapping[str, Callable[[Any], list[Any]]]
"""For each command the values of its answer to its arguments; a `CommandError` is raised."""


@contextmanager
def answering(path: Path, answers: Answers) -> Iterator[None]:
    """In a thread of its own, until the block ends."""
    known = {**COMMON, **BALANCER}
    commands = {name: Command(known[name], _command(answer)) for name, answer in answers.items()}
    ended = trio.Event()
    token: list[trio.lowlevel.TrioToken] = []
    started = threading.Event()

    async def serve() -> None:
        token.append(trio.lowlevel.current_trio_token())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.serve, commands, logging.getLogger("test"))
            started.set()
            await ended.wait()
            nursery.cancel_scope.cancel()

    with closing(ControlSocket(path)) as control:
        thread = threading.Thread(target=trio.run, args=(serve,))
        thread.start()
        try:
            assert started.wait(60)
            yield
        finally:
            token[0].run_sync_soon(ended.set)
            thread.join(60)


def refusing(text: str) -> Callable[[Any], list[Any]]:
    def refuse(_arguments: Any) -> list[Any]:
        raise CommandError(text)

    return refuse


def _command(answer: Callable[[Any], list[Any]]) -> Callable[[Any], AsyncGenerator[Any, None]]:
    async def values(arguments: Any) -> AsyncGenerator[Any, None]:
        for value in answer(arguments):
            await trio.lowlevel.checkpoint()
            yield value

    return values
