"""`python -m bench.publish [DIRECTORY]`: the results of a run become those that docs/performance.md shows.

The report takes the place of what stands between the marks in docs/performance.md; readings and figures
are copied to docs/performance/.
"""

import argparse
import shutil
import sys
from pathlib import Path

from bench.errors import BenchError
from bench.output import DEFAULT, FIGURES, READINGS, REPORT

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"
COPIES = DOCS / "performance"
BEGIN, END = "<!-- bench: begin -->\n", "<!-- bench: end -->\n"


def replaced(page: str, report: str) -> str:
    """The page with another report between its marks. BenchError where each does not stand there once."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise BenchError(f"{PAGE.name} needs one line {BEGIN.strip()} and behind it one line {END.strip()}")
    return f"{before}{begin}\n{report}\n{end}{after}"


def publish(directory: Path) -> list[Path]:
    """The files that were written. BenchError where the run's are not all there."""
    figures = sorted(file for pattern in FIGURES for file in directory.glob(pattern))
    try:
        report = (directory / REPORT).read_text().strip().replace("](", f"]({COPIES.name}/")
        page = replaced(PAGE.read_text(), report + "\n")
        COPIES.mkdir(exist_ok=True)
        copied = [Path(shutil.copy(file, COPIES)) for file in [directory / READINGS, *figures]]
    except FileNotFoundError as error:
        raise BenchError(f"{error.filename} is missing: run `make bench` first") from error
    PAGE.write_text(page)
    return [PAGE, *copied]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.publish", description="Put a run's results into docs/.")
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT, help=f"(default: {DEFAULT})")
    try:
        for path in publish(parser.parse_args().directory):
            print(path)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
