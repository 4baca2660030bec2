"""Who gets new flows: rosters and configuration in, tables for the data plane out.

For each service a roster says what its nodes weigh at the moment, going by health checks, the operator's
word and the configuration. Whenever that has changed, a lookup table is made of it and the data plane is
told. The channel's words on the nodes' flows go on to the plane's loads.
"""

import copy
import logging
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import islice

import trio

from balancer.config import BalancerConfig, OnFail, PoolConfig, ServiceConfig
from balancer.core.loads import FACTOR_ONE, Loads
from balancer.core.probe import CheckResult
from balancer.core.roster import Admin, Change, Member, MemberState, Roster, Settings
from balancer.core.service import Service, make_nodes
from balancer.engine import BalancerEngine
from balancer.paths import PathMtu, Paths
from balancer.rates import Rates
from balancer.saved import SavedWords
from common.control import CommandError
from common.hashing.maglev import LookupTable
from common.net.errors import HostError
from common.wire.offload import Packet

RESETS_AT_ONCE = 30
RESETS_PAUSE_SECONDS = 0.03
"""Between as many: what the clients say is answered by resets, which are rationed."""
TICK_SECONDS = 1.0
QUESTIONS_KEPT = 4
"""To one node: more than are asked in a period."""


@dataclass(slots=True)
class Served:
    """One service that is configured, and what it is at the moment."""

    config: ServiceConfig
    roster: Roster
    service: Service
    weights: dict[str, int] = field(default_factory=dict)
    """As the service's table has them."""
    shares: dict[str, float] = field(init=False)
    """Of the slots of the service's table, of the nodes that have any."""

    def __post_init__(self) -> None:
        self.take(self.service)

    def take(self, service: Service) -> None:
        self.service = service
        self.shares = {} if service.table is None else _shares(service.table)


class Director:
    """The plane is told from `direct` on. All methods are for one thread."""

    def __init__(
        self, config: BalancerConfig, path_mtu: PathMtu, saved: SavedWords, logger: logging.Logger
    ) -> None:
        """``saved`` are the operator's words of an earlier run. `HostError` where no handoff fits a path, or
        none of a service's nodes has a route.
        """
        self.generation = 1
        self._saved = saved
        self._logger = logger
        self._plane: BalancerEngine | None = None
        self._rates = Rates()
        self._resets: deque[Iterator[Packet]] = deque()
        self._woken = trio.Event()
        self._handed_before: dict[tuple[int, bytes], deque[tuple[float, int]]] = {}
        """By VIP index and bridge address: when the node was asked, and flows handed over by then."""
        self._paths_changed = False
        self._paths = Paths(config.addresses.values(), path_mtu, logger)
        self.refusal = ""
        """Why the data plane does not have what rosters and paths say; empty where it has."""
        self._served: dict[int, Served] = {}
        self._served, changes = self._planned(config, time.monotonic())
        self._paths.say_missing()
        self._tell(changes)

    @property
    def services(self) -> list[Service]:
        return [served.service for served in self._served.values()]

    @property
    def served(self) -> Mapping[int, Served]:
        """By VIP index."""
        return self._served

    @property
    def loads(self) -> Loads:
        return self._directed().loads

    def direct(self, plane: BalancerEngine) -> None:
        """From now on, this one, which has `services`."""
        self._plane = plane

    def configure(self, config: BalancerConfig) -> None:
        """Another configuration, all of it; or `ConfigError` or `HostError`, and all stays as it was."""
        planned, changes = self._planned(config, time.monotonic())
        self._apply([served.service for served in planned.values()])
        self._served = planned
        for index, address in list(self._handed_before):
            if index not in self._indexes_with(address):
                del self._handed_before[index, address]
        self._tell(changes)
        self.generation += 1
        self._wake()

    def check_result(self, vip_index: int, address: bytes, result: CheckResult) -> None:
        served = self._served.get(vip_index)
        node = served and next(
            (n.name for n in served.config.pool.nodes if n.address.packed == address), None
        )
        if served and node:
            self._carry_out(served, served.roster.check_result(node, result, time.monotonic()))

    def set_admin(self, node: str, wish: Admin) -> None:
        """`CommandError` where no service has such a node."""
        for served in self._having(node):
            self._carry_out(served, served.roster.set_admin(node, wish, time.monotonic()))
        self._keep_words()

    def set_weight(self, node: str, weight: int | None) -> None:
        """None: as configured. `CommandError`."""
        for served in self._having(node):
            self._carry_out(served, served.roster.set_weight(node, weight))
        self._keep_words()

    def is_to_be_checked(self, vip_index: int, node: str) -> bool:
        return self._served[vip_index].roster.is_to_be_checked(node)

    def ask(self, address: bytes, now: float) -> None:
        """A node is about to be asked for its flows: what it is handed from now on counts beside its word."""
        for index in self._indexes_with(address):
            asked = self._handed_before.setdefault((index, address), deque(maxlen=QUESTIONS_KEPT))
            asked.append((now, self.loads.of(index, address).handed))

    def hear(self, address: bytes, flows: Mapping[int, int], asked: float) -> None:
        """A node's word on its flows by VIP index, as the answer to the question of the moment ``asked``.

        Of the flows that it was handed since then, the word may hold none, or all. Between the two it is what
        was known before that counts: the word before this one, and all that the node was handed since.
        """
        for index in self._indexes_with(address):
            known, handed = self.loads.of(index, address)
            before = dict(self._handed_before.get((index, address), ())).get(asked, handed)
            said = flows.get(index, 0)
            most = said + max(handed - before, 0)
            self.loads.correct(index, address, most if known is None else min(max(said, known), most))

    def hear_nothing(self, address: bytes) -> None:
        """The node has no word any more."""
        for index in self._indexes_with(address):
            self.loads.correct(index, address, None)

    def look_at_paths(self) -> None:
        """Routes may have changed, and path MTUs with them."""
        self._paths_changed = True
        self._wake()

    def refresh(self) -> None:
        """Have the plane do what rosters say by now, and the path MTUs that were found."""
        now = time.monotonic()
        changed = {
            index: service
            for index, served in self._served.items()
            if (service := self._service(served, now)) is not served.service
        }
        if not changed:
            return
        self._apply([changed.get(index, served.service) for index, served in self._served.items()])
        for index, service in changed.items():
            self._served[index].take(service)
            self._served[index].weights = self._served[index].roster.weights(now)

    async def run(self) -> None:
        """For ever: slow starts, rates, and resets of what failed nodes leave."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            nursery.start_soon(self._reset_flows)

    def states(self, served: Served) -> list[MemberState]:
        return served.roster.states(time.monotonic())

    def handed(self, vip_index: int, address: bytes) -> tuple[int, float]:
        """New flows handed to a node since the start, and by second."""
        total = self.loads.of(vip_index, address).handed
        return total, self._rates.of((vip_index, address))

    def _planned(
        self, config: BalancerConfig, now: float
    ) -> tuple[dict[int, Served], list[tuple[str, Change]]]:
        """What is to be served under ``config``, going by what is known of the nodes; and of which services,
        by name, that changes which nodes.
        """
        self._paths.add(config.addresses.values())
        known = {served.config.vip: served for served in self._served.values()}
        planned = {}
        changed: list[tuple[str, Change]] = []
        for wanted in config.services:
            members, settings = _members(wanted.pool), _settings(wanted.pool)
            before = known.get(wanted.vip)
            roster = Roster(members, settings) if before is None else copy.deepcopy(before.roster)
            changes = roster.configure(members, settings, now)
            changes += roster.from_saved(self._saved.words, now)
            changed += ((wanted.name, change) for change in changes)
            weights = roster.weights(now)
            service = self._made(wanted, weights, self._max_payload(wanted.pool))
            planned[wanted.index] = Served(wanted, roster, service, weights)
        return planned, changed

    def _service(self, served: Served, now: float) -> Service:
        """The very same where nothing has changed."""
        weights = served.roster.weights(now)
        try:
            payload = self._max_payload(served.config.pool)
        except HostError:  # no handoff would fit for the moment: what was found before stands
            payload = served.service.max_payload
        if weights != served.weights:
            return self._made(served.config, weights, payload)
        if payload != served.service.max_payload:
            return served.service._replace(max_payload=payload)
        return served.service

    def _made(self, config: ServiceConfig, weights: Mapping[str, int], max_payload: int) -> Service:
        vip, port = config.vip.wire
        addresses = {node.name: node.address.packed for node in config.pool.nodes}
        weighed = {name: (address, weights[name]) for name, address in addresses.items()}
        nodes, table = make_nodes(vip, port, config.index, weighed)
        factor = config.pool.load_factor
        return Service(
            vip=vip,
            port=port,
            vip_index=config.index,
            nodes=nodes,
            table=table,
            key=config.key,
            hash_seed=config.hash_seed,
            non_http=config.non_http,
            promised_scale=config.promised_scale,
            max_payload=max_payload,
            weights=dict(weighed.values()),
            load_factor=0 if factor is None else round(factor * FACTOR_ONE),
        )

    def _max_payload(self, pool: PoolConfig) -> int:
        """See `Paths.payload`."""
        return self._paths.payload([node.address for node in pool.nodes])

    def _directed(self) -> BalancerEngine:
        if self._plane is None:
            raise RuntimeError("no data plane is directed yet")
        return self._plane

    def _apply(self, services: list[Service]) -> None:
        if self._plane is not None:
            self._plane.engine.apply(services)

    def _carry_out(self, served: Served, changes: Iterable[Change]) -> None:
        changes = list(changes)
        if not changes:
            return
        self._tell((served.config.name, change) for change in changes)
        self._refresh()
        self._wake()
        if served.config.pool.on_fail is OnFail.RESET:
            for change in changes:
                if change.has_failed:
                    address = served.service.nodes[change.node].address
                    self._resets.append(self._directed().forget_node(served.config.index, address))

    def _tell(self, changes: Iterable[tuple[str, Change]]) -> None:
        """Log those of services, by name."""
        for service, change in changes:
            is_bad = change.has_failed or "down" in change.after.value
            level = logging.WARNING if is_bad else logging.INFO
            self._logger.log(level, "service %s: %s", service, change.text, extra={"node": change.node})

    def _indexes_with(self, address: bytes) -> list[int]:
        """VIP indexes of the services that have a node."""
        return [
            index
            for index, served in self._served.items()
            if any(node.address.packed == address for node in served.config.pool.nodes)
        ]

    def _having(self, node: str) -> list[Served]:
        found = [
            served
            for served in self._served.values()
            if any(configured.name == node for configured in served.config.pool.nodes)
        ]
        if not found:
            names = sorted({n.name for served in self._served.values() for n in served.config.pool.nodes})
            raise CommandError(f"there is no node {node}; there are {', '.join(names)}")
        return found

    def _keep_words(self) -> None:
        words: dict[str, dict[str, str | int]] = {}
        for served in self._served.values():
            words |= served.roster.to_saved()
        self._saved.keep(words)

    def _wake(self) -> None:
        self._woken.set()

    async def _keep_time(self) -> None:
        while True:
            now = time.monotonic()
            deadlines = [served.roster.next_deadline(now) for served in self._served.values()]
            next_step = min((at for at in deadlines if at is not None), default=now + TICK_SECONDS)
            with trio.move_on_after(min(max(next_step - now, 0.01), TICK_SECONDS)):
                await self._woken.wait()
            self._woken = trio.Event()
            self._count_rates()
            if self._paths_changed:
                self._paths_changed = False
                await self._paths.look(self._addresses)
            self._refresh()

    def _addresses(self) -> set[IPv4Address]:
        return {node.address for served in self._served.values() for node in served.config.pool.nodes}

    def _refresh(self) -> None:
        """Where the host refuses it, it is tried again with the next tick, and said once."""
        try:
            self.refresh()
        except HostError as error:
            if str(error) != self.refusal:
                self._logger.error("the data plane does not take what has changed: %s", error)
            self.refusal = str(error)
        else:
            self.refusal = ""

    def _count_rates(self) -> None:
        loads, now = self.loads, time.monotonic()
        handed: dict[Hashable, int] = {
            (index, node.address.packed): loads.of(index, node.address.packed).handed
            for index, served in self._served.items()
            for node in served.config.pool.nodes
        }
        self._rates.note(handed, now)

    async def _reset_flows(self) -> None:
        while True:
            while self._resets:
                packets = list(islice(self._resets[0], RESETS_AT_ONCE))
                if not packets:
                    self._resets.popleft()
                self._directed().engine.loop.send(packets)
                await trio.sleep(RESETS_PAUSE_SECONDS)
            await trio.sleep(TICK_SECONDS / 4)


def _shares(table: LookupTable) -> dict[str, float]:
    return {table.names[node]: slots / len(table.slots) for node, slots in Counter(table.slots).items()}


def _members(pool: PoolConfig) -> list[Member]:
    return [Member(node.name, node.address.packed, node.weight) for node in pool.nodes]


def _settings(pool: PoolConfig) -> Settings:
    health = pool.health
    if health is None:
        return Settings(is_checked=False, slow_start=pool.slow_start, no_node=pool.no_node)
    return Settings(True, health.rise, health.fall, pool.slow_start, pool.no_node)
