"""The tables that the data planes keep in different places: in this process, or in BPF maps."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypeVar

from balancer.core.connection import Flow, Handshake, Hello
from balancer.core.service import DEFAULT_TIMEOUTS, Limits, Timeouts
from common.deadlines import Deadlines
from common.tables import Aging, AgingTable, DictTable, Table
from common.wire import syncookie
from common.wire.segment import FlowKey

HALF_OPEN_SECONDS = syncookie.LIFETIME_SECONDS
"""As long as the cookie may be good: what the SYN-ACK offered must be known when it is taken up."""
_IDLE_RESOLUTION = 1.0
Value = TypeVar("Value")


class FlowTable(Table[FlowKey, Flow], Protocol):
    """Flows, which are forgotten when they have been idle for as long as their phase allows."""

    def attend(self, key: FlowKey, flow: Flow) -> None:
        """Take note of the activity of ``flow``, which is in the table and has changed."""
        ...

    def expire(self, now: float) -> None: ...

    def next_deadline(self) -> float | None: ...

    def items(self) -> Iterator[tuple[FlowKey, Flow]]:
        """All of them, while they may change."""
        ...

    def keys(self) -> Iterator[FlowKey]:
        """The same, without the flows."""
        ...


class HandshakeTable(Aging[FlowKey, Value], Protocol[Value]):
    def keys(self) -> Iterator[FlowKey]:
        """All of them, while they may change."""
        ...


class Tables(NamedTuple):
    """All keys are client to VIP."""

    flows: FlowTable
    verified: HandshakeTable[Handshake]
    half_open: HandshakeTable[Hello]


def in_memory(limits: Limits, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> Tables:
    return Tables(
        DictFlowTable(limits.flows, timeouts.idle),
        AgingTable(limits.verified, timeouts.verified),
        AgingTable(limits.half_open, HALF_OPEN_SECONDS),
    )


class DictFlowTable(DictTable[FlowKey, Flow]):
    """``idle`` is how many seconds a flow that has not ended may be silent."""

    def __init__(self, capacity: int, idle: float = DEFAULT_TIMEOUTS.idle) -> None:
        super().__init__(capacity)
        self._idle_seconds = idle
        self._idle: Deadlines[FlowKey] = Deadlines(_IDLE_RESOLUTION)

    def attend(self, key: FlowKey, flow: Flow) -> None:
        self._idle.set(key, self._deadline(flow))

    def delete(self, key: FlowKey) -> None:
        super().delete(key)
        self._idle.cancel(key)

    def expire(self, now: float) -> None:
        for key in self._idle.due(now):
            flow = self.get(key)
            if flow is not None and self._deadline(flow) > now:
                self.attend(key, flow)
            else:
                super().delete(key)

    def next_deadline(self) -> float | None:
        return self._idle.next()

    def _deadline(self, flow: Flow) -> float:
        """When the flow may be forgotten: not before the cookie that it began with has lost its worth."""
        idle = flow.activity.idle_deadline(self._idle_seconds)
        return max(idle, flow.begun + syncookie.LIFETIME_SECONDS)
