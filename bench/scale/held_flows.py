"""The map of flows of a running daemon, opened a second time."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import BenchError
from common.bpf import libbpf
from common.bpf.maps import HashMap, describe
from lab import Process


@contextmanager
def flows_of(process: Process) -> Iterator[HashMap]:
    """Valid within the block. `BenchError` where the process has no such map."""
    for number in _map_numbers(process):
        descriptor = libbpf.library().bpf_map_get_fd_by_id(number)
        if descriptor < 0:  # gone meanwhile
            continue
        try:
            if describe(descriptor).name == "flows":
                yield HashMap(descriptor)
                return
        finally:
            os.close(descriptor)
    raise BenchError(f"{' '.join(process.argv)} has no map of flows")


def _map_numbers(process: Process) -> set[int]:
    """The kernel's, of those that the process has open."""
    numbers = set()
    for path in Path(f"/proc/{process.pid}/fdinfo").iterdir():
        try:
            found = re.search(r"^map_id:\s+(\d+)$", path.read_text(), re.MULTILINE)
        except FileNotFoundError:  # closed meanwhile
            continue
        if found is not None:
            numbers.add(int(found[1]))
    return numbers
