"""The programs' wall clock: the monotonic one and an offset that Python keeps right (map `clock`)."""

import time

import trio

from common.bpf.abi import CLOCK, Clock
from common.bpf.maps import ArrayMap

_SECONDS = 1.0


def set_clock(clock: ArrayMap) -> None:
    clock.update(0, CLOCK.pack(Clock(time.time_ns() - time.monotonic_ns())))


async def keep_clock(clock: ArrayMap) -> None:
    """For ever: the wall clock may be set at any time."""
    while True:
        set_clock(clock)
        await trio.sleep(_SECONDS)
