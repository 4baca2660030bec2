"""Runs a Python program under a wall clock that is wrong: `shifted.py SECONDS PROGRAM ARGUMENT...`."""

import runpy
import sys
import time

_NANOSECONDS = 1_000_000_000


def shift(seconds: int) -> None:
    in_seconds, in_nanoseconds = time.time, time.time_ns
    time.time = lambda: in_seconds() + seconds
    time.time_ns = lambda: in_nanoseconds() + seconds * _NANOSECONDS


if __name__ == "__main__":
    shift(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
