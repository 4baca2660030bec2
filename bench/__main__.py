"""`python -m bench`: a report on standard output, progress on standard error, all of it in --output."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench import effort, output, report, results, run, thresholds
from bench.contestants import CONTESTANTS, chosen, daemons
from bench.errors import BenchError
from bench.run import Plan
from lab import LabError

MAX_ROUNDS = 100
MOST_IDLE_FLOWS = 150_000
"""The client has three addresses, each with some 64,000 ports."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    started = time.monotonic()

    def tell(what: str) -> None:
        print(f"bench: {time.monotonic() - started:4.0f} s  {what}", file=sys.stderr, flush=True)

    try:
        if arguments.readings is not None:
            found = results.load(arguments.readings.read_text())
        else:
            found = run.measure(plan(arguments), tell)
        output.write(found, arguments.output)
    except (BenchError, LabError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    print(report.markdown(found))
    print(f"Written to {arguments.output}.", file=sys.stderr)
    is_all_reached = all(verdict.reached for verdict in thresholds.judge(found))
    return 0 if is_all_reached or not arguments.strict else 1


def plan(arguments: argparse.Namespace) -> Plan:
    spent = effort.QUICK if arguments.quick else effort.FULL
    if arguments.rounds is not None:
        spent = replace(spent, rounds=arguments.rounds, mtu_rounds=arguments.rounds)
    if arguments.idle_flows is not None:
        spent = replace(spent, idle_flows=arguments.idle_flows)
    return Plan(
        effort=spent,
        contestants=chosen(arguments.contestants, arguments.engines),
        required=[
            *(arguments.contestants or []),
            *(daemons.name(engine) for engine in arguments.engines or []),
        ],
        keep_order=not arguments.unordered,
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure the balancer side by side with other ways to the same servers."
    )
    full, quick = effort.FULL, effort.QUICK
    parser.add_argument(
        "--quick", action="store_true", help="under three minutes instead of half an hour; coarser"
    )
    parser.add_argument(
        "--rounds",
        type=_number(MAX_ROUNDS),
        metavar="N",
        help=f"{full.rounds}, and {full.mtu_rounds} with MTU-sized packets; {quick.rounds} with --quick",
    )
    parser.add_argument(
        "--engines",
        type=_names(daemons.ENGINES),
        metavar="NAME,...",
        help="of this project: raw, ebpf (default: as --contestants says)",
    )
    parser.add_argument(
        "--contestants",
        type=_names([each.name for each in CONTESTANTS]),
        metavar="NAME,...",
        help="only these, and direct (default: all that work here)",
    )
    parser.add_argument(
        "--idle-flows",
        type=_number(MOST_IDLE_FLOWS),
        metavar="N",
        help=f"for the measurement of memory: {full.idle_flows}, and {quick.idle_flows} with --quick",
    )
    parser.add_argument(
        "--unordered", action="store_true", help="on links that are faster and reorder packets now and then"
    )
    parser.add_argument(
        "--output", type=Path, default=output.DEFAULT, metavar="DIRECTORY", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--readings", type=Path, metavar="FILE", help="measure nothing, report on an earlier run's readings"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit status 1 where something wanted is not reached"
    )
    return parser.parse_args(argv)


def _number(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not one of 1..{most}")
        return value

    return number


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        wanted = text.split(",")
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(known)}")
        return wanted

    return names


if __name__ == "__main__":
    sys.exit(main())
