"""What both daemons do as processes: signals, reloading, reporting, and how errors end them."""

import gc
import logging
import math
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import trio

from common import notify
from common.config import ConfigError
from common.dataplane import PacketLoop
from common.engine import Engine
from common.net import host
from common.net.errors import HostError
from common.net.packet_socket import Tap
from common.net.taps import Taps
from common.net.tun import Tun
from common.net.watch import NetworkWatch
from common.problems import Problems

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_REACTED_TO = (signal.SIGHUP, signal.SIGUSR1)
WATCH_SECONDS = 2.0
TEND_SECONDS = 3.0
_TEND_PAUSE_SECONDS = 0.1
SILENCE_SECONDS = 600.0
GARBAGE_THRESHOLDS = (50_000, 20, 50)
"""How rarely cycles are looked for: packets make none, and many flows take long to walk through."""
LOOP_COMPLAINTS = {
    "tap_kernel_drops": "packets are lost, as they come faster than they are passed on",
    "tun_refused": "the kernel refuses packets that are written to the TUN device: is it up?",
}
"""Counters of the packet loop that should not grow, and what to tell the operator when they do."""


def run_command(name: str, serve: Callable[[], None]) -> None:
    """Run a daemon; what keeps it from running is one line on standard error and exit code 2.

    Signals that come while it starts wait until it can heed them, and those that come while it cleans up do
    not break that off.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOPPING, *_REACTED_TO))
    try:
        with _single_error():
            serve()
    except (ConfigError, HostError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


class Running(NamedTuple):
    """What a daemon does besides moving packets."""

    reload: Callable[[], object]
    """Take the configuration anew, all of it, and log what has changed; or raise `ConfigError` or `HostError`
    and change nothing."""
    announce: Callable[[], None]
    """Called once signals are heeded."""
    complaints: Mapping[str, str]
    """Those of `complain`."""
    tasks: Sequence[Callable[[], Awaitable[None]]] = ()


def serve(engine: Engine[Any], running: Running, watch: NetworkWatch, logger: logging.Logger) -> None:
    """Move packets until SIGTERM or SIGINT. SIGHUP reloads, SIGUSR1 logs the counters."""

    def report() -> None:
        log_counters(logger, {**engine.sizes(), **engine.counters()})

    def reload() -> None:
        notify.reloading()
        try:
            running.reload()
        except (ConfigError, HostError) as error:
            logger.error("not reloaded, all stays as it was: %s", error)
        except Exception:  # a bug must not end the service, as little as one that a packet brings to light
            logger.exception("a bug: not reloaded, or not all")
        notify.ready()

    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    reactions = {signal.SIGHUP: reload, signal.SIGUSR1: report}
    complaints = {**LOOP_COMPLAINTS, **running.complaints}

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.loop.run)
            for task in (*engine.tasks, *running.tasks, notify.keep_watchdog):
                nursery.start_soon(task)
            nursery.start_soon(tend, engine.tend, watch, logger, host.obstacles)
            nursery.start_soon(complain, engine.counters, complaints, logger)
            running.announce()
            notify.ready()

    ended_by = trio.run(_run_until_stopped, main, reactions)
    notify.stopping()
    report()
    logger.info("stopped by %s", ended_by.name)


async def tend(
    repair: Callable[[], list[str]],
    watch: NetworkWatch,
    logger: logging.Logger,
    obstacles: Callable[[], list[str]] = list,
) -> None:
    """For ever: have what somebody has taken away put back, soon after it is noticed, and say what stands in
    the way that is not the daemon's to remove.
    """
    complaint, in_the_way = "", Problems(logger)
    while True:
        with trio.move_on_after(TEND_SECONDS):
            await watch.changed()
        try:
            for said in repair():
                logger.warning("%s", said)
            complaint = ""
        except HostError as error:
            if str(error) != complaint:
                logger.error("cannot restore what is missing: %s", error)
            complaint = str(error)
        in_the_way.are(obstacles())
        await trio.sleep(_TEND_PAUSE_SECONDS)


def loop_counters(loop: PacketLoop, tun: Tun, taps: Iterable[Tap | Taps]) -> dict[str, int]:
    """Packets that never reached the core, on which it failed, or that the kernel did not take."""
    return {
        "bugs": loop.failures,
        "tap_errors": sum(tap.errors for tap in taps),
        "tap_kernel_drops": sum(tap.kernel_drops() for tap in taps),
        "tap_malformed": sum(tap.malformed for tap in taps),
        "tun_malformed": tun.malformed,
        "tun_refused": tun.refused.total(),
    }


def log_counters(logger: logging.Logger, counters: Mapping[str, int]) -> None:
    """One line of name=number, zeros left out."""
    said = " ".join(f"{name}={number}" for name, number in sorted(counters.items()) if number)
    logger.info("counters: %s", said or "nothing yet")


async def complain(
    counters: Callable[[], Mapping[str, int]], complaints: Mapping[str, str], logger: logging.Logger
) -> None:
    """Warn, for ever, of each counter in ``complaints`` that grows, and then not again for a while."""
    known = counters()
    quiet_until = dict.fromkeys(complaints, -math.inf)
    while True:
        await trio.sleep(WATCH_SECONDS)
        present, now = counters(), trio.current_time()
        for name, complaint in complaints.items():
            if present.get(name, 0) > known.get(name, 0) and now >= quiet_until[name]:
                quiet_until[name] = now + SILENCE_SECONDS
                logger.warning("%s (%s=%d)", complaint, name, present[name])
        known = present


async def _run_until_stopped(
    main: Callable[[], Awaitable[None]], reactions: Mapping[signal.Signals, Callable[[], None]]
) -> signal.Signals:
    """Which of the stopping signals came. Signals are blocked before and afterwards."""
    heeded = (*_STOPPING, *reactions)
    with trio.open_signal_receiver(*heeded) as arriving:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(main)
                async for number in arriving:
                    received = signal.Signals(number)
                    if received in _STOPPING:
                        nursery.cancel_scope.cancel()
                        return received
                    reactions[received]()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
    raise AssertionError("signals do not end")


@contextmanager
def _single_error() -> Iterator[None]:
    """Raise the one error that a nursery has wrapped in a group, or the first of several that say the same.

    A device that is gone is noticed by whoever reads from it and by whoever writes to it.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        first, *others = _errors_of(group)
        if any(repr(other) != repr(first) for other in others):
            raise
        raise first from None


def _errors_of(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _errors_of(error)
        else:
            yield error
