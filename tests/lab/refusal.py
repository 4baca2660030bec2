"""A daemon that does not start."""

from lab import Host
from lab.testbed import daemon_program
from tests.lab.footprint import footprint
from tests.lab.sockets import await_that


def refused(host: Host, program: str, *options: str, by: tuple[str, ...] = ()) -> str:
    """The line that the daemon says: the only one, with exit code 2, the host being left alone.

    Other daemons of the host may have begun to serve its TUN: they need a moment to notice that it has gone.
    """
    before = footprint(host)
    done = host.run([*by, str(daemon_program(program)), *options], check=False, timeout=60)
    await_that(lambda: footprint(host) == before)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{program}: ")
    assert done.stderr.count("\n") == 1
    return done.stderr
