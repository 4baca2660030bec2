"""How long the balancer takes from its start to the first SYN that it answers."""

import re
import sys
import time

from bench.contestants import PORT, daemons
from bench.effort import Effort
from bench.errors import BenchError
from bench.programs import script
from bench.readings import Observation
from lab import Lab

START = "start to first answered SYN"
WAIT_SECONDS = 10


def start_times(lab: Lab, engine: str, effort: Effort) -> Observation:
    values = []
    with daemons.running(lab, engine) as running:
        balancer = running.balancer
        for _ in range(effort.starts):
            balancer.stop()
            asking = lab.client.start(
                [
                    sys.executable,
                    "-I",
                    str(script("first_answer.py")),
                    str(lab.topology.service.vip),
                    str(PORT),
                ],
                name="first-answer",
            )
            asking.wait_for("trying", WAIT_SECONDS)
            called_at = time.monotonic()
            balancer = lab.start_balancer(*daemons.options(engine))
            asking.wait(WAIT_SECONDS)
            answered = re.search(r"^answered ([0-9.]+)$", asking.read_log(), re.MULTILINE)
            if answered is None:
                raise BenchError(f"no SYN was answered:\n{asking.read_log()}")
            values.append(float(answered[1]) - called_at)
    return Observation(daemons.name(engine), START, "s", 3, values)
