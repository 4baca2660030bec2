"""One balancer for each state directory: its programs are known by what is pinned there."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.net.errors import HostError

_NAME = "balancer.lock"


@contextmanager
def only_balancer(state_dir: Path) -> Iterator[None]:
    """The lock ends with the process, too. `HostError` where another balancer has it."""
    path = state_dir / _NAME
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot write {path} ({error.strerror}): choose another --state-dir") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HostError(
                f"{state_dir} is in use by another balancer: choose another --state-dir"
            ) from None
        yield
    finally:
        os.close(descriptor)
