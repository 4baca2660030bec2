"""Which data plane a daemon runs, and what it is to the rest of the daemon."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from common.bpf.errors import BpfError
from common.config import AUTO, EBPF, RAW
from common.dataplane import PacketLoop
from common.keyring import KeySource
from common.net.intake import Intake
from common.net.interfaces import Interface

Counts = Mapping[str, int]


class Site(NamedTuple):
    """Where and how a daemon is to do its work, on either data plane."""

    keys: KeySource
    intake: Intake
    tapped: Sequence[Interface]
    state_dir: Path
    keep_flows: bool
    logger: logging.Logger


class Engine(NamedTuple):
    """A data plane that runs, but for what `loop` and `tasks` do."""

    name: str
    loop: PacketLoop
    """Moves the packets that Python is to see: all of them, or those that the programs pass up."""
    counters: Callable[[], Counts]
    """What only grows. Cheap."""
    sizes: Callable[[], Counts]
    """How much is remembered. May walk through all flows."""
    tasks: tuple[Callable[[], Awaitable[None]], ...] = ()
    """What else there is to do, for ever."""
    take_keys: Callable[[], None] = lambda: None
    """The handoff keys may have changed."""


Starter = Callable[[ExitStack], Engine]
"""What it takes from the host it leaves in the stack, in order to give it back. Raises `BpfError` or
`HostError`, having taken nothing."""


def start(wanted: str, *, ebpf: Starter, raw: Starter, owned: ExitStack, logger: logging.Logger) -> Engine:
    """The engine ``wanted``; for `AUTO` the eBPF one if the host has what it needs, else the raw one."""
    if wanted == RAW:
        return _start(raw, owned)
    try:
        engine = _start(ebpf, owned)
    except BpfError as error:
        if wanted == EBPF:
            raise
        logger.debug("%s", error.log)
        logger.info("engine %s, because engine %s cannot be used: %s", RAW, EBPF, error)
        return _start(raw, owned)
    if wanted == AUTO:
        logger.info("engine %s, because its programs load here", EBPF)
    return engine


def _start(starter: Starter, owned: ExitStack) -> Engine:
    with ExitStack() as attempt:
        engine = starter(attempt)
        owned.push(attempt.pop_all())
    return engine
