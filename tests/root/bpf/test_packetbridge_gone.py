"""VIPs that are gone, and what becomes of their flows."""

import pytest

from common.bpf.forget import forget
from packetbridge.ebpf.abi import FLOW, StateNumber
from tests.root.bpf.packetbridge_twin import DROPPED, SERVICES, Bridges, signed
from tests.unit.packetbridge.scene import CI, LI, SIZE, from_backend, from_client, handoff
from tests.unit.wire.packets import ACK, FIN, RST, built

pytestmark = pytest.mark.root

PROGRAM = "forget_services"


def open_flows(twins: Bridges) -> list[int]:
    return list(twins.programs.open_flows(SERVICES).values())


def test_flows_of_a_vip_that_is_gone_are_buried(twins: Bridges) -> None:
    twins.settle()
    assert open_flows(twins) == [1, 0]
    assert forget(twins.programs.program(PROGRAM), [2]) == 0
    assert open_flows(twins) == [1, 0]
    assert forget(twins.programs.program(PROGRAM), [1, 63]) == 1
    assert open_flows(twins) == [0, 0]
    assert twins.programs.flows.count() == 0
    outcome = twins.programs.run("ingress", built(signed(handoff())))
    assert outcome.verdict != DROPPED
    assert outcome.packet[33] == RST, "a replay"


def test_a_flow_that_is_over_is_buried_and_does_not_count(twins: Bridges) -> None:
    twins.settle()
    twins.balancer(from_client(flags=ACK | FIN))
    twins.backend(from_backend(flags=ACK | FIN, got=SIZE + 1))
    assert forget(twins.programs.program(PROGRAM), [1]) == 0
    assert twins.programs.flows.count() == 0
    assert open_flows(twins) == [0, 0]


def test_a_flow_that_opens_is_left_to_the_sweep(twins: Bridges) -> None:
    twins.balancer(signed(handoff(client_isn=CI + 1, balancer_isn=LI + 1)))
    assert forget(twins.programs.program(PROGRAM), [1]) == 0
    assert [FLOW.unpack(row).state for _, row in twins.programs.flows.items()] == [StateNumber.OPENING]
    assert open_flows(twins) == [1, 0]
