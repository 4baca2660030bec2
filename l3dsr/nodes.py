"""`l3dsr drain`, `undrain`, `disable`, `enable`, `weight` and `reload`: what changes a daemon's mind."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common.config import MAX_WEIGHT, ConfigError, parse_number
from common.control_client import ControlError, ask, ask_once
from common.reports import BalancerReport
from common.sparingly import Sparingly
from l3dsr import sockets, text
from l3dsr.options import Parser
from l3dsr.status import UP

_DEFAULT = "default"
_DONE = {
    "drain": "takes no new flows; those it has go on",
    "undrain": "takes new flows again",
    "disable": "is in maintenance: no new flows, no health checks",
    "enable": "is out of maintenance",
}
POLL_SECONDS = 0.5
STEADY_SECONDS = 2.0
"""For so long a node must say that it has no flows: its word is up to a second old, and a handoff may have
been on its way.
"""
_BAR_WIDTH = 30


def add_options(parser: Parser) -> None:
    sockets.add_options(parser)
    parser.add_argument("node", metavar="NODE", help="its name in the configuration")


def add_drain_options(parser: Parser) -> None:
    add_options(parser)
    parser.add_argument(
        "--wait", action="store_true", help="return when the last flow is gone, and tell how many are left"
    )
    parser.add_argument(
        "--timeout", metavar="S", help="with --wait: seconds after which to give up, with exit code 1"
    )


def add_weight_options(parser: Parser) -> None:
    add_options(parser)
    parser.add_argument("weight", metavar=f"N|{_DEFAULT}", help="its weight, or the configured one again")


def run(options: argparse.Namespace) -> int:
    """The command's own name is in ``options.command``."""
    list(ask(sockets.of_balancer(options), options.command, node=options.node))
    print(f"{options.node} {_DONE[options.command]}")
    return 0


def run_weight(options: argparse.Namespace) -> int:
    weight = None if options.weight == _DEFAULT else parse_number(options.weight, 0, MAX_WEIGHT, "weight")
    list(ask(sockets.of_balancer(options), "weight", node=options.node, weight=weight))
    print(
        f"{options.node} has weight {weight}"
        if weight is not None
        else f"{options.node} has its configured weight"
    )
    return 0


def run_drain(options: argparse.Namespace) -> int:
    if options.timeout and not options.wait:
        raise ConfigError("--timeout goes with --wait")
    limit = parse_number(options.timeout, 0, 10_000_000, "--timeout") if options.timeout else None
    run(options)
    if not options.wait:
        return 0
    path = sockets.of_balancer(options)
    progress = _Progress()
    try:
        left = wait_until_empty(FlowsLeft(path, options.node).count, progress.show, limit)
    finally:
        progress.end()
    print(
        f"{options.node}: {text.counted(left, 'flow')} left"
        if left
        else f"{options.node}: the last flow is gone"
    )
    return 1 if left else 0


def run_reload(options: argparse.Namespace) -> int:
    answers = sockets.ask_running(sockets.of_both(options), "reload", str)
    for path, changes in answers.values.items():
        print(f"{path.stem}: {'reloaded' if changes else 'nothing has changed'}")
        for change in changes:
            print(text.printable(f"  {change}"))
    return answers.complain(options.command)


def wait_until_empty(
    count: Callable[[], int],
    show: Callable[[int, int], None],
    limit: float | None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """How many flows are left in the end: 0, or after ``limit`` seconds more.

    ``show`` gets how many are left and how many there have been at most.
    """
    start = clock()
    most = 0
    empty_since: float | None = None
    while True:
        left, now = count(), clock()
        most = max(most, left)
        show(left, most)
        if left:
            empty_since = None
        elif empty_since is None:
            empty_since = now
        elif now - empty_since >= STEADY_SECONDS:
            return 0
        if limit is not None and now - start >= limit:
            return left
        sleep(POLL_SECONDS)


class FlowsLeft:
    """How many flows a node has left: by its own word, and where it has none, by what the balancer remembers.

    A health check is a flow to the node, at most one at a time for each service, but none to the balancer. So
    a number that may be of checks only counts as far as the balancer remembers as many flows. It remembers
    one that has ended for a minute. To go through all flows may cost it seconds, so it is asked for them
    seldom enough not to notice.
    """

    def __init__(self, path: Path, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``path`` is the balancer's control socket."""
        self._path = path
        self._node = node
        self._remembered = Sparingly(self._flows_remembered, clock)

    def count(self) -> int:
        report = sockets.convert(ask_once(self._path, "status"), BalancerReport)
        nodes = [each for service in report.services for each in service.nodes if each.name == self._node]
        if not nodes:
            raise ControlError(f"{self._node} is not configured any more: flows that it has left go on")
        if any(each.state == UP for each in nodes):
            raise ControlError(f"{self._node} takes new flows again: somebody has ended the drain")
        said = [each.flows for each in nodes]
        counted = [flows for flows in said if flows is not None]
        if len(counted) < len(said):
            return self._remembered()
        left: int = sum(counted)
        return min(left, self._remembered()) if 0 < left <= len(said) else left

    def _flows_remembered(self) -> int:
        """By the balancer."""
        return sum(1 for _ in ask(self._path, "flows", node=self._node, limit=10_000_000))


class _Progress:
    """A bar on a terminal, elsewhere a line whenever the number has changed."""

    def __init__(self) -> None:
        self._shown: int | None = None

    def show(self, left: int, most: int) -> None:
        if sys.stderr.isatty():
            gone = _BAR_WIDTH * (most - left) // most if most else _BAR_WIDTH
            bar = "#" * gone + "." * (_BAR_WIDTH - gone)
            print(f"\r[{bar}] {text.counted(left, 'flow')} left\x1b[K", end="", file=sys.stderr, flush=True)
        elif left != self._shown:
            print(f"{text.counted(left, 'flow')} left", file=sys.stderr, flush=True)
        self._shown = left

    def end(self) -> None:
        if self._shown is not None and sys.stderr.isatty():
            print(file=sys.stderr)
