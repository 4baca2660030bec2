"""Work beside the event loop."""

import signal
from collections.abc import Callable
from typing import TypeVar

import trio

Result = TypeVar("Result")


async def in_thread(function: Callable[[], Result]) -> Result:
    """In a thread that gets no signals: they are the main thread's, which knows what to do with them."""

    def run() -> Result:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        return function()

    return await trio.to_thread.run_sync(run)
