"""Run as a program on the lab's client: HOST PORT.

Connects until somebody accepts, prints `trying` once it has been turned away and, in the end, `answered`
with the time on the clock that all processes of the machine share (seconds, CLOCK_MONOTONIC).
"""

import socket
import sys
import time

ATTEMPT_SECONDS = 0.02
"""A SYN without an answer is not waited for longer: the kernel repeats it after a whole second only."""
PAUSE_SECONDS = 0.002


def is_answered(address: tuple[str, int]) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(ATTEMPT_SECONDS)
        try:
            attempt.connect(address)
        except OSError:
            return False
        return True


def main() -> None:
    address = (sys.argv[1], int(sys.argv[2]))
    told = False
    while not is_answered(address):
        if not told:
            print("trying", flush=True)
            told = True
        time.sleep(PAUSE_SECONDS)
    print(f"answered {time.monotonic()}", flush=True)


if __name__ == "__main__":
    main()
