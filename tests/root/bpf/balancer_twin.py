"""The balancer's programs beside the core: both get every packet, and must answer alike.

A `Twin` is a `Scene` whose core is the reference. The programs are run by BPF_PROG_TEST_RUN; what they pass
up goes to a second core on their maps, as in the daemon. After each packet the bytes of what is sent are
compared, TTL excluded, and what was counted.
"""

import functools
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Self

import pytest

from balancer.core.connection import Flow
from balancer.core.engine import BalancerCore
from balancer.core.flow_table import HALF_OPEN_SECONDS, Tables
from balancer.core.service import DEFAULT_TIMEOUTS, Limits, Service, Services, Timeouts
from balancer.ebpf import abi
from balancer.ebpf.loads import MapLoads
from balancer.ebpf.passed_up import PassedUp
from balancer.ebpf.services import PublishedServices
from balancer.ebpf.tables import Keys, MapFlowTable, MapHalfOpenTable, MapVerifiedTable, row_of
from common.bpf.abi import CLOCK, HANDOFF_KEYS, Clock, HandoffKeys
from common.bpf.keys import halves
from common.bpf.maps import ArrayMap, HashMap, MapOfMaps, PerCpuArray
from common.bpf.objects import BpfObject, object_path
from common.bpf.run import PacketRun, SkBuff, run_packet, run_syscall
from common.wire import handoff
from common.wire.offload import NO_OFFLOAD, Packet
from tests.sim.segment import folded_sum
from tests.unit.balancer.scene import COOKIE_KEY, TAG_KEY, WALL_SECONDS, Scene, make_service
from tests.unit.wire.packets import siphash

LINK = bytes(12) + b"\x08\x00"
UNSPEC, SHOT, REDIRECT = -1, 2, 7
NODE_MTU = 1500
NS = 1_000_000_000
OUT_OF_CORE = {
    "forward_plain",
    "passed_up",
    "passed_up_limited",
    "no_route",
    "flows_added",
    "flows_removed",
    "dropped_unwritable",
    "dropped_unsigned",
}
"""Counters of the programs that the core does not have."""


class Programs:
    """The loaded object, its maps filled as the daemon fills them, at a time that stands still."""

    def __init__(
        self,
        services: Iterable[Service],
        limits: Limits,
        now: float,
        claims_per_second: int = 2000,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._limits = limits
        self._timeouts = timeouts
        self._claims_per_second = claims_per_second
        self._maps = self._load(now, None)
        self._object = self._maps
        self.set_time(now)
        self.published = PublishedServices(self.map("services"), MapOfMaps(self._maps.map("tables")))
        self.serve(services)
        low, high = halves(TAG_KEY)
        keys = HandoffKeys(low, high, 0, 0, current_id=0, previous_id=0, has_previous=0)
        self.map("handoff_keys").update(bytes(4), HANDOFF_KEYS.pack(keys))

    def serve(self, services: Iterable[Service]) -> None:
        """These, too."""
        with ExitStack() as drafting:
            for draft in self.published.draft(services, drafting):
                self.published.publish(draft, NODE_MTU)
                for node in draft.service.nodes.values():
                    self.map("routes").update(node.address, abi.ROUTE.pack(abi.RouteRow(1, node.address)))

    def loads(self) -> MapLoads:
        return MapLoads(
            self.map("nodes"), self.map("handed"), self.array("loads"), self.array("handed_total")
        )

    def _load(self, now: float, reused: BpfObject | None) -> BpfObject:
        low, high = halves(COOKIE_KEY)
        entries = {
            "flows": self._limits.flows,
            "verified": self._limits.verified,
            "half_open": self._limits.half_open,
        }
        maps = {
            *entries,
            "services",
            "tables",
            "routes",
            "claims",
            "handoff_keys",
            "counters",
            "limits",
            "clock",
            "nodes",
            "handed",
            "loads",
            "handed_total",
        }
        return BpfObject(
            object_path("balancer"),
            constants={
                "tun_ifindex": 1,
                "cookie_key_low": low,
                "cookie_key_high": high,
                "claims_per_second": self._claims_per_second,
                "resets_per_second": int(self._limits.resets_per_second),
                "open_idle_seconds": int(self._timeouts.idle),
                "verified_seconds": int(self._timeouts.verified),
                "fixed_now_ns": round(now * NS),
            },
            max_entries=entries,
            reuse={name: reused.map(name) for name in maps} if reused else {},
        )

    def set_time(self, now: float) -> None:
        """A constant of the programs: they are loaded again, and keep their maps."""
        before, self._object = self._object, self._load(now, self._maps)
        if before is not self._maps:
            before.close()
        clock = ArrayMap(self._maps.map("clock"))
        clock.update(0, CLOCK.pack(Clock(WALL_SECONDS * NS - round(now * NS))))

    def map(self, name: str) -> HashMap:
        return HashMap(self._maps.map(name))

    def array(self, name: str) -> ArrayMap:
        return ArrayMap(self._maps.map(name))

    def run(self, packet: bytes, *, repeat: int = 1, gso_size: int = 0) -> PacketRun:
        context = SkBuff(ifindex=1, gso_size=gso_size)
        return run_packet(self._object.program("ingress"), LINK + packet, context, repeat=repeat)

    def program(self, name: str) -> int:
        """Its descriptor, until the next `set_time`."""
        return self._object.program(name)

    def sweep(self) -> abi.SweepResult:
        run_syscall(self._object.program("sweep"))
        return abi.SWEEP_RESULT.unpack(ArrayMap(self._object.map("sweep_result")).lookup(0))

    @property
    def counters(self) -> Counter[str]:
        counters = PerCpuArray(self._maps.map("counters"))
        return Counter({each.name.lower(): counters.sums(each)[0] for each in abi.Counter})

    def close(self) -> None:
        self.published.close()
        self._object.close()
        self._maps.close()


class Twin(Scene):
    def __init__(
        self,
        *services: Service,
        limits: Limits | None = None,
        now: float = 1000.0,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        claims_per_second: int = 2000,
    ) -> None:
        services = services or (make_service(),)
        limits = limits or Limits(flows=10_000, verified=1000, half_open=1000)
        super().__init__(*services, limits=limits, now=now, timeouts=timeouts)
        self.programs = Programs(services, limits, now, claims_per_second, timeouts)
        self._programs_time = now
        self.claims = self.programs.map("claims")
        known = Services(services)
        tables = Tables(
            MapFlowTable(self.programs.map("flows"), known),
            MapVerifiedTable(self.programs.map("verified"), known, timeouts.verified),
            MapHalfOpenTable(self.programs.map("half_open"), known, HALF_OPEN_SECONDS),
        )
        sign = functools.partial(handoff.sign, mac=functools.partial(siphash, TAG_KEY))
        cookie_mac = functools.partial(siphash, COOKIE_KEY)
        self.upper = BalancerCore(
            known, cookie_mac, sign, lambda: WALL_SECONDS, limits, tables, self.programs.loads(), timeouts
        )
        self.passed_up = PassedUp(self.upper, tables, self.claims)
        self.keys = Keys(known)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.programs.close()

    def receive_packet(self, packet: Packet) -> list[Packet]:
        if packet.offload != NO_OFFLOAD:
            pytest.skip("BPF_PROG_TEST_RUN has no partial checksums and no superpackets")
        expected = super().receive_packet(packet)
        made = self._by_programs(packet)
        assert [_comparable(each.data) for each in made] == [_comparable(each.data) for each in expected]
        self.check_counters()
        return expected

    def pass_time(self, seconds: float) -> list[bytes]:
        end = self.now + seconds
        made: list[bytes] = []
        while (deadline := self.passed_up.next_deadline() or end + 1) <= end:
            made += (packet.data for packet in self.passed_up.on_timeout(max(self.now, deadline)))
        expected = super().pass_time(seconds)
        self.programs.set_time(self.now)
        self._programs_time = self.now
        self.programs.sweep()
        assert sorted(map(_comparable, made)) == sorted(map(_comparable, expected))
        return expected

    def release(self) -> None:
        """What the daemon does now and then: connections that Python has forgotten are no longer claimed."""
        for packed, _ in list(self.claims.items()):
            key = self.keys.unpack(packed)
            if key is None or not self.upper.owns(key):
                self.claims.delete(packed)

    def correct(self, service: Service, node: str, flows: int | None) -> None:
        """What a node says of itself, to both."""
        for core in (self.core, self.upper):
            core.loads.correct(service.vip_index, service.nodes[node].address, flows)

    def check_counters(self) -> None:
        programs, upper = self.programs.counters, Counter(dict(self.upper.counters))
        core = Counter(dict(self.core.counters))
        made = programs + upper
        differing = {name for name in {*core, *made} - OUT_OF_CORE if core[name] != made[name]}
        assert {name: (core[name], made[name]) for name in differing} == {}

    def check_tables(self) -> None:
        """Flows with their activity, handshakes and SYNs are the same, times in whole seconds."""
        tables = self.core._connections
        flows: dict[bytes, Flow] = dict(tables.flows._values)  # type: ignore[attr-defined]
        made = {
            self.keys.unpack(key): abi.FLOW.unpack(row) for key, row in self.programs.map("flows").items()
        }
        assert {key: _essence(row) for key, row in made.items()} == {
            key: _essence(row_of(flow)) for key, flow in flows.items()
        }
        held: dict[str, Iterable[bytes]] = {
            "verified": tables.verified._values,  # type: ignore[attr-defined]
            "half_open": self.core._greeter._half_open._values,  # type: ignore[attr-defined]
        }
        for name, keys in held.items():
            assert {key for key, _ in self.programs.map(name).items()} == set(map(self.keys.pack, keys))

    def _by_programs(self, packet: Packet) -> list[Packet]:
        if self.now != self._programs_time:
            self.programs.set_time(self.now)
            self._programs_time = self.now
        before = self.programs.counters["passed_up"]
        done = self.programs.run(packet.data)
        assert done.verdict in (SHOT, REDIRECT)
        if done.verdict == SHOT:
            return []
        made = Packet(done.packet[len(LINK) :])
        if self.programs.counters["passed_up"] == before:
            return [made]
        assert made.data == packet.data
        return self.passed_up.receive(made, self.now)


def _essence(row: abi.FlowRow) -> abi.FlowRow:
    """Without a FIN that counts no more; until when it is contested may differ by the part of a second."""
    fin = row.client.fin if row.client.has_fin else 0
    return row._replace(client=row.client._replace(fin=fin), contested_until=bool(row.contested_until))


def _comparable(packet: bytes) -> tuple[bytes, int]:
    """All but TTL and IP checksum, and by how much the latter is wrong."""
    total = int.from_bytes(packet[2:4], "big")
    return packet[:8] + packet[9:10] + packet[12:total], folded_sum(packet[:20])
