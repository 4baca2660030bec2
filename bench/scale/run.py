"""All that is measured here, each in a lab of its own."""

from collections.abc import Callable, Sequence

from bench.effort import ScaleEffort
from bench.errors import BenchError
from bench.readings import Observation
from bench.scale.cost import costs
from bench.scale.flood import floods
from bench.scale.memory import memory_of_flows
from bpf import build
from common.bpf.errors import BpfError
from lab import Lab

EBPF = "ebpf"


def measure(engines: Sequence[str], effort: ScaleEffort, tell: Callable[[str], None]) -> list[Observation]:
    """`tell` is called with what comes next. Nothing is measured where no eBPF program can be compiled.

    LabError or BenchError where something fails.
    """
    reason = build.reason_against()
    if reason is not None:
        tell(f"without very many flows and floods: {reason}")
        return []
    observations: list[Observation] = []
    if EBPF in engines:
        tell("cost of a packet, by the number of flows")
        observations += _costs(effort)
        tell("memory of a million flows")
        with Lab() as lab:
            observations += memory_of_flows(lab)
    for engine in engines:
        tell(f"SYN floods, {engine}")
        with Lab(keep_order=False) as lab:
            observations += floods(lab, engine, effort)
    return observations


def _costs(effort: ScaleEffort) -> list[Observation]:
    try:
        return costs(effort)
    except BpfError as error:
        raise BenchError(str(error)) from error
