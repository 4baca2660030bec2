"""All connections of one service: which state each is in, and when it is forgotten."""

from balancer.core.connection import Answered, Collecting, Flow, Handshake
from balancer.core.machine import State
from balancer.core.service import Limits
from common.deadlines import Deadlines, earliest
from common.tables import AgingTable, DictTable, Table, TableFullError
from common.wire import syncookie
from common.wire.segment import FlowKey

VERIFIED_SECONDS = 300.0
ANSWERED_SECONDS = 60.0
_PREAMBLE_RESOLUTION = 0.005
_IDLE_RESOLUTION = 1.0


class Connections:
    """A key (client to VIP) is in one table at a time."""

    def __init__(self, limits: Limits) -> None:
        self.flows: Table[FlowKey, Flow] = DictTable(limits.flows)
        self.verified: AgingTable[FlowKey, Handshake] = AgingTable(limits.verified, VERIFIED_SECONDS)
        self.answered: AgingTable[FlowKey, Answered] = AgingTable(limits.answered, ANSWERED_SECONDS)
        self.collecting: Table[FlowKey, Collecting] = DictTable(limits.collecting)
        self.collecting_bytes = 0
        self._max_collecting_bytes = limits.collecting_bytes
        self._patience: Deadlines[FlowKey] = Deadlines(_PREAMBLE_RESOLUTION)
        self._idle: Deadlines[FlowKey] = Deadlines(_IDLE_RESOLUTION)

    def state_of(self, key: FlowKey) -> State:
        if self.flows.get(key) is not None:
            return State.ESTABLISHED
        if self.collecting.get(key) is not None:
            return State.COLLECTING
        if self.answered.get(key) is not None:
            return State.ANSWERED
        return State.UNKNOWN if self.verified.get(key) is None else State.VERIFIED

    def hold(self, key: FlowKey, collecting: Collecting) -> bool:
        """Keep the beginning of a preamble until its deadline. False where there is no room for it."""
        known = self.collecting.get(key)
        size = self.collecting_bytes + collecting.size - (known.size if known else 0)
        if size > self._max_collecting_bytes:
            return False
        if known is not None:
            self.collecting.replace(key, collecting)
        else:
            try:
                self.collecting.put_if_absent(key, collecting)
            except TableFullError:
                return False
        self.collecting_bytes = size
        self.verified.delete(key)
        self._patience.set(key, collecting.deadline)
        return True

    def establish(self, key: FlowKey, flow: Flow) -> Flow:
        """The flow under ``key``: this one, or whichever was there first. Raises `TableFullError`."""
        kept = self.flows.put_if_absent(key, flow)
        self._forget_preamble(key)
        return kept

    def attend(self, key: FlowKey, flow: Flow) -> None:
        """Look at the flow when it will have been idle for as long as its phase allows."""
        self._idle.set(key, _deadline(flow))

    def answer(self, key: FlowKey, answered: Answered, now: float) -> bool:
        """Remember what was answered. False where there is no room."""
        self._forget_preamble(key)
        return self.answered.put(key, answered, now)

    def forget(self, key: FlowKey) -> None:
        self._forget_preamble(key)
        self.flows.delete(key)
        self._idle.cancel(key)
        self.answered.delete(key)

    def expire(self, now: float) -> list[FlowKey]:
        """Forget what has lived too long. Returns the keys whose preamble was waited for long enough."""
        self.verified.expire(now)
        self.answered.expire(now)
        for key in self._idle.due(now):
            flow = self.flows.get(key)
            if flow is not None and _deadline(flow) > now:
                self.attend(key, flow)
            else:
                self.flows.delete(key)
        return self._patience.due(now)

    def next_deadline(self) -> float | None:
        return earliest(
            self._patience.next(),
            self._idle.next(),
            self.verified.next_deadline(),
            self.answered.next_deadline(),
        )

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "verified": len(self.verified),
            "collecting": len(self.collecting),
            "flows": len(self.flows),
            "answered": len(self.answered),
        }

    def _forget_preamble(self, key: FlowKey) -> None:
        collecting = self.collecting.get(key)
        if collecting is not None:
            self.collecting_bytes -= collecting.size
            self.collecting.delete(key)
        self._patience.cancel(key)
        self.verified.delete(key)


def _deadline(flow: Flow) -> float:
    """When the flow may be forgotten: not before the cookie that it began with has lost its worth."""
    return max(flow.activity.idle_deadline(), flow.begun + syncookie.LIFETIME_SECONDS)
