"""The command `l3dsr trace`."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from common.config import ConfigError, parse_number
from common.control_client import ControlError
from common.net.errors import HostError
from common.wire import tcp
from l3dsr import sockets, text
from l3dsr.options import Parser
from l3dsr.trace import choice, legs, lines, scope
from l3dsr.trace.choice import Chooser
from l3dsr.trace.legs import Both, SeqDeltas
from l3dsr.trace.passage import Passage, Passing, wait
from l3dsr.trace.scope import Leg, Scope

POLL_SECONDS = 0.2
_STANDARD_OUTPUT = Path("-")
_LINKTYPE_RAW = 101
"""Packets begin with the IP header (LINKTYPE_RAW of pcap)."""


class _Shown(NamedTuple):
    passing: Passing
    leg: Leg
    is_handoff: bool


def add_options(parser: Parser) -> None:
    sockets.add_options(parser)
    parser.add_argument(
        "filter",
        metavar="FILTER",
        nargs="*",
        help=f"which packets, all of: {choice.GRAMMAR}; without any: all tagged",
    )
    parser.add_argument(
        "-w",
        dest="file",
        metavar="FILE",
        type=Path,
        help="write a pcap file instead of lines; -: to standard output",
    )
    parser.add_argument("-c", dest="count", metavar="N", help="end after so many packets")
    parser.add_argument("--time", metavar="S", help="end after so many seconds")


def run(options: argparse.Namespace) -> int:
    count = parse_number(options.count, 1, 10**9, "-c") if options.count else None
    seconds = parse_number(options.time, 1, 10**7, "--time") if options.time else None
    paths = sockets.of_both(options)
    served = _served(paths)
    wanted = choice.parse(options.filter, served)
    served = choice.widened(served, wanted)
    addresses = {*served.addresses(), *((wanted.client,) if wanted.client else ())}
    with ExitStack() as owned:
        is_stopped = owned.enter_context(_signals())
        passage = owned.enter_context(closing(Passage(sorted(addresses))))
        show = (
            _to_file(options.file, owned)
            if options.file
            else _to_screen(SeqDeltas(lambda c: legs.ask_daemons(paths, c)))
        )
        shown = _show(passage, Chooser(wanted), served, show, count, seconds, is_stopped)
        passage.count_lost()
        packets = text.counted(shown, "packet")
        print(f"{packets} shown, {passage.lost} lost, {passage.unreadable} unreadable", file=sys.stderr)
    return 0


def _served(paths: list[Path]) -> Scope:
    try:
        found = sockets.reports(paths)
        found.complain("trace")
        return scope.of_reports(report for reports in found.values.values() for report in reports)
    except ControlError as error:
        print(
            f"l3dsr trace: sequence numbers of one leg only, and no names of nodes: {error}", file=sys.stderr
        )
        return Scope()


def _show(
    passage: Passage,
    chooser: Chooser,
    served: Scope,
    show: Callable[[_Shown], None],
    count: int | None,
    seconds: float | None,
    is_stopped: Callable[[], bool],
) -> int:
    """How many packets were shown until it was enough."""
    end = None if seconds is None else time.monotonic() + seconds
    shown = 0
    while not is_stopped() and wait(passage, sys.stdout.fileno(), POLL_SECONDS):
        for passing in passage.waiting():
            leg = served.leg_of(passing.segment)
            carried = scope.handoff_in(passing.segment) if leg is Leg.TO_NODE else None
            if leg is None or not chooser.takes(passing.segment, leg, is_handoff=carried is not None):
                continue
            show(_Shown(passing, leg, carried is not None))
            shown += 1
            if shown == count or is_stopped():
                return shown
        if end is not None and time.monotonic() >= end:
            break
    return shown


def _to_screen(seq_deltas: SeqDeltas) -> Callable[[_Shown], None]:
    def show(shown: _Shown) -> None:
        segment = shown.passing.segment
        connection = scope.connection_of(segment, shown.leg)
        both: Both | None = None
        if segment.flags & tcp.SYN:
            if not shown.leg.is_to_client:
                seq_deltas.begin(connection, segment.seq, has_node=shown.leg is not Leg.TO_VIP)
        elif (seq_delta := seq_deltas.of(connection)) is not None:
            both = legs.both(segment, shown.leg, seq_delta)
        carried = scope.handoff_in(segment) if shown.is_handoff else None
        print(lines.line(shown.passing, carried, both), flush=True)

    return show


def _to_file(path: Path, owned: ExitStack) -> Callable[[_Shown], None]:
    """Packets as they passed, superpackets as such."""
    from scapy.utils import RawPcapWriter  # noqa: PLC0415 takes half a second

    is_piped = path == _STANDARD_OUTPUT
    if is_piped and sys.stdout.isatty():
        raise ConfigError("-w -: a pcap file is nothing for a terminal: name a file, or pipe it")
    with _writing(path):
        file = sys.stdout.buffer if is_piped else path.open("wb")
        writer = RawPcapWriter(file, linktype=_LINKTYPE_RAW, sync=is_piped)
        writer.write_header(None)
        file.flush()

    def show(shown: _Shown) -> None:
        whole, fraction = divmod(shown.passing.time, 1)
        with _writing(path):
            writer.write_packet(shown.passing.data, sec=int(whole), usec=int(fraction * 1_000_000))

    def end() -> None:
        with _writing(path):
            file.flush() if is_piped else file.close()

    owned.callback(end)
    return show


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # who reads has had enough
        raise
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come: they end the trace, and what was seen is told and written."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
