"""What a data plane is to the suite, and how it is given packets."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from common.net import cbpf
from common.net.intake import Intake
from tests.unit.net.test_cbpf import IPV4_TO_US, NOTHING, run
from tests.unit.wire.packets import ip_checksum_error


class Waited(NamedTuple):
    """What came of time that passed."""

    packets: list[bytes]
    questions: list[bytes]
    """Flow keys, backend to client."""


class Plane(Protocol):
    """Packets are those of layer 3. Where a list is None, the packet is left to the host as it is."""

    passed_up: int
    """Packets that programs left to Python."""

    def arrive(self, packet: bytes) -> list[bytes] | None: ...

    def leave(self, packet: bytes) -> list[bytes] | None: ...

    def wait(self, seconds: float) -> Waited: ...

    def answer(self, said: Mapping[bytes, bool]) -> None:
        """What the kernel says of all flows in question: whether each has a socket."""
        ...

    @property
    def counters(self) -> Counter[str]: ...


class Filter:
    """Whether a tap gives the packet to its daemon: the filter itself, interpreted."""

    def __init__(self, intake: Intake) -> None:
        self._program = cbpf.program(intake, 0)

    def takes(self, packet: bytes) -> bool:
        return run(self._program, packet, IPV4_TO_US) != NOTHING


def comparable(packet: bytes) -> tuple[bytes, int]:
    """All of a packet but TTL and what a link adds behind it; of the IP checksum, how wrong it is."""
    if len(packet) < 20:
        return packet, 0
    total = int.from_bytes(packet[2:4], "big")
    return packet[:8] + packet[9:10] + packet[12:total], ip_checksum_error(packet)
