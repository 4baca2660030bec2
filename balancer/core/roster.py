"""The nodes of one service: which of them get new flows, and how many (`RULES` says when that changes).

A node is UP until its checks say otherwise: `Settings.fall` failures in a row take it down, `Settings.rise`
successes bring it back. The operator can drain it (no new flows, the old ones go on, checks too) or put it
into maintenance (no checks either). After maintenance it counts as up, but one failure takes it down.

A node that comes back from DOWN or MAINTENANCE starts slowly: its weight grows from one tenth to the whole in
steps of one tenth. The weights given out are therefore `STEPS` times the configured ones; a lookup table does
not care about a common factor.

Nothing here reads a clock, and nothing is logged: what happened is returned as `Change`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from balancer.core.hearsay import Failure
from balancer.core.probe import CheckResult
from common.config import MAX_WEIGHT

STEPS = 10
"""Of a slow start, and the factor of the weights given out."""


class State(Enum):
    UP = "up"
    DOWN = "down"
    DRAIN = "drain"
    DRAIN_DOWN = "drain, down"
    """Would be down, were it not draining."""
    MAINTENANCE = "maintenance"


class Event(Enum):
    FELL = "enough failures in a row"
    ROSE = "enough successes in a row"
    READY = "ready"
    DRAIN = "drain"
    MAINTENANCE = "maintenance"


RULES: Mapping[tuple[State, Event], State] = {
    (State.UP, Event.FELL): State.DOWN,
    (State.UP, Event.DRAIN): State.DRAIN,
    (State.UP, Event.MAINTENANCE): State.MAINTENANCE,
    (State.DOWN, Event.ROSE): State.UP,
    (State.DOWN, Event.DRAIN): State.DRAIN_DOWN,
    (State.DOWN, Event.MAINTENANCE): State.MAINTENANCE,
    (State.DRAIN, Event.FELL): State.DRAIN_DOWN,
    (State.DRAIN, Event.READY): State.UP,
    (State.DRAIN, Event.MAINTENANCE): State.MAINTENANCE,
    (State.DRAIN_DOWN, Event.ROSE): State.DRAIN,
    (State.DRAIN_DOWN, Event.READY): State.DOWN,
    (State.DRAIN_DOWN, Event.MAINTENANCE): State.MAINTENANCE,
    (State.MAINTENANCE, Event.READY): State.UP,
    (State.MAINTENANCE, Event.DRAIN): State.DRAIN,
}
"""Pairs that are not listed change nothing."""

_HEALTHY = frozenset((State.UP, State.DRAIN))
_COLD = frozenset((State.DOWN, State.MAINTENANCE))


class Admin(Enum):
    """What the operator wants of a node."""

    READY = "ready"
    DRAIN = "drain"
    MAINTENANCE = "maintenance"


_WISHES = {
    Admin.READY: Event.READY,
    Admin.DRAIN: Event.DRAIN,
    Admin.MAINTENANCE: Event.MAINTENANCE,
}
_WISHED = {
    State.DRAIN: Admin.DRAIN,
    State.DRAIN_DOWN: Admin.DRAIN,
    State.MAINTENANCE: Admin.MAINTENANCE,
}


class NoNode(Enum):
    """What becomes of new connections while no node is up."""

    REFUSE = "503"
    ALL = "all"
    """They go to all nodes, in case that the checks are wrong; not to those in drain or maintenance."""


class Member(NamedTuple):
    name: str
    address: bytes
    """Bridge address, 4 bytes. A name with another address is another machine, of which nothing is known."""
    weight: int


class Settings(NamedTuple):
    is_checked: bool = True
    """Without checks every node is healthy."""
    rise: int = 2
    fall: int = 3
    slow_start: float = 0.0
    """Seconds; 0: a recovered node has its whole weight at once."""
    no_node: NoNode = NoNode.REFUSE


class Change(NamedTuple):
    """What happened to a node, for the log and for whoever resets the flows of a failed one."""

    node: str
    before: State
    after: State
    """As before where only the weight, or the reason of being down, has changed."""
    text: str

    @property
    def has_failed(self) -> bool:
        """Whether this is where its health was lost."""
        return self.before in _HEALTHY and self.after in (State.DOWN, State.DRAIN_DOWN)


class MemberState(NamedTuple):
    name: str
    address: bytes
    state: str
    """up, down, drain or maintenance."""
    reason: str
    """Why its checks fail, while they count as failed; else empty."""
    weight: int
    """As set by the operator, or else as configured."""
    effective_weight: float
    """In the unit of `weight`."""
    checked: float | None
    """How many seconds ago the last check ended; None where there was none."""


@dataclass(slots=True)
class _Member:
    configured: Member
    state: State = State.UP
    weight: int | None = None
    """The operator's."""
    in_a_row: int = 0
    """Successes of a node that is down, failures of one that is not."""
    failure: Failure | None = None
    reason: str = ""
    checked_at: float | None = None
    recovered_at: float | None = None

    @property
    def wanted_weight(self) -> int:
        return self.configured.weight if self.weight is None else self.weight


class Roster:
    """Times are seconds of the caller's monotonic clock. A node that is not known by name is a `KeyError`."""

    def __init__(self, members: Iterable[Member], settings: Settings) -> None:
        self._settings = settings
        self._members = {member.name: _Member(member) for member in members}

    def configure(self, members: Iterable[Member], settings: Settings, now: float) -> list[Change]:
        """From now on these. Of those that stay, health and the operator's word stay too."""
        self._settings = settings
        before, self._members = self._members, {}
        changes = []
        for member in members:
            known = before.get(member.name)
            if known is None:
                known = _Member(member)
            elif known.configured.address != member.address:
                wish, weight = _WISHED.get(known.state, Admin.READY), known.weight
                known = _Member(member, RULES.get((State.UP, _WISHES[wish]), State.UP), weight)
            known.configured = member
            self._members[member.name] = known
            if not settings.is_checked:
                changes += self._move(known, Event.ROSE, now, "its checks are switched off")
        return changes

    def check_result(self, node: str, result: CheckResult, now: float) -> list[Change]:
        """A check has ended. Nothing for a node that is gone or in maintenance meanwhile."""
        member = self._members.get(node)
        if member is None or member.state is State.MAINTENANCE or not self._settings.is_checked:
            return []
        member.checked_at = now
        if result.ok:
            return self._passed(member, now)
        return self._failed(member, result, now)

    def set_admin(self, node: str, wish: Admin, now: float) -> list[Change]:
        member = self._members[node]
        was_in_maintenance = member.state is State.MAINTENANCE
        changes = self._move(member, _WISHES[wish], now, "the operator wants it")
        if was_in_maintenance and changes:
            member.in_a_row = max(self._settings.fall - 1, 0)
        return changes

    def set_weight(self, node: str, weight: int | None) -> list[Change]:
        """The operator's weight, up to `MAX_WEIGHT`, instead of the configured one; None: that one again."""
        member = self._members[node]
        before, member.weight = member.wanted_weight, weight
        if member.wanted_weight == before:
            return []
        text = f"node {node} has weight {member.wanted_weight}, no longer {before}"
        return [Change(node, member.state, member.state, text)]

    def weights(self, now: float) -> dict[str, int]:
        """`STEPS` times the weights in effect, of all nodes; 0 for those that get no new flows."""
        weights = {name: self._effective(member, now) for name, member in self._members.items()}
        if self._settings.no_node is NoNode.ALL and not any(weights.values()):
            hopeful = (State.UP, State.DOWN)
            return {
                name: STEPS * member.wanted_weight if member.state in hopeful else 0
                for name, member in self._members.items()
            }
        return weights

    def next_deadline(self, now: float) -> float | None:
        """When `weights` changes by itself, next."""
        steps = [self._next_step(member, now) for member in self._members.values()]
        return min((step for step in steps if step is not None), default=None)

    def states(self, now: float) -> list[MemberState]:
        """In the order of the configuration."""
        weights = self.weights(now)
        return [
            MemberState(
                name,
                member.configured.address,
                State.DRAIN.value if member.state is State.DRAIN_DOWN else member.state.value,
                member.reason if member.state in (State.DOWN, State.DRAIN_DOWN) else "",
                member.wanted_weight,
                weights[name] / STEPS,
                None if member.checked_at is None else max(now - member.checked_at, 0.0),
            )
            for name, member in self._members.items()
        ]

    def is_to_be_checked(self, node: str) -> bool:
        return self._settings.is_checked and self._members[node].state is not State.MAINTENANCE

    def to_saved(self) -> dict[str, dict[str, str | int]]:
        """The operator's word on each node that is not as configured, to be kept as JSON."""
        saved: dict[str, dict[str, str | int]] = {}
        for name, member in self._members.items():
            word: dict[str, str | int] = {}
            if (wish := _WISHED.get(member.state)) is not None:
                word["admin"] = wish.value
            if member.weight is not None:
                word["weight"] = member.weight
            if word:
                saved[name] = word
        return saved

    def from_saved(self, saved: Mapping[str, object], now: float) -> list[Change]:
        """Take up what `to_saved` gave, perhaps long ago; what is not understood is skipped."""
        changes = []
        for name, word in saved.items():
            if name not in self._members or not isinstance(word, Mapping):
                continue
            wish, weight = word.get("admin"), word.get("weight")
            if isinstance(wish, str) and wish in (Admin.DRAIN.value, Admin.MAINTENANCE.value):
                changes += self.set_admin(name, Admin(wish), now)
            if type(weight) is int and 0 <= weight <= MAX_WEIGHT:
                changes += self.set_weight(name, weight)
        return changes

    def _passed(self, member: _Member, now: float) -> list[Change]:
        if member.state in _HEALTHY:
            member.in_a_row = 0
            return []
        member.in_a_row += 1
        if member.in_a_row < self._settings.rise:
            return []
        return self._move(member, Event.ROSE, now, "its checks pass")

    def _failed(self, member: _Member, result: CheckResult, now: float) -> list[Change]:
        known, member.failure, member.reason = member.failure, result.failure, result.text
        if member.state not in _HEALTHY:
            member.in_a_row = 0
            if known is result.failure:
                return []
            text = f"node {member.configured.name} is still down: {result.text}"
            return [Change(member.configured.name, member.state, member.state, text)]
        member.in_a_row += 1
        if member.in_a_row < self._settings.fall:
            return []
        return self._move(member, Event.FELL, now, result.text)

    def _move(self, member: _Member, event: Event, now: float, why: str) -> list[Change]:
        """To the state that the rules say."""
        before = member.state
        after = RULES.get((before, event))
        if after is None:
            return []
        member.state = after
        member.in_a_row = 0
        if after in _HEALTHY:
            member.failure, member.reason = None, ""
        if after is State.UP:
            member.recovered_at = now if before in _COLD else None
        name = member.configured.name
        return [Change(name, before, after, f"node {name} is {_SAID[after]}: {why}")]

    def _effective(self, member: _Member, now: float) -> int:
        return member.wanted_weight * self._step(member, now) if member.state is State.UP else 0

    def _step(self, member: _Member, now: float) -> int:
        """1 to `STEPS`."""
        span = self._settings.slow_start
        if member.recovered_at is None or span <= 0 or now >= member.recovered_at + span:
            return STEPS
        step = 1
        while step < STEPS and now >= self._step_ends(member.recovered_at, step):
            step += 1
        return step

    def _next_step(self, member: _Member, now: float) -> float | None:
        step = self._step(member, now)
        if member.state is not State.UP or member.recovered_at is None or step == STEPS:
            return None
        return self._step_ends(member.recovered_at, step)

    def _step_ends(self, recovered_at: float, step: int) -> float:
        return recovered_at + self._settings.slow_start * step / (STEPS - 1)


_SAID = {
    State.UP: "up",
    State.DOWN: "down",
    State.DRAIN: "draining",
    State.DRAIN_DOWN: "draining and down",
    State.MAINTENANCE: "in maintenance",
}
