"""What is said of a flood, and whether it is what is wanted."""

import dataclasses

from bench import thresholds
from bench.readings import Observation
from bench.scale import flood
from bench.scale.flood import Outcome
from bench.scale.memory import name_by_slabs, name_of_memory
from tests.unit.bench.figures_of_a_run import RESULTS

OUTCOME = Outcome(
    syns=199_000.5, answered=199_100, times=[0.001, None, 0.003, 0.002], broken=["ConnectionResetError"]
)


def test_a_flood_is_told_by_who_came_and_who_was_served() -> None:
    told = {each.name: list(each.values) for each in flood.observations("ebpf", 200_000, OUTCOME)}
    assert told == {
        "SYNs that came, SYN flood of 200,000/s": [199_000.5],
        "answered SYNs, SYN flood of 200,000/s": [199_100],
        "new connections answered, SYN flood of 200,000/s": [75.0],
        "p50 of new connections, SYN flood of 200,000/s": [2.0],
        "p99 of new connections, SYN flood of 200,000/s": [3.0],
        "established flows broken, SYN flood of 200,000/s": [1],
    }


def test_times_are_left_out_where_nobody_was_answered() -> None:
    nobody = dataclasses.replace(OUTCOME, times=[None, None])
    told = {each.name: list(each.values) for each in flood.observations("raw", 0, nobody)}
    assert told == {
        "new connections answered, no SYN flood": [0.0],
        "established flows broken, no SYN flood": [1],
    }


def test_memory_and_floods_are_held_against_what_is_wanted() -> None:
    calm = Outcome(syns=200_000, answered=200_100, times=[0.001] * 100, broken=[])
    observed = [
        Observation("l3dsr-ebpf", name_of_memory("balancer"), "MiB", 1, [299.0]),
        Observation("l3dsr-ebpf", name_by_slabs("balancer"), "MiB", 1, [301.0]),
        *flood.observations("ebpf", 200_000, calm),
    ]
    verdicts = {
        each.threshold.subject: each.reached
        for each in thresholds.judge(dataclasses.replace(RESULTS, observations=observed))
    }
    assert verdicts[name_of_memory("balancer")]
    assert not verdicts[name_by_slabs("balancer")]
    assert not verdicts[name_of_memory("packetbridge")]
    assert verdicts["new connections answered, SYN flood of 200,000/s"]
    assert verdicts["established flows broken, SYN flood of 200,000/s"]
