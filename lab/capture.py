"""Recording what crosses an interface, with tcpdump.

A capture is whole only if tcpdump has read every packet that the kernel put into its buffer. At
SIGUSR1 it tells both figures ("7 packets captured, 9 packets received by filter"), so the end of a
capture waits until they are the same, and a packet that found the buffer full is an error.
"""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabError
from lab.process import POLL_SECONDS, Process

BUFFER_KIB = 64 * 1024
CATCH_UP_SECONDS = 30
PROGRESS = re.compile(
    r"(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped by kernel"
)
FINAL_DROPS = re.compile(r"(\d+) packets? dropped by kernel")


def capture_command(path: Path, interface: str, filter_expression: str, snap_bytes: int) -> list[str]:
    """0 as `snap_bytes` keeps whole packets."""
    command = ["tcpdump", "-n", "-U", "--immediate-mode", "-Z", "root", "-B", str(BUFFER_KIB)]
    command += ["-i", interface, "-s", str(snap_bytes), "-w", str(path)]
    return [*command, filter_expression] if filter_expression else command


@contextmanager
def recording(start: Callable[[], Process], path: Path) -> Iterator[None]:
    """Raises LabError where packets of the block are missing from the file."""
    tcpdump = start()
    try:
        tcpdump.wait_for("listening on")
        yield
        _catch_up(tcpdump)
    finally:
        tcpdump.stop()
    drops = FINAL_DROPS.findall(tcpdump.read_log())
    if not drops or int(drops[-1]) > 0:
        raise LabError(f"{path} is not complete:\n{tcpdump.read_log()}")


def _catch_up(tcpdump: Process) -> None:
    deadline = time.monotonic() + CATCH_UP_SECONDS
    told = 0
    while time.monotonic() < deadline:
        tcpdump.send_signal(signal.SIGUSR1)
        while len(reports := PROGRESS.findall(tcpdump.read_log())) == told:
            if time.monotonic() > deadline or not tcpdump.running:
                raise LabError(f"tcpdump does not answer:\n{tcpdump.read_log()}")
            time.sleep(POLL_SECONDS)
        told = len(reports)
        captured, received, _ = reports[-1]
        if captured == received:
            return
    raise LabError(f"tcpdump cannot catch up within {CATCH_UP_SECONDS} s:\n{tcpdump.read_log()}")
