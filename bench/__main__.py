"""`python -m bench`: a Markdown table on standard output, progress on standard error."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench import effort, report, run
from bench.errors import BenchError
from lab import LabError

MAX_ROUNDS = 100


def main() -> int:
    arguments = _arguments()
    chosen = effort.QUICK if arguments.quick else effort.FULL
    if arguments.rounds is not None:
        chosen = replace(chosen, rounds=arguments.rounds)
    started = time.monotonic()

    def tell(what: str) -> None:
        print(f"bench: {time.monotonic() - started:4.0f} s  {what}", file=sys.stderr, flush=True)

    try:
        result = run.measure(chosen, tell)
    except (BenchError, LabError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    print(report.markdown(result))
    if arguments.json is not None:
        arguments.json.write_text(report.as_json(result))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure the balancer against direct connections, side by side."
    )
    parser.add_argument(
        "--rounds",
        type=_rounds,
        metavar="N",
        help=f"{effort.FULL.rounds}, and {effort.QUICK.rounds} with --quick",
    )
    parser.add_argument("--quick", action="store_true", help="about a minute instead of five; coarser")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all readings to FILE")
    return parser.parse_args()


def _rounds(text: str) -> int:
    rounds = int(text)
    if not 1 <= rounds <= MAX_ROUNDS:
        raise argparse.ArgumentTypeError(f"{rounds} is not one of 1..{MAX_ROUNDS}")
    return rounds


if __name__ == "__main__":
    sys.exit(main())
