"""The command `l3dsr`, the operator's tool.

Exit codes: 0; 1 where what was asked for is not so, or cannot be (no such flow, faults found, no daemon);
2 where the command line is wrong; 130 after Ctrl-C.
"""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from common.config import ConfigError
from common.control_client import ControlError
from common.net.errors import HostError
from l3dsr import explain, flows, nodes, sockets, status, text
from l3dsr.doctor import command as doctor
from l3dsr.options import Parser
from l3dsr.trace import command as trace

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Command(NamedTuple):
    summary: str
    add_options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "status": _Command("Services, nodes, flows, rates and errors.", status.add_options, status.run),
    "flows": _Command("The connections that there are.", flows.add_list_options, flows.run_list),
    "flow": _Command(
        "One connection: what the balancer and the node know of it.", flows.add_one_options, flows.run_one
    ),
    "explain": _Command("Which node a URL belongs to, and why.", explain.add_options, explain.run),
    "drain": _Command(
        "No new connections for a node; those it has go on.", nodes.add_drain_options, nodes.run_drain
    ),
    "undrain": _Command("The end of a drain.", nodes.add_options, nodes.run),
    "disable": _Command(
        "Maintenance: no new connections and no health checks for a node.", nodes.add_options, nodes.run
    ),
    "enable": _Command("The end of maintenance.", nodes.add_options, nodes.run),
    "weight": _Command(
        "Another share of the URLs for a node than the configured one.",
        nodes.add_weight_options,
        nodes.run_weight,
    ),
    "reload": _Command(
        "Have the daemons read their configuration again, all of it or, if it is wrong, nothing.",
        sockets.add_options,
        nodes.run_reload,
    ),
    "trace": _Command("Tagged packets and handoffs as they pass on this host.", trace.add_options, trace.run),
    "doctor": _Command(
        "Check this host, and the way to the nodes, and say what to change.", doctor.add_options, doctor.run
    ),
}


def make_parser() -> Parser:
    parser = Parser()
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser, title="commands"
    )
    for name, command in COMMANDS.items():
        command.add_options(
            subparsers.add_parser(name, description=command.summary, help=command.summary.rstrip("."))
        )
    return parser


def main() -> None:
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit code. What is wrong is one line on standard error."""
    _open_streams()
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        code = COMMANDS[options.command].run(options)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        _complain(options.command, f"{error} (see l3dsr {options.command} --help)")
        return 2
    except (ControlError, HostError) as error:
        _complain(options.command, str(error))
        return 1
    except BrokenPipeError:  # who reads has had enough
        _close_output()
        return 0
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _complain(options.command, f"cannot write standard output: {error.strerror}")
        _close_output()
        return 1
    except KeyboardInterrupt:
        return 130


def _complain(command: str, what: str) -> None:
    print(f"l3dsr {command}: {text.printable(what)}", file=sys.stderr)


def _open_streams() -> None:
    """Those that are closed lead nowhere, and none fails at a character that its encoding does not have."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Whoever reads a pipe waits for each line, too.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")


def _close_output() -> None:
    """Python would fail once more at what it has not written, when it closes standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
