"""Idle times other than the usual ones, in the programs as in the core."""

import pytest

from packetbridge.core.service import Timeouts
from tests.root.bpf.packetbridge_twin import Bridges, loaded_programs
from tests.unit.packetbridge.scene import SIZE, from_backend, from_client
from tests.unit.wire.packets import ACK, FIN

pytestmark = pytest.mark.root


def test_open_flow_is_asked_for_after_the_idle_time_that_is_configured() -> None:
    with loaded_programs(Timeouts(idle=300.0)) as programs:
        twins = Bridges(programs)
        twins.settle()
        assert twins.pass_time(299) == []
        assert len(twins.pass_time(65)) == 1


def test_idle_time_shorter_than_that_of_closed_flows_holds_for_these_too() -> None:
    with loaded_programs(Timeouts(idle=20.0)) as programs:
        twins = Bridges(programs)
        twins.settle()
        twins.balancer(from_client(flags=ACK | FIN))
        twins.backend(from_backend(flags=ACK | FIN, got=SIZE + 1))
        assert programs.open_flows([twins.core._services[1]]) == {1: 0}
        assert programs.flows.count() == 1
        assert twins.pass_time(25) == []
        assert programs.flows.count() == 0
