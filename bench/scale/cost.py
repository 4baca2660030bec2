"""How long the programs take for a packet, and whether it grows with the number of flows that they know.

They are loaded once for each number of flows, and given segments of flows that are picked at random. What
picking takes is measured beside, and taken away. The numbers of flows take turns, so that what else the
machine does falls on all of them. Many flows do not fit into the processor's caches; what that costs is shown
by one read from as much memory, to which nothing else is done.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass

from bench.contestants import daemons
from bench.effort import ScaleEffort
from bench.readings import Observation
from bench.scale import knowing
from bench.scale.compiled import compiled
from bench.scale.giving import Giver
from common.bpf.objects import BpfObject
from common.bpf.run import run_syscall
from lab.topology import load

FLOWS = (1, 1_000, 100_000, 1_000_000)
ROOM = max(FLOWS)
PASSED, REDIRECTED = -1, 7
"""TC_ACT_UNSPEC and TC_ACT_REDIRECT."""


@dataclass(frozen=True, slots=True)
class Way:
    """Through one of a daemon's programs."""

    name: str
    origin: str
    """`Giver.nanoseconds` says which there are."""
    program: str
    verdict: int
    """What is to become of every segment."""


WAYS: Mapping[str, tuple[Way, ...]] = {
    "balancer": (Way("packet from client to node", "from_client", "ingress", REDIRECTED),),
    "packetbridge": (
        Way("packet from client to backend", "from_client", "ingress", PASSED),
        Way("packet from backend to client", "from_backend", "egress", PASSED),
    ),
}
ONE_READ = Way("one read of as much memory", "from_client", "one_read", PASSED)
LOADS: Mapping[str, knowing.Load] = {"balancer": knowing.balancer, "packetbridge": knowing.packetbridge}


def costs(effort: ScaleEffort) -> list[Observation]:
    """`BenchError` where a program does not forward what it is given; `BpfError`."""
    topology = load()
    observations: list[Observation] = []
    with compiled("random_flow") as path:
        for daemon, load_programs in LOADS.items():
            with ExitStack() as stack:
                giver = stack.enter_context(closing(Giver(path, topology, daemon, ROOM)))
                loaded = {flows: stack.enter_context(load_programs(topology, flows, ROOM)) for flows in FLOWS}
                observations += _packets(daemon, giver, loaded, effort)
                observations += _sweeps(daemon, loaded, effort)
    return observations


def name_of_cost(way: str, flows: int, daemon: str) -> str:
    return f"{way}, {flows:,} flows, {daemon}"


def _packets(
    daemon: str, giver: Giver, loaded: Mapping[int, BpfObject], effort: ScaleEffort
) -> Iterator[Observation]:
    ways = [*WAYS[daemon], ONE_READ]
    readings: dict[tuple[Way, int], list[float]] = {(way, flows): [] for way in ways for flows in loaded}
    for _ in range(effort.rounds):
        for (way, flows), values in readings.items():
            program = giver.one_read if way is ONE_READ else loaded[flows].program(way.program)
            values.append(giver.nanoseconds(way.origin, program, flows, effort.packets, verdict=way.verdict))
    for (way, flows), values in readings.items():
        yield Observation(daemons.name("ebpf"), name_of_cost(way.name, flows, daemon), "ns", 0, values)


def _sweeps(daemon: str, loaded: Mapping[int, BpfObject], effort: ScaleEffort) -> Iterator[Observation]:
    for flows, programs in loaded.items():
        values = []
        for _ in range(effort.rounds):
            began = time.perf_counter()
            run_syscall(programs.program("sweep"))
            values.append(1000 * (time.perf_counter() - began))
        yield Observation(daemons.name("ebpf"), f"sweep, {flows:,} flows, {daemon}", "ms", 2, values)
