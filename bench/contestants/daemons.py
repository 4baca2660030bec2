"""The daemons of this project: a packetbridge on each node and the balancer on the VIP."""

import signal
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from bench.errors import BenchError
from lab import Lab, Process

ENGINES = ("raw", "ebpf")
MOST_FLOWS = 300_000
"""Of each daemon: more than a load of several seconds leaves behind in a table."""


@dataclass(frozen=True, slots=True)
class Daemons:
    balancer: Process
    packetbridges: Mapping[str, Process]
    """By their node's name."""


def name(engine: str) -> str:
    return f"l3dsr-{engine}"


def options(engine: str, most_flows: int = MOST_FLOWS) -> tuple[str, ...]:
    """Of balancer and packetbridge alike."""
    return (f"--engine={engine}", f"--max-flows={most_flows}")


@contextmanager
def running(lab: Lab, engine: str, most_flows: int = MOST_FLOWS) -> Iterator[Daemons]:
    """All of them start at once, and none finds the flows of an earlier run."""
    shared = options(engine, most_flows)
    nodes = [node.name for node in lab.topology.nodes]

    def start_packetbridge(node: str) -> Process:
        state = tempfile.mkdtemp(prefix="state-", dir=lab.hosts[node].directory)
        return lab.start_packetbridge(node, *shared, f"--state-dir={state}")

    earlier = {name: len(host.processes) for name, host in lab.hosts.items()}
    try:
        with ThreadPoolExecutor(max_workers=len(nodes) + 1) as starting:
            balancer = starting.submit(lab.start_balancer, *shared)
            packetbridges = list(starting.map(start_packetbridge, nodes))
        yield Daemons(balancer.result(), dict(zip(nodes, packetbridges, strict=True)))
    finally:
        started = [process for name, host in lab.hosts.items() for process in host.processes[earlier[name] :]]
        for process in started:
            process.begin_stop()
        killed = [process for process in started if process.stop() == -signal.SIGKILL]
    if killed:
        raise BenchError(f"{' '.join(killed[0].argv)} had to be killed:\n{killed[0].read_log()}")
