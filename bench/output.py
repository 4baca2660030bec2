"""Where a run's results are written, and as what."""

from pathlib import Path

from bench import figures, report, results
from bench.results import Results

DEFAULT = Path(__file__).with_name("results")
READINGS, REPORT = "readings.json", "report.md"
FIGURES = tuple(f"*.{file_type}" for file_type in figures.FILE_TYPES)


def write(found: Results, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / READINGS).write_text(results.dump(found))
    images = [image(file.name) for file in figures.draw(found, directory) if file.suffix == ".svg"]
    (directory / REPORT).write_text("\n\n".join([report.markdown(found).strip(), *images]) + "\n")


def image(name: str) -> str:
    """As Markdown: the file `name`."""
    return f"![{Path(name).stem.replace('-', ' ')}]({name})"
