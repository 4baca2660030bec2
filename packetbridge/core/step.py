"""One event of one flow on its way through the state machine."""

from typing import NamedTuple

from common.counters import Counters
from common.wire.offload import Packet
from common.wire.segment import Segment
from packetbridge.core.flow import Flow


class Received(NamedTuple):
    """A packet as it came, and what it says."""

    packet: Packet
    segment: Segment


class Step:
    """What an action is given, and where it leaves what follows from it.

    Timers come without ``received``, and there is no flow where none is known; the actions of such
    events ask for neither.
    """

    __slots__ = ("_flow", "_received", "counters", "is_question", "is_stranger", "now", "packets", "room")

    def __init__(
        self,
        flow: Flow | None,
        received: Received | None,
        now: float,
        counters: Counters[str],
        room: int = 0,
    ) -> None:
        self._flow = flow
        self._received = received
        self.now = now
        self.counters = counters
        self.room = room
        """Bytes that may still wait for the backend."""
        self.packets: list[Packet] = []
        self.is_stranger = False
        """Whether the segment is to be answered with a RST unless its handoff comes."""
        self.is_question = False
        """Whether the kernel is to be asked for the flow's socket."""

    def forward(self, counter: str, packet: Packet) -> None:
        """Send a packet of one end on to the other; its bytes are counted, as the IP header has them."""
        self.counters[counter] += int.from_bytes(packet.data[2:4], "big")
        self.packets.append(packet)

    @property
    def flow(self) -> Flow:
        """The flow as it is, or as the action leaves it."""
        if self._flow is None:
            raise LookupError("this event has no flow")
        return self._flow

    @flow.setter
    def flow(self, flow: Flow) -> None:
        self._flow = flow

    @property
    def received(self) -> Received:
        if self._received is None:
            raise LookupError("this event has no packet")
        return self._received
