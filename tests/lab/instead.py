"""Daemons in the place of a lab's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import Lab, Process, testbed
from tests.lab.observed import daemon_of


@contextmanager
def balancer_with(lab: Lab, *options: str) -> Iterator[Process]:
    """The lab's own is back afterwards."""
    daemon_of(lab.balancer).stop()
    balancer = lab.start_balancer(*options)
    try:
        yield balancer
    finally:
        balancer.stop()
        lab.start_balancer()


def have_daemons_run(script: str, directory: Path, patch: pytest.MonkeyPatch) -> None:
    """Whatever daemon is started from now on is this script of the shell."""
    program = directory / "daemon"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    patch.setattr(testbed, "daemon_program", lambda _name: program)
