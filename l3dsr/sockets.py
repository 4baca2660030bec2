"""Which daemons there are on this host to be asked, and asking them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from common.config import DEFAULT_CONFIG_DIR, DEFAULT_STATE_DIR
from common.control_client import ANSWER_SECONDS, ControlError, NotRunningError, ask
from common.reports import BalancerReport, PacketbridgeReport
from l3dsr import text
from l3dsr.options import Parser

BALANCER, PACKETBRIDGE = "balancer", "packetbridge"


class Answers(NamedTuple):
    """Of the daemons that run."""

    values: dict[Path, list[Any]]
    """By socket, of those that have answered."""
    failures: list[str]
    """Why each of the others has not."""

    def complain(self, command: str) -> int:
        """Of failures, on standard error; returns the exit code."""
        for failure in self.failures:
            print(f"l3dsr {command}: {text.printable(failure)}", file=sys.stderr)
        return 1 if self.failures else 0


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "--socket",
        metavar="PATH",
        type=Path,
        help="the daemon's control socket, where it is not the usual one",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=Path,
        default=DEFAULT_STATE_DIR,
        help=f"where {BALANCER}.sock and {PACKETBRIDGE}.sock are (default: {DEFAULT_STATE_DIR})",
    )


def of_both(options: argparse.Namespace) -> list[Path]:
    """Where daemons may listen: the socket that was named, or the usual ones of both daemons."""
    if options.socket:
        return [options.socket]
    return [options.state_dir / f"{daemon}.sock" for daemon in (BALANCER, PACKETBRIDGE)]


def of_balancer(options: argparse.Namespace) -> Path:
    path: Path = options.socket or options.state_dir / f"{BALANCER}.sock"
    return path


def default_config(daemon: str) -> Path:
    return DEFAULT_CONFIG_DIR / f"{daemon}.toml"


def ask_running(paths: Sequence[Path], do: str, kind: Any, /, **arguments: Any) -> Answers:
    """What each running daemon answers, as values of ``kind``; one that fails takes nothing from the other.

    `NotRunningError` if there is none, `ControlError` if none has answered.
    """
    values: dict[Path, list[Any]] = {}
    failures: dict[Path, ControlError] = {}
    for path in paths:
        try:
            values[path] = [convert(value, kind) for value in ask(path, do, **arguments)]
        except NotRunningError:
            continue
        except ControlError as error:
            failures[path] = error
    named = [f"{path.stem}: {error}" for path, error in failures.items()]
    if not values and len(failures) == 1:
        raise next(iter(failures.values()))
    if not values and failures:
        raise ControlError("; ".join(named))
    if not values:
        places = " or ".join(map(str, paths))
        raise NotRunningError(f"no daemon listens on {places}: start one, or name its socket with --socket")
    return Answers(values, named)


def reports(paths: Sequence[Path], within: float = ANSWER_SECONDS) -> Answers:
    """Of each a `Report`."""
    return ask_running(paths, "status", BalancerReport | PacketbridgeReport, within=within)


def convert(value: Any, kind: Any) -> Any:
    """``value`` as it came from a daemon as a ``kind`` of `common.reports`."""
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise ControlError(
            f"the daemon is of another version than this tool: restart it, or update the tool ({error})"
        ) from None
