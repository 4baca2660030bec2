"""How much of the machine's processor time is used, whoever uses it: much of a packet's work is done in
softirqs, which belong to no process.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

IDLE, IOWAIT, STEAL = 3, 4, 7
"""Fields of the line `cpu` in /proc/stat."""
STAT = Path("/proc/stat")


class Clock(NamedTuple):
    """All in seconds."""

    wall: float
    not_busy: float
    """Of all cores together: idle, or taken by the hypervisor."""


def read() -> Clock:
    return parse(STAT.read_text(), time.monotonic(), os.sysconf("SC_CLK_TCK"))


def parse(stat: str, wall: float, ticks_per_second: int) -> Clock:
    fields = [int(field) for field in stat.splitlines()[0].split()[1:]]
    return Clock(wall, (fields[IDLE] + fields[IOWAIT] + fields[STEAL]) / ticks_per_second)


def busy_seconds(before: Clock, after: Clock, cores: int) -> float:
    """Of all cores together. The time that is left of the wall's, because the kernel counts idle time exactly
    and busy time by ticks.
    """
    return max(0.0, cores * (after.wall - before.wall) - (after.not_busy - before.not_busy))


def busy_share(seconds: float) -> float:
    """Of the whole machine, while this process waits: what others do on it."""
    before = read()
    time.sleep(seconds)
    after = read()
    cores = os.cpu_count() or 1
    return busy_seconds(before, after, cores) / (cores * (after.wall - before.wall))
