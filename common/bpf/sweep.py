"""Forgetting idle flows: a program that walks through all of them now and then."""

import time

import trio

from common.bpf.run import run_syscall
from common.threads import in_thread

PAUSE_SECONDS = 2.0
_SHARE = 50
"""The pause is at least this many times what a sweep takes."""


class Sweeper:
    def __init__(self, program: int) -> None:
        """``program`` is a descriptor of SEC("syscall")."""
        self._program = program

    def sweep(self) -> None:
        """`BpfError`."""
        run_syscall(self._program)

    async def run(self) -> None:
        """For ever. With very many flows one sweep takes long, so it is done beside the packet loop."""
        while True:
            began = time.monotonic()
            await in_thread(self.sweep)
            await trio.sleep(max(PAUSE_SECONDS, _SHARE * (time.monotonic() - began)))
