"""All connections: which state each is in, and when it is forgotten."""

from collections.abc import Iterable

from balancer.core.connection import Answered, Collecting, Flow
from balancer.core.flow_table import Tables
from balancer.core.machine import State
from balancer.core.service import Limits, Service, keys_among
from common.deadlines import Deadlines, earliest
from common.tables import AgingTable, DictTable, TableFullError
from common.wire.segment import FlowKey

ANSWERED_SECONDS = 60.0
_PREAMBLE_RESOLUTION = 0.005


class Connections:
    """A key (client to VIP) is in one table at a time."""

    def __init__(self, limits: Limits, tables: Tables) -> None:
        self.flows = tables.flows
        self.verified = tables.verified
        self.answered: AgingTable[FlowKey, Answered] = AgingTable(limits.answered, ANSWERED_SECONDS)
        self.collecting: DictTable[FlowKey, Collecting] = DictTable(limits.collecting)
        self.collecting_bytes = 0
        self._max_collecting_bytes = limits.collecting_bytes
        self._patience: Deadlines[FlowKey] = Deadlines(_PREAMBLE_RESOLUTION)

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

    def answer(self, key: FlowKey, answered: Answered, now: float) -> bool:
        """Remember what was answered. False where there is no room."""
        self._forget_preamble(key)
        return self.answered.put(key, answered, now)

    def forget(self, key: FlowKey) -> None:
        self._forget_preamble(key)
        self.flows.delete(key)
        self.answered.delete(key)

    def forget_services(self, services: Iterable[Service]) -> int:
        """Returns how many of their connections were flows."""
        flows = keys_among(self.flows.keys(), services)
        for key in flows:
            self.forget(key)
        for table in (self.verified, self.collecting, self.answered):
            for key in keys_among(table.keys(), services):
                self.forget(key)
        return len(flows)

    def expire(self, now: float) -> list[FlowKey]:
        """Forget what has lived too long. Returns the keys whose preamble was waited for long enough."""
        self.verified.expire(now)
        self.answered.expire(now)
        self.flows.expire(now)
        return self._patience.due(now)

    def next_deadline(self) -> float | None:
        return earliest(
            self._patience.next(),
            self.flows.next_deadline(),
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
