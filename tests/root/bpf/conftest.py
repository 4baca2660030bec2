"""What the tests of the packetbridge's programs share: one load of them, and twins that begin anew."""

from collections.abc import Iterator

import pytest

from tests.root.bpf.packetbridge_twin import Bridges, Programs, loaded_programs


@pytest.fixture(scope="module")
def bridge_programs() -> Iterator[Programs]:
    with loaded_programs() as programs:
        yield programs


@pytest.fixture
def twins(bridge_programs: Programs) -> Bridges:
    return Bridges(bridge_programs)
