"""Conversations at random on both data planes, by root: `python -m tests.conformance.fuzz --seconds N`.

Each has a seed of its own, which is printed where the planes differ.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Protocol

from tests.conformance.balancer import fuzz as balancer
from tests.conformance.balancer.planes import Programs as BalancerPrograms
from tests.conformance.loaded import own_namespace
from tests.conformance.packetbridge import fuzz as packetbridge
from tests.conformance.packetbridge.planes import Programs as BridgePrograms


class Runs(Protocol):
    def run(self) -> None: ...


def conversations(
    begin: Callable[[int], Runs], seconds: float, *, first_seed: int = 0, fewest: int = 5
) -> int:
    """At least ``fewest`` of them, however slow the machine is, and as many as begin within the time. Returns
    how many there were.

    AssertionError, with the seed, where the planes differ.
    """
    end = time.monotonic() + seconds
    seed = first_seed
    while time.monotonic() < end or seed < first_seed + fewest:
        try:
            begin(seed).run()
        except Exception as error:
            raise AssertionError(f"seed {seed}:\n{error}") from error
        seed += 1
    return seed - first_seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each daemon")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    arguments = parser.parse_args()
    failed = False
    with own_namespace():
        bridges, balancers = BridgePrograms(), BalancerPrograms()
        for name, begin in (
            ("balancer", lambda seed: balancer.Conversation(seed, balancers)),
            ("packetbridge", lambda seed: packetbridge.Conversation(seed, bridges)),
        ):
            try:
                count = conversations(begin, arguments.seconds, first_seed=arguments.seed)
            except AssertionError as error:
                print(f"{name}, {error}", file=sys.stderr)
                failed = True
            else:
                print(f"{name}: {count} conversations without a difference")
        bridges.close()
        balancers.close()
    sys.exit(failed)


if __name__ == "__main__":
    main()
