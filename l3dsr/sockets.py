"""Which daemons there are on this host to be asked, and asking them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from common.config import DEFAULT_CONFIG_DIR, DEFAULT_STATE_DIR
from common.control_client import ANSWER_SECONDS, ControlError, NotRunningError, ask
from common.reports import BalancerReport, PacketbridgeReport, Report
from l3dsr.options import Parser

BALANCER, PACKETBRIDGE = "balancer", "packetbridge"


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


def ask_running(paths: Sequence[Path], do: str, /, **arguments: Any) -> dict[Path, list[Any]]:
    """The values that each running daemon answers with. `NotRunningError` if there is none."""
    answers = {}
    for path in paths:
        try:
            answers[path] = list(ask(path, do, **arguments))
        except NotRunningError:
            continue
    if not answers:
        places = " or ".join(map(str, paths))
        raise NotRunningError(f"no daemon listens on {places}: start one, or name its socket with --socket")
    return answers


def reports(paths: Sequence[Path], within: float = ANSWER_SECONDS) -> list[Report]:
    answers = ask_running(paths, "status", within=within).values()
    return [convert(value, BalancerReport | PacketbridgeReport) for values in answers for value in values]


def convert(value: Any, kind: Any) -> Any:
    """``value`` as it came from a daemon as a ``kind`` of `common.reports`."""
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise ControlError(
            f"the daemon is of another version than this tool: restart it, or update the tool ({error})"
        ) from None
