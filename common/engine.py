"""Which data plane a daemon runs, and what it is to the rest of the daemon."""

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from common.bpf.errors import BpfError
from common.config import AUTO, EBPF, RAW
from common.dataplane import PacketLoop
from common.keyring import KeySource
from common.reports import FlowReport

Counts = Mapping[str, int]
Service = TypeVar("Service")


class Site(NamedTuple):
    """Where and how a daemon is to do its work, on either data plane."""

    keys: KeySource
    state_dir: Path
    keep_flows: bool
    logger: logging.Logger


class Engine(NamedTuple, Generic[Service]):
    """A data plane that runs, but for what `loop` and `tasks` do."""

    name: str
    loop: PacketLoop
    """Moves the packets that Python is to see: all of them, or those that the programs pass up."""
    counters: Callable[[], Counts]
    """What only grows. Cheap."""
    sizes: Callable[[], Counts]
    """How much is remembered. May walk through all flows."""
    apply: Callable[[Sequence[Service]], None]
    """Serve these from now on, all of them or, where `ConfigError` or `HostError` is raised, those of before.
    Established flows of services that stay go on."""
    flows: Callable[[], Iterator[FlowReport]]
    """All flows, while they may change."""
    find: Callable[[bytes, int, int], FlowReport | None]
    """The flow of a client's address (4 bytes) and port to a VIP index; the balancer tells of a connection
    without a node, too.
    """
    tend: Callable[[], list[str]]
    """Put back what somebody has taken from the host, and follow interfaces that come and go; says in words
    what was done. Called every few seconds, and when links, addresses, routes or rules have changed."""
    tasks: tuple[Callable[[], Awaitable[None]], ...] = ()
    """What else there is to do, for ever."""
    take_keys: Callable[[], None] = lambda: None
    """The handoff keys may have changed."""


Started = TypeVar("Started")


def start(
    wanted: str,
    *,
    ebpf: Callable[[ExitStack], Started],
    raw: Callable[[ExitStack], Started],
    owned: ExitStack,
    logger: logging.Logger,
) -> Started:
    """The engine ``wanted``; for `AUTO` the eBPF one if the host has what it needs, else the raw one.

    What a starter takes from the host it leaves in its stack, in order to give it back. It raises `BpfError`
    or `HostError`, having taken nothing.
    """
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


def _start(starter: Callable[[ExitStack], Started], owned: ExitStack) -> Started:
    with ExitStack() as attempt:
        engine = starter(attempt)
        owned.push(attempt.pop_all())
    return engine
