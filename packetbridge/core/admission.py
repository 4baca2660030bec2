"""Which handoffs are believed (docs/handoff.md, the receiver's steps), and which have had their day.

A flow that has ended leaves a tombstone for as long as a handoff is good, so that no copy of its handoff,
however late, gives a request to the server twice. Their number is bounded: the oldest goes first.
"""

from collections.abc import Callable
from typing import NamedTuple

from common.tables import AgingTable
from common.wire import handoff
from common.wire.errors import WireError
from common.wire.handoff import Handoff
from common.wire.segment import FlowKey, Segment
from packetbridge.core.flow import Origin

TOMBSTONE_SECONDS = 2.0 * handoff.MAX_AGE_SECONDS + 1
"""As long as a handoff may be believed that was made before the flow ended: the node's clock may be behind by
a whole age, and ages are counted in whole seconds."""


class Admitted(NamedTuple):
    handoff: Handoff
    origin: Origin


class Admission:
    def __init__(
        self, verify: Callable[[Handoff], bool], wall_clock: Callable[[], int], tombstones: int
    ) -> None:
        """``verify`` checks the tag; ``wall_clock`` gives seconds since the epoch."""
        self._verify = verify
        self._wall_clock = wall_clock
        self._tombstones: AgingTable[tuple[FlowKey, int, int], bool] = AgingTable(
            tombstones, TOMBSTONE_SECONDS
        )

    def admit(self, segment: Segment) -> Admitted:
        """The handoff in a SYN from the balancer; raises WireError if it is none, or not to be believed."""
        offered = handoff.parse_untrusted(segment)
        if not self._verify(offered):
            raise WireError("handoff_bad_tag")
        wall_seconds = self._wall_clock()
        age = handoff.age(offered, wall_seconds)
        if abs(age) > handoff.MAX_AGE_SECONDS:
            raise WireError("handoff_too_old")
        return Admitted(offered, Origin(offered.seq, offered.ack, wall_seconds - age))

    def bury(self, key: FlowKey, origin: Origin, now: float) -> None:
        """From now on handoffs of this connection are replays."""
        name = (key, origin.client_isn, origin.balancer_isn)
        self._tombstones.delete(name)
        if not self._tombstones.put(name, True, now) and (oldest := self._tombstones.oldest()):
            self._tombstones.delete(oldest)
            self._tombstones.put(name, True, now)

    def is_buried(self, key: FlowKey, origin: Origin, now: float) -> bool:
        self._tombstones.expire(now)
        return bool(self._tombstones.get((key, origin.client_isn, origin.balancer_isn)))

    def __len__(self) -> int:
        """How many tombstones there are."""
        return len(self._tombstones)
