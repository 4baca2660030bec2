"""`python -m bench.scale [ENGINE...]`: this part of the benchmark alone, as a table on standard output."""

import sys
from collections.abc import Sequence

from bench import effort, report
from bench.contestants.daemons import ENGINES
from bench.errors import BenchError
from bench.scale import run
from lab import LabError


def main(engines: Sequence[str]) -> int:
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        print(f"bench.scale: no {', '.join(unknown)}; there are {', '.join(ENGINES)}", file=sys.stderr)
        return 2
    assert effort.FULL.scale is not None
    try:
        found = run.measure(engines or ENGINES, effort.FULL.scale, lambda what: print(what, file=sys.stderr))
    except (BenchError, LabError, OSError) as error:
        print(f"bench.scale: {error}", file=sys.stderr)
        return 1
    print("\n".join(report.observations(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
