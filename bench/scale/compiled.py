"""eBPF programs that only the benchmark has: compiled when they are needed."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import BenchError
from bpf import build

SOURCES = Path(__file__).parent


@contextmanager
def compiled(name: str) -> Iterator[Path]:
    """The object made of NAME.bpf.c, there within the block only."""
    with tempfile.TemporaryDirectory(prefix="l3dsr-bench-") as directory:
        target = Path(directory, f"{name}.bpf.o")
        try:
            build.build(SOURCES / f"{name}.bpf.c", target)
        except build.CompileError as error:
            raise BenchError(f"{name}.bpf.c: {error}") from error
        yield target
