"""Both ends of a flow speak at the same moment, each on a CPU of its own: open flows are counted once."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from ctypes import c_uint64
from functools import partial
from typing import Any

import pytest

from common.bpf.abi import FLOW_ID, ActivityCell, FlowId, PhaseNumber
from common.bpf.run import SkBuff, run_packet, run_syscall
from common.wire import handoff as wire_handoff
from common.wire import segment
from common.wire.offload import Packet
from packetbridge.ebpf.abi import FLOW, FlowRow, StandingNumber, StateNumber
from tests.root.bpf.packetbridge_twin import KEYS, LINK, LOOPBACK, NOW, SERVICES, Programs
from tests.unit.packetbridge import scene
from tests.unit.packetbridge.scene import CI, LI, SI, SIZE, WALL, from_backend, from_client
from tests.unit.wire.packets import ACK, FIN, RST, Described, built

pytestmark = pytest.mark.root

FLOWS = 3000
"""Enough that two CPUs meet at some, if they have the time."""
PORTS = range(20_000, 20_000 + FLOWS)
SOURCE_PORT, DESTINATION_PORT = 20, 22
"""Where they stand in a packet."""
SWEEPS = 60
Run = Callable[[], object]
STEP_SECONDS = 10
"""For so long two processes keep in step: on a busy machine each step takes its time."""
PATIENCE = 60
"""Seconds."""


def key(port: int) -> bytes:
    return FLOW_ID.pack(FlowId(scene.BACKEND_KEY[4:8], port.to_bytes(2, "big"), 1))


def established(phase: PhaseNumber) -> FlowRow:
    now = int(NOW)
    return FlowRow(
        client=ActivityCell(scene.add(CI, 1 + SIZE), 0, now, phase, has_fin=0),
        backend=ActivityCell(scene.add(SI, 1), 0, now, phase, has_fin=0),
        client_isn=CI,
        balancer_isn=LI,
        time=WALL - 1,
        seq_delta=(LI - SI) % 2**32,
        value_delta=0,
        floor=0,
        backend_shift=0,
        client_shift=0,
        state=StateNumber.ESTABLISHED,
    )


def for_each_port(described: Described, port_at: int) -> list[bytes]:
    """The TCP checksum is not right: the programs pass on an error that there is."""
    data = built(described)
    return [data[:port_at] + port.to_bytes(2, "big") + data[port_at + 2 :] for port in PORTS]


def handoffs() -> list[bytes]:
    """Of later connections than `established`."""
    described = scene.handoff(client_isn=CI + 9999, balancer_isn=LI + 9999)
    offered = wire_handoff.parse_untrusted(segment.parse_untrusted(Packet(built(described))))
    made = [KEYS.sign(offered._replace(client_port=port)) for port in PORTS]
    return [segment.emit(wire_handoff.emit(each)).data for each in made]


def runs(program: int, packets: Sequence[bytes]) -> list[Run]:
    context = SkBuff(ifindex=LOOPBACK)
    return [partial(run_packet, program, LINK + packet, context) for packet in packets]


def run_each(work: Sequence[Run]) -> None:
    for run in work:
        run()


def run_all(work: Sequence[Run], turns: Any, mine: int, cpu: int) -> None:
    """In step with the other process: neither begins its nth run before both have come to it."""
    os.sched_setaffinity(0, {cpu})
    end = time.monotonic() + STEP_SECONDS
    for turn, run in enumerate(work, 1):
        turns[mine] = turn
        while turns[1 - mine] < turn and time.monotonic() < end:
            os.sched_yield()
        run()


def at_once(one: Sequence[Run], other: Sequence[Run]) -> None:
    """Both of one length."""
    fork = multiprocessing.get_context("fork")
    turns = fork.RawArray(c_uint64, 2)
    cpus = sorted(os.sched_getaffinity(0))
    running = [
        fork.Process(target=run_all, args=(work, turns, mine, cpus[mine % len(cpus)]))
        for mine, work in enumerate((one, other))
    ]
    for process in running:
        process.start()
    try:
        for process in running:
            process.join(PATIENCE)
        assert [process.exitcode for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()


def begin(programs: Programs, phase: PhaseNumber) -> None:
    programs.begin(SERVICES)
    programs.set_time(NOW, WALL)
    for port in PORTS:
        programs.flows.update(key(port), FLOW.pack(established(phase)))
    programs.sweep()


def begin_claimed(programs: Programs, phase: PhaseNumber) -> None:
    """With one flow, which a CPU has claimed and does not remove."""
    programs.begin(SERVICES)
    programs.set_time(NOW, WALL)
    claimed = established(phase)._replace(standing=StandingNumber.LEAVING)
    programs.flows.update(key(PORTS[0]), FLOW.pack(claimed))
    programs.sweep()


def open_flows(programs: Programs) -> int:
    return programs.open_flows(SERVICES)[1]


@pytest.mark.parametrize("flags", [ACK | FIN, RST], ids=["fin", "rst"])
def test_a_flow_that_both_ends_close_at_the_same_moment_ends_once(
    bridge_programs: Programs, flags: int
) -> None:
    begin(bridge_programs, PhaseNumber.OPEN)
    assert open_flows(bridge_programs) == FLOWS
    at_once(
        runs(bridge_programs.program("ingress"), for_each_port(from_client(flags=flags), SOURCE_PORT)),
        runs(bridge_programs.program("egress"), for_each_port(from_backend(flags=flags), DESTINATION_PORT)),
    )
    assert open_flows(bridge_programs) == 0


def test_flows_that_end_while_a_sweep_counts_are_counted_by_one_of_both(bridge_programs: Programs) -> None:
    begin(bridge_programs, PhaseNumber.OPEN)
    ends = runs(bridge_programs.program("ingress"), for_each_port(from_client(flags=RST), SOURCE_PORT))
    at_once(
        [partial(run_each, ends[at : at + FLOWS // SWEEPS]) for at in range(0, FLOWS, FLOWS // SWEEPS)],
        [partial(run_syscall, bridge_programs.program("sweep"))] * SWEEPS,
    )
    assert open_flows(bridge_programs) == 0


def test_a_flow_whose_handoff_comes_on_two_cpus_begins_once(bridge_programs: Programs) -> None:
    begin(bridge_programs, PhaseNumber.FINISHED)
    assert open_flows(bridge_programs) == 0
    copies = runs(bridge_programs.program("ingress"), handoffs())
    at_once(copies, copies)
    assert bridge_programs.flows.count() == FLOWS
    assert open_flows(bridge_programs) == FLOWS


def test_a_flow_that_is_claimed_and_not_removed_counts_again(bridge_programs: Programs) -> None:
    begin_claimed(bridge_programs, PhaseNumber.OPEN)
    assert open_flows(bridge_programs) == 0
    bridge_programs.sweep()
    assert open_flows(bridge_programs) == 1
    run_each(runs(bridge_programs.program("ingress"), for_each_port(from_client(flags=RST), SOURCE_PORT)[:1]))
    assert open_flows(bridge_programs) == 0


def test_a_flow_that_is_claimed_and_not_removed_is_swept_when_it_is_idle(bridge_programs: Programs) -> None:
    begin_claimed(bridge_programs, PhaseNumber.FINISHED)
    bridge_programs.set_time(NOW + 100, WALL)
    for left in (1, 0):
        assert bridge_programs.flows.count() == left
        bridge_programs.sweep()
    assert bridge_programs.flows.count() == 0


def test_a_flow_that_is_claimed_and_not_removed_makes_room_for_a_later_one(bridge_programs: Programs) -> None:
    begin_claimed(bridge_programs, PhaseNumber.OPEN)
    run_each(runs(bridge_programs.program("ingress"), handoffs()[:1]))
    ((_, row),) = bridge_programs.flows.items()
    assert FLOW.unpack(row).client_isn == CI + 9999
    assert open_flows(bridge_programs) == 1
