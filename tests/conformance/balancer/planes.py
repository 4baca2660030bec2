"""The balancer on both data planes."""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from ipaddress import IPv4Address

from balancer.core.classify import check_flags, classify
from balancer.core.engine import BalancerCore
from balancer.core.flow_table import HALF_OPEN_SECONDS, Tables, in_memory
from balancer.core.loads import CountedLoads
from balancer.core.machine import RULES, Event, State
from balancer.core.service import DEFAULT_TIMEOUTS, Limits, Service, Services
from balancer.ebpf import abi
from balancer.ebpf.loads import MapLoads
from balancer.ebpf.passed_up import PassedUp
from balancer.ebpf.plane import CLAIMS_PER_SECOND
from balancer.ebpf.services import PublishedServices
from balancer.ebpf.tables import Keys, MapFlowTable, MapHalfOpenTable, MapVerifiedTable
from common.bpf import keys
from common.bpf.abi import CLOCK, Clock
from common.bpf.counts import read_counts
from common.bpf.maps import MapOfMaps, PerCpuArray
from common.bpf.run import SkBuff, run_packet, run_syscall
from common.keyring import Keyring
from common.net.intake import of_balancer
from common.wire import offload, rewrite
from common.wire import segment as segments
from common.wire.errors import WireError
from common.wire.offload import NO_OFFLOAD, Packet
from common.wire.segment import FLOW_KEY_AT, FLOW_KEY_END, FlowKey
from tests.conformance import loaded
from tests.conformance.loaded import LINK, NS, REDIRECT, SHOT, UNSPEC, Loads
from tests.conformance.oracle import COOKIE_KEY, START, TAG_KEY, WALL
from tests.conformance.plane import Filter, Waited
from tests.unit.wire.packets import siphash

LIMITS = Limits(half_open=1000, verified=1000, collecting=1000, flows=1000)
NODE_MTU = 1500
KEYRING = Keyring((TAG_KEY,))
PATROL_SECONDS = 2.0
"""A claim that is left over is found by the second of Python's looks, which are a second apart."""
Rule = tuple[State, Event]


def _core(
    services: Services, limits: Limits, tables: Tables, clock: "_Clock", loads: MapLoads | CountedLoads
) -> BalancerCore:
    mac = functools.partial(siphash, COOKIE_KEY)
    return BalancerCore(services, mac, KEYRING.sign, clock.wall, limits, tables, loads)


class _Clock:
    """It moves when it is told to."""

    def __init__(self) -> None:
        self.now = START

    def wall(self) -> int:
        return WALL + math.floor(self.now - START)


class Core:
    """The raw plane without its sockets; it notes which rules of the state machine packets came by."""

    passed_up = 0

    def __init__(self, service: Service, limits: Limits = LIMITS) -> None:
        self.rules: set[Rule] = set()
        self.tables = in_memory(limits)
        self._clock = _Clock()
        self.loads = CountedLoads()
        self._core = _core(Services([service]), limits, self.tables, self._clock, self.loads)
        self._filter = Filter(of_balancer(IPv4Address(service.vip), service.port))
        self._keys: set[FlowKey] = set()

    @property
    def counters(self) -> Counter[str]:
        return Counter(self._core.counters)

    def arrive(self, packet: bytes) -> list[bytes] | None:
        if not self._filter.takes(packet):
            return None
        buffer = bytearray(offload.emit(NO_OFFLOAD) + packet + bytes(64))
        length = min(int.from_bytes(packet[2:4], "big"), len(packet))
        plan = self._core.plan(buffer, offload.SIZE, length, self._clock.now)
        if plan is not None:
            self.rules.add((State.ESTABLISHED, Event.SEGMENT))
            rewrite.apply(plan, buffer, offload.SIZE)
            return [bytes(buffer[offload.SIZE : offload.SIZE + len(packet)])]
        rule = self._rule(packet)
        made = _data(self._core.receive(Packet(packet), self._clock.now))
        if rule is not None:
            self.rules.add(rule)
            after = self._state(packet[FLOW_KEY_AT:FLOW_KEY_END])
            assert after in RULES[rule].outcomes, f"{rule} has led to {after}"
        return made

    def leave(self, packet: bytes) -> list[bytes] | None:
        raise NotImplementedError("nothing leaves through a balancer")

    def wait(self, seconds: float) -> Waited:
        end = self._clock.now + seconds
        made: list[bytes] = []
        while (deadline := self._core.next_deadline() or math.inf) <= end:
            self._clock.now = max(self._clock.now, deadline)
            before = {key: self._state(key) for key in self._keys}
            made += _data(self._core.on_timeout(self._clock.now))
            changed = {state for key, state in before.items() if state is not self._state(key)}
            self.rules |= {(state, Event.TIMEOUT) for state in changed}
        self._clock.now = end
        return Waited(made, [])

    def answer(self, said: Mapping[bytes, bool]) -> None:
        raise NotImplementedError("a balancer has no questions")

    def _rule(self, packet: bytes) -> Rule | None:
        """None where it is no segment that the state machine sees."""
        try:
            whole = segments.without_padding(Packet(packet))
            segment = segments.parse_untrusted(whole)
            check_flags(segment)
        except WireError:
            return None
        self._keys.add(segment.key)
        service = self._core.services.of_client(segment.key)
        if service is None:
            return None
        connections, greeter = self._core._connections, self._core._greeter
        arrival = classify(connections, greeter, service, whole, segment, self._clock.now)
        return arrival.state, arrival.event

    def _state(self, key: FlowKey) -> State:
        return self._core._connections.state_of(key)


class Programs:
    """The programs by BPF_PROG_TEST_RUN, and Python's part on their maps. One for many vectors, in turn."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        low, high = keys.halves(COOKIE_KEY)
        self._limits = limits
        self._loads = Loads(
            "balancer",
            {
                "tun_ifindex": loaded.tun_index(),
                "cookie_key_low": low,
                "cookie_key_high": high,
                "claims_per_second": CLAIMS_PER_SECOND,
                "resets_per_second": int(limits.resets_per_second),
            },
            {"flows": limits.flows, "verified": limits.verified, "half_open": limits.half_open},
        )
        keys.write(self._loads.hash_map("handoff_keys"), KEYRING)
        clock = CLOCK.pack(Clock(WALL * NS - round(START * NS)))
        self._loads.array_map("clock").update(0, clock)
        self._claims = self._loads.hash_map("claims")
        self._counters = PerCpuArray(self._loads.map("counters"))
        self._service: Service | None = None

    def begin(self, service: Service) -> None:
        """Forget what was, and serve this."""
        self._loads.clear("flows", "verified", "half_open", "claims", "limits")
        if service != self._service:
            self._serve(service)
        self._clock = _Clock()
        services = Services([service])
        self.tables = Tables(
            MapFlowTable(self._loads.hash_map("flows"), services),
            MapVerifiedTable(self._loads.hash_map("verified"), services, DEFAULT_TIMEOUTS.verified),
            MapHalfOpenTable(self._loads.hash_map("half_open"), services, HALF_OPEN_SECONDS),
        )
        self.loads = MapLoads(
            self._loads.hash_map("nodes"),
            self._loads.hash_map("handed"),
            self._loads.array_map("loads"),
            self._loads.array_map("handed_total"),
        )
        self._core = _core(services, self._limits, self.tables, self._clock, self.loads)
        self._python = PassedUp(self._core, self.tables, self._claims)
        self._keys = Keys(services)
        self._counted = self._counts()
        self.passed_up = 0

    @property
    def counters(self) -> Counter[str]:
        return self._counts() - self._counted + Counter(self._core.counters)

    def arrive(self, packet: bytes) -> list[bytes] | None:
        before = self._to_python()
        program = self._loads.program("ingress", self._clock.now)
        done = run_packet(program, LINK + packet, SkBuff(ifindex=loaded.LOOPBACK))
        made = done.packet[len(LINK) :]
        if done.verdict == UNSPEC:
            assert made == packet, "a packet that is left to the host was changed"
            return None
        if done.verdict == SHOT:
            return []
        assert done.verdict == REDIRECT
        if self._to_python() == before:
            return [made]
        assert made == packet, "a packet that is passed up was changed"
        self.passed_up += 1
        return _data(self._python.receive(Packet(packet), self._clock.now))

    def leave(self, packet: bytes) -> list[bytes] | None:
        raise NotImplementedError("nothing leaves through a balancer")

    def wait(self, seconds: float) -> Waited:
        end = self._clock.now + seconds
        made: list[bytes] = []
        while (deadline := self._python.next_deadline() or math.inf) <= end:
            self._clock.now = max(self._clock.now, deadline)
            made += _data(self._python.on_timeout(self._clock.now))
        self._clock.now = end
        if seconds >= PATROL_SECONDS:
            for key, _ in list(self._claims.items()):
                connection = self._keys.unpack(key)
                assert connection is not None
                self._python._release(connection)
        run_syscall(self._loads.program("sweep", end))
        return Waited(made, [])

    def answer(self, said: Mapping[bytes, bool]) -> None:
        raise NotImplementedError("a balancer has no questions")

    def close(self) -> None:
        self._loads.close()

    def _serve(self, service: Service) -> None:
        self._loads.clear("services", "routes")
        rows, tables = self._loads.hash_map("services"), MapOfMaps(self._loads.map("tables"))
        with closing(PublishedServices(rows, tables)) as published, ExitStack() as drafting:
            for draft in published.draft([service], drafting):
                published.publish(draft, NODE_MTU)
        for node in service.nodes.values():
            way = abi.ROUTE.pack(abi.RouteRow(loaded.LOOPBACK, node.address))
            self._loads.hash_map("routes").update(node.address, way)
        self._service = service

    def _to_python(self) -> int:
        return self._counters.sums(abi.Counter.PASSED_UP)[0]

    def _counts(self) -> Counter[str]:
        return Counter(read_counts(self._counters, abi.Counter))


def _data(packets: Iterable[Packet]) -> list[bytes]:
    return [packet.data for packet in packets]
