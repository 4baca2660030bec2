"""Stage, attach, publish, as one step: a failure in between leaves nothing."""

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self, TypeVar


class Closable(Protocol):
    def close(self) -> None: ...


Resource = TypeVar("Resource", bound=Closable)


class Transaction:
    """While its block runs, what is done is noted with how to undo it; an exception undoes all, last first.

    A block that ends well keeps everything, until `close` undoes it.
    """

    def __init__(self) -> None:
        self._undo = ExitStack()

    def hold(self, resource: Resource) -> Resource:
        """``resource``, which is closed when all is undone."""
        self._undo.callback(resource.close)
        return resource

    def undo_by(self, step: Callable[[], object]) -> None:
        self._undo.callback(step)

    def close(self) -> None:
        """Every step is tried; the last exception of them is raised. May be called more than once."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.close()
