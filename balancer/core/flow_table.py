"""The tables that the data planes keep in different places: in this process, or in BPF maps."""

from typing import NamedTuple, Protocol

from balancer.core.connection import Flow, Handshake, Hello
from balancer.core.service import Limits
from common.deadlines import Deadlines
from common.tables import Aging, AgingTable, DictTable, Table
from common.wire import syncookie
from common.wire.segment import FlowKey

VERIFIED_SECONDS = 300.0
HALF_OPEN_SECONDS = syncookie.LIFETIME_SECONDS
"""As long as the cookie may be good: what the SYN-ACK offered must be known when it is taken up."""
_IDLE_RESOLUTION = 1.0


class FlowTable(Table[FlowKey, Flow], Protocol):
    """Flows, which are forgotten when they have been idle for as long as their phase allows."""

    def attend(self, key: FlowKey, flow: Flow) -> None:
        """Take note of the activity of ``flow``, which is in the table and has changed."""
        ...

    def expire(self, now: float) -> None: ...

    def next_deadline(self) -> float | None: ...


class Tables(NamedTuple):
    """All keys are client to VIP."""

    flows: FlowTable
    verified: Aging[FlowKey, Handshake]
    half_open: Aging[FlowKey, Hello]


def in_memory(limits: Limits) -> Tables:
    return Tables(
        DictFlowTable(limits.flows),
        AgingTable(limits.verified, VERIFIED_SECONDS),
        AgingTable(limits.half_open, HALF_OPEN_SECONDS),
    )


class DictFlowTable(DictTable[FlowKey, Flow]):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._idle: Deadlines[FlowKey] = Deadlines(_IDLE_RESOLUTION)

    def attend(self, key: FlowKey, flow: Flow) -> None:
        self._idle.set(key, _deadline(flow))

    def delete(self, key: FlowKey) -> None:
        super().delete(key)
        self._idle.cancel(key)

    def expire(self, now: float) -> None:
        for key in self._idle.due(now):
            flow = self.get(key)
            if flow is not None and _deadline(flow) > now:
                self.attend(key, flow)
            else:
                super().delete(key)

    def next_deadline(self) -> float | None:
        return self._idle.next()


def _deadline(flow: Flow) -> float:
    """When the flow may be forgotten: not before the cookie that it began with has lost its worth."""
    return max(flow.activity.idle_deadline(), flow.begun + syncookie.LIFETIME_SECONDS)
