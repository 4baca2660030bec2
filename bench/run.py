"""The whole run: three labs, one after the other, and what is measured in each.

main      rounds of all workloads, bytes through the balancer, its start
MTU       bytes through the balancer, without segmentation offloads
memory    daemons that have not served anything yet
"""

import time
from collections.abc import Callable

from bench.contestants import Field, field_of
from bench.crossing import bytes_through_balancer
from bench.effort import Effort
from bench.measurement import Comparison, Reading
from bench.memory import idle_memory
from bench.report import Result
from bench.start import start_times
from bench.workloads import WORKLOADS
from lab import Lab, Process

EPHEMERAL_PORTS = "1024 65535"
Tell = Callable[[str], None]


def measure(effort: Effort, tell: Tell) -> Result:
    """`tell` is called with what comes next. LabError or BenchError where something cannot be measured."""
    started = time.monotonic()
    with Lab() as lab:
        field = field_of(lab.topology)
        _widen_ports(lab)
        _start_packetbridges(lab)
        balancer = lab.start_balancer()
        comparisons = _rounds(lab, field, effort, tell)
        tell("bytes through the balancer")
        observations = [bytes_through_balancer(lab, field.balanced, effort, mtu_sized=False)]
        tell("start of the balancer")
        starts = start_times(lab, field.balanced, balancer, effort)
    tell("bytes through the balancer, MTU-sized packets")
    with Lab(mtu_sized=True) as lab:
        lab.start_daemons()
        observations.append(bytes_through_balancer(lab, field.balanced, effort, mtu_sized=True))
    tell(f"memory of {effort.idle_flows:,} idle flows")
    with Lab() as lab:
        _widen_ports(lab)
        packetbridges = _start_packetbridges(lab)
        balancer = lab.start_balancer()
        observations += idle_memory(lab, field.balanced, balancer, packetbridges, effort.idle_flows)
    return Result(
        effort=effort,
        judged=field.balanced.name,
        comparisons=comparisons,
        observations=[*observations, starts],
        seconds=time.monotonic() - started,
    )


def _rounds(lab: Lab, field: Field, effort: Effort, tell: Tell) -> list[Comparison]:
    readings: list[dict[str, list[Reading]]] = [{each.name: [] for each in field.in_turn} for _ in WORKLOADS]
    for number in range(1, effort.rounds + 1):
        for workload, taken in zip(WORKLOADS, readings, strict=True):
            tell(f"round {number} of {effort.rounds}: {workload.quantity.name}")
            for contestant in field.in_turn:
                taken[contestant.name].append(workload.measure(lab, contestant, effort))
    return [
        Comparison(workload.quantity, field.direct.name, taken)
        for workload, taken in zip(WORKLOADS, readings, strict=True)
    ]


def _widen_ports(lab: Lab) -> None:
    """So that the client does not run out of ports, nor use one again within a second."""
    lab.client.sysctl("net.ipv4.ip_local_port_range", EPHEMERAL_PORTS)


def _start_packetbridges(lab: Lab) -> dict[str, Process]:
    """By their node's name."""
    return {node.name: lab.start_packetbridge(node.name) for node in lab.topology.nodes}
