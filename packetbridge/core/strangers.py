"""Clients whose flow is unknown.

Their handoff may have been lost, and is then sent again, a retransmission timeout later. So the first such
packet is only remembered; a flow that is still unknown after `GRACE_SECONDS` is reset in the name of the VIP,
which is what a host does that knows no such connection (RFC 9293 section 3.10.7.1). A flow that is known to
be lost is reset with its next packet.
"""

from collections.abc import Callable

from common.counters import Counters
from common.limit import TokenBucket
from common.tables import AgingTable
from common.tcp import reset
from common.wire import segment
from common.wire.offload import Packet
from common.wire.segment import FlowKey, Segment
from packetbridge.core.service import Service

GRACE_SECONDS = 3.0
"""Longer than the retransmission timeout of a client a second away."""
LOST_SECONDS = 60.0
"""How long a client that was probed may take to answer."""


class Strangers:
    """Keyed by the flow's key, backend to client."""

    def __init__(
        self,
        capacity: int,
        resets_per_second: float,
        counters: Counters[str],
        is_known: Callable[[Service, FlowKey], bool] = lambda *_: False,
    ) -> None:
        """``is_known`` tells of flows that have come without a word to `forget`."""
        self._seen: AgingTable[FlowKey, tuple[Service, Segment]] = AgingTable(capacity, GRACE_SECONDS)
        self._lost: AgingTable[FlowKey, None] = AgingTable(capacity, LOST_SECONDS)
        self._resets = TokenBucket(resets_per_second, resets_per_second)
        self._counters = counters
        self._is_known = is_known

    def expect(self, key: FlowKey, now: float) -> None:
        """The flow is lost: its client's next packet is answered with a RST."""
        self._lost.expire(now)
        self._lost.put(key, None, now)

    def expects(self, key: FlowKey) -> bool:
        return key in self._lost

    def meet(self, key: FlowKey, service: Service, received: Segment, now: float) -> list[Packet]:
        """What to send at once. The newest segment is kept: what it acknowledges makes a later RST exact."""
        self._lost.expire(now)
        if key in self._lost:
            return self.reset(service, received, now)
        if not self._seen.put(key, (service, received._replace(payload=b"", options=b"")), now):
            self._counters["strangers_full"] += 1
        return []

    def reset(self, service: Service, received: Segment, now: float) -> list[Packet]:
        """The RST as the VIP that answers the segment, if the rate allows one more."""
        answer = reset.answer(received)
        if answer is None:
            return []
        if not self._resets.take(now):
            self._counters["stranger_reset_limited"] += 1
            return []
        self._counters["stranger_reset"] += 1
        return [segment.emit(answer._replace(source=service.vip, source_port=service.vip_port))]

    def forget(self, key: FlowKey) -> None:
        self._seen.delete(key)
        self._lost.delete(key)

    def due(self, now: float) -> list[Packet]:
        """The resets of those that waited long enough."""
        packets = []
        for key, (service, received) in self._seen.expire(now):
            if not self._is_known(service, key):
                packets += self.reset(service, received, now)
        return packets

    def next_deadline(self) -> float | None:
        return self._seen.next_deadline()

    def __len__(self) -> int:
        return len(self._seen)
