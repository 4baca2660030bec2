"""What the maps of running daemons take once they are full of flows, and whether these still serve then.

The flows' map takes memory as it fills, and the kernel's account of it leaves out by how much the allocator
rounds up. So there is a second account, in which the growth of all slabs, whoever's, stands for the flows.
"""

import re
import time
from collections.abc import Mapping
from pathlib import Path

from bench.contestants import daemons
from bench.contestants.daemons import Daemons
from bench.errors import BenchError
from bench.memory import BYTES_PER_KIB, BYTES_PER_MIB, map_bytes
from bench.readings import Observation
from bench.scale import population
from bench.scale.held_flows import flows_of
from bench.workloads import warm_up
from lab import Lab, Process

MOST_FLOWS = 1_000_000
SPARE = 1_000
"""Left free for real connections."""
TWO_SWEEPS_SECONDS = 5.0


def memory_of_flows(lab: Lab) -> list[Observation]:
    """`BenchError` where flows are lost, LabError where a request fails."""
    vip = str(lab.topology.service.vip)
    flows = MOST_FLOWS - SPARE
    with daemons.running(lab, "ebpf", most_flows=MOST_FLOWS) as running:
        observations = []
        filled = _subjects(lab, running)
        for name, (process, row) in filled.items():
            empty = map_bytes(process)
            grown = _fill(process, row, lab.topology.service.dscp, flows)
            sizes = {
                name_of_memory(name): map_bytes(process),
                name_by_slabs(name): empty + grown,
            }
            observations += [
                Observation(daemons.name("ebpf"), what, "MiB", 1, [size / BYTES_PER_MIB])
                for what, size in sizes.items()
            ]
        warm_up(lab, vip)
        time.sleep(TWO_SWEEPS_SECONDS)
        warm_up(lab, vip)
        for name, (process, _) in filled.items():
            with flows_of(process) as table:
                if table.count() < flows:
                    raise BenchError(f"the {name} has forgotten flows: {table.count()} of {flows} are left")
    return observations


def name_of_memory(daemon: str) -> str:
    return f"memory of the kernel's maps with {MOST_FLOWS:,} flows, {daemon}"


def name_by_slabs(daemon: str) -> str:
    return f"{name_of_memory(daemon)}, by the slabs' growth"


def _subjects(lab: Lab, running: Daemons) -> Mapping[str, tuple[Process, bytes]]:
    """By the daemon's name, with what it knows of each flow."""
    node = lab.topology.nodes[0]
    return {
        "balancer": (running.balancer, population.balancer_row(node.bridge)),
        "packetbridge": (running.packetbridges[node.name], population.packetbridge_row()),
    }


def _fill(process: Process, row: bytes, vip_index: int, flows: int) -> int:
    """Bytes by which the kernel's slabs have grown."""
    before = slab_bytes()
    with flows_of(process) as table:
        population.fill(table, row, vip_index, flows)
    return slab_bytes() - before


def slab_bytes() -> int:
    found = re.search(r"^Slab:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found is None:
        raise BenchError("/proc/meminfo does not say how large the slabs are")
    return int(found[1]) * BYTES_PER_KIB
