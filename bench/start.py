"""How long the balancer takes from its start to the first SYN that it answers."""

import re
import sys
import time

from bench.contestants import Contestant
from bench.effort import Effort
from bench.errors import BenchError
from bench.measurement import Measure, Observation, Quantity, Threshold
from bench.workloads import program
from lab import Lab, Process

LIMIT_SECONDS = 1.0
WAIT_SECONDS = 10


def start_times(lab: Lab, contestant: Contestant, balancer: Process, effort: Effort) -> Observation:
    """`balancer` is stopped; the last one that is started in its place runs on."""
    values = []
    for _ in range(effort.starts):
        balancer.stop()
        asking = lab.client.start(
            [sys.executable, str(program("first_answer.py")), contestant.host, str(contestant.port)],
            name="first-answer",
        )
        asking.wait_for("trying", WAIT_SECONDS)
        called_at = time.monotonic()
        balancer = lab.start_balancer()
        asking.wait(WAIT_SECONDS)
        answered = re.search(r"^answered ([0-9.]+)$", asking.read_log(), re.MULTILINE)
        if answered is None:
            raise BenchError(f"no SYN was answered:\n{asking.read_log()}")
        values.append(float(answered[1]) - called_at)
    threshold = Threshold(Measure.VALUE, LIMIT_SECONDS, at_most=True)
    return Observation(Quantity("start to first answered SYN", "s", 3, threshold), values)
