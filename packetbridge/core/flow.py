"""A flow's entry in the tables, and what is needed only until its legs are joined.

Entries are immutable and replaced as a whole, except for the two `Activity` cells. There may be very many of
them that do nothing, so what an established flow does not need is not in it, and `origin` is packed.
"""

import struct
from typing import NamedTuple

from common.tcp.activity import Activity, Phase
from common.wire import seq
from common.wire.handoff import Handoff
from common.wire.offload import Packet
from common.wire.rewrite import Rewrite, Splice
from common.wire.segment import FlowKey
from packetbridge.core.machine import State
from packetbridge.core.service import Service, Timeouts
from packetbridge.core.splice import Plans

OPENING_IDLE_SECONDS = 60.0

_ORIGIN = struct.Struct(">III")


class Origin(NamedTuple):
    """Which of the connections that ever had these addresses and ports."""

    client_isn: int
    balancer_isn: int
    time: int
    """Wall-clock seconds at which its first handoff was made."""

    def is_same(self, other: "Origin") -> bool:
        """Whether both are of one connection, whenever the handoffs were made."""
        return self[:2] == other[:2]


class Opening(NamedTuple):
    """A flow whose backend has not answered."""

    handoff: Handoff
    """The first one, without its payload."""
    waiting: tuple[Packet, ...]
    """The client's segments in the order of their arrival, as they came."""
    waiting_bytes: int
    replaced_isn: int | None
    """The client's ISN of the flow whose place this one took."""
    retries: int = 0
    """How often the backend was reset because of an older connection."""


class Echoing(NamedTuple):
    """A flow whose client has echoed nothing of the backend's."""

    to_backend: Rewrite
    floor: int
    """TSval of the backend's SYN-ACK."""


class Flow(NamedTuple):
    service: Service
    key: FlowKey
    """Backend to client."""
    packed_origin: bytes
    state: State
    client: Activity
    backend: Activity
    to_backend: Rewrite | None
    """None as long as packets of the client need more than this plan."""
    to_client: Rewrite | None
    """None while opening."""
    prelude: Opening | Echoing | None

    @property
    def origin(self) -> Origin:
        return Origin(*_ORIGIN.unpack(self.packed_origin))

    @property
    def opening(self) -> Opening:
        """Only in OPENING."""
        if not isinstance(self.prelude, Opening):
            raise LookupError(f"{self.state.name} has no opening")
        return self.prelude

    @property
    def echoing(self) -> Echoing:
        """Only in ECHOING."""
        if not isinstance(self.prelude, Echoing):
            raise LookupError(f"{self.state.name} knows no echo")
        return self.prelude

    @property
    def plans(self) -> Plans:
        """Not in OPENING."""
        to_backend = self.prelude.to_backend if isinstance(self.prelude, Echoing) else self.to_backend
        if to_backend is None or self.to_client is None:
            raise LookupError(f"{self.state.name} has no plans")
        return Plans(to_backend, self.to_client)

    @property
    def splice(self) -> Splice:
        """Not in OPENING."""
        if self.to_client is None or self.to_client.splice is None:
            raise LookupError(f"{self.state.name} is not spliced")
        return self.to_client.splice

    @property
    def backend_isn(self) -> int:
        """Not in OPENING."""
        return seq.add(self.origin.balancer_isn, -self.splice.seq_delta)

    @property
    def waiting_bytes(self) -> int:
        return self.prelude.waiting_bytes if isinstance(self.prelude, Opening) else 0

    @property
    def is_closed(self) -> bool:
        """Whether both sides have finished."""
        return self.client.phase is Phase.FINISHED and self.backend.phase is Phase.FINISHED

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come: both sides have finished, or one has reset the connection."""
        return self.is_closed or Phase.RESET in (self.client.phase, self.backend.phase)

    def idle_deadline(self, timeouts: Timeouts) -> float:
        if self.state is State.OPENING:
            return self.client.seen + OPENING_IDLE_SECONDS
        idle = min(timeouts.of_phase(self.client.phase), timeouts.of_phase(self.backend.phase))
        return max(self.client.seen, self.backend.seen) + idle


def pack_origin(origin: Origin) -> bytes:
    return _ORIGIN.pack(*origin)
