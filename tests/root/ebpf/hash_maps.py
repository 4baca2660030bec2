"""Hash maps of the kernel that no program uses, for what of a control plane works on maps alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from common.bpf import libbpf
from common.bpf.maps import HashMap, MapType


@contextmanager
def hash_map(key_size: int, value_size: int, max_entries: int = 16) -> Iterator[HashMap]:
    """It ends with the block."""
    create = libbpf.library().bpf_map_create
    descriptor = libbpf.check(create(MapType.HASH, b"test", key_size, value_size, max_entries, None))
    try:
        yield HashMap(descriptor)
    finally:
        os.close(descriptor)
