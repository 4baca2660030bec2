"""Programs of the tests' own, compiled as those of the package are."""

import functools
import tempfile
from pathlib import Path

from bpf import build

_SOURCES = Path(__file__).parent


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="l3dsr-bpf-", ignore_cleanup_errors=True)


@functools.cache
def compiled(name: str = "loader", *defines: str) -> Path:
    """The object of tests/bpf/NAME.bpf.c; it lasts as long as this process."""
    target = Path(_directory().name, "-".join([name, *defines]), f"{name}.bpf.o")
    build.build(_SOURCES / f"{name}.bpf.c", target, defines)
    return target
