"""The packetbridge's vectors on both data planes."""

import pytest

from packetbridge.core.machine import RULES
from tests.conformance.conftest import LoadedBridges
from tests.conformance.packetbridge import VECTORS
from tests.conformance.packetbridge.planes import LIMITS, Core
from tests.conformance.packetbridge.words import SERVICES
from tests.conformance.play import play
from tests.conformance.vector import Vector

every_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


def core_for(vector: Vector) -> Core:
    return Core(SERVICES, vector.bridge_limits or LIMITS)


@every_vector
def test_core_does_what_the_vector_says(vector: Vector) -> None:
    play(vector, core_for(vector), is_programs=False)


@pytest.mark.root
@every_vector
def test_programs_do_what_the_vector_says(vector: Vector, bridges: LoadedBridges) -> None:
    programs = bridges.within(vector.bridge_limits)
    programs.begin(SERVICES)
    play(vector, programs, is_programs=True)


def test_every_rule_of_the_machine_has_a_vector() -> None:
    met = set()
    for vector in VECTORS:
        core = core_for(vector)
        play(vector, core, is_programs=False)
        met |= core.rules
    assert set(RULES) - met == set()
