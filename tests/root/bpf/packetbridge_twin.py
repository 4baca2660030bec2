"""The packetbridge twice, its core in Python and its eBPF programs: given the same packets, they must agree.

`Bridges` runs each packet through both and compares the layer-3 bytes that they send, where these go, and the
counters. Python's part of the eBPF plane is played too: what waits for a backend comes again afterwards.
"""

import os
import select
import socket
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from common.bpf import keys
from common.bpf.abi import CLOCK, ENDPOINT, WENT_ROUND, Clock, Endpoint, FlowId
from common.bpf.abi import FLOW_ID as FLOW_ID_LAYOUT
from common.bpf.maps import ArrayMap, HashMap, PerCpuArray
from common.bpf.objects import BpfObject, object_path
from common.bpf.run import SkBuff, run_packet, run_syscall
from common.keyring import Keyring
from common.wire import handoff as wire_handoff
from common.wire import offload, rewrite, segment
from common.wire.offload import NO_OFFLOAD, Packet
from packetbridge.core.engine import PacketbridgeCore
from packetbridge.core.service import Limits, Service, Timeouts
from packetbridge.ebpf.abi import FLOW, OPEN_FLOWS, SERVICE, SWEEP_RESULT, FlowRow, ServiceRow, SweepResult
from packetbridge.ebpf.abi import Counter as Count
from tests.bpf.arrays import clear_array
from tests.root.namespaces import Namespace
from tests.unit.packetbridge import scene
from tests.unit.wire.packets import RST, Described, built

LINK = bytes.fromhex("000000000000 020000000001 0800")
"""To the address of the loopback device, in whose name the kernel runs programs."""
LINK_SIZE = len(LINK)
TUN = "waiting"
"""A device that stands for the TUN by which Python gives back what it has kept."""
TUN_LINK = bytes.fromhex("020000000002 020000000001 0800")
LOOPBACK = 1
NOW = 1000.0
PATIENCE = 10.0
"""Seconds."""
PASSED, DROPPED, REDIRECTED = -1, 2, 7
KEYS = Keyring((bytes(range(16)), bytes(range(100, 116))))
"""Key ids 1 and 0, the latter being the previous one's."""
SERVICES = (scene.SERVICE, scene.OTHER_SERVICE)
BACKENDS = [service.backend for service in SERVICES]
TIMEOUTS = Timeouts()
_NOT_OF_CORE = {
    Count.STRANGERS_PASSED_UP,
    Count.STRANGERS_LIMITED,
    Count.EARLY,
    Count.FLOWS_ADDED,
    Count.FLOWS_REMOVED,
    Count.UNWRITTEN,
}
_BYTES = ("bytes_to_backends", "bytes_to_clients")


class Outcome(NamedTuple):
    """What a program did with a packet."""

    verdict: int
    packet: bytes
    cloned: list[bytes]
    """What was sent by clones, before the packet itself."""


def signed(described: Described, keyring: Keyring = KEYS) -> Described:
    """The handoff with the right tag."""
    offered = wire_handoff.parse_untrusted(segment.parse_untrusted(Packet(built(described))))
    made = keyring.sign(offered)
    *options, (kind, experiment) = described.options
    assert isinstance(experiment, bytes)
    flags = experiment[3] | made.key_id << 6
    tagged = experiment[:3] + bytes([flags]) + experiment[4:6] + made.tag
    return described._replace(options=(*options, (kind, tagged)))


def as_bytes(packet: Described | bytes) -> bytes:
    return packet if isinstance(packet, bytes) else built(packet)


def is_taken(data: bytes) -> bool:
    """Whether a packetbridge's tap takes the packet (common/net/intake.py)."""
    size = (data[0] & 0xF) * 4 if data else 0
    if len(data) < 20 or data[0] >> 4 != 4 or size < 20:
        return False
    if data[16:20] != scene.SERVICE.bridge or data[1] < 4 or int.from_bytes(data[6:8], "big") & 0x1FFF:
        return False
    port = scene.SERVICE.vip_port.to_bytes(2, "big")
    if data[9] == 6:
        return len(data) >= size + 4 and data[size + 2 : size + 4] == port
    quoted = data[size + 8 :]
    return (
        (data[9], len(quoted) >= 22, data[size : size + 1] in (b"\3", b"\x0b", b"\x0c")) == (1, True, True)
        and (quoted[0], quoted[9], quoted[20:22]) == (0x45, 6, port)
        and not int.from_bytes(quoted[6:8], "big") & 0x1FFF
        and quoted[12:16] != scene.SERVICE.bridge
    )


class Programs:
    """The loaded programs, whose clock stands still between two calls of `set_time`."""

    def __init__(self, timeouts: Timeouts = TIMEOUTS) -> None:
        self._now = NOW
        self.timeouts = timeouts
        self._tun = socket.if_nametoindex(TUN)
        self._object = self._load({})
        keys.write(HashMap(self.map("handoff_keys")), KEYS)
        self._counted: Counter[str] = Counter()
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._tap.bind(("lo", 3))

    def map(self, name: str) -> int:
        return self._object.map(name)

    def hash_map(self, name: str) -> HashMap:
        return HashMap(self.map(name))

    def program(self, name: str) -> int:
        """Its descriptor, until the next `set_time`."""
        return self._object.program(name)

    @property
    def flows(self) -> HashMap:
        return self.hash_map("flows")

    @property
    def questions(self) -> HashMap:
        return self.hash_map("questions")

    def close(self) -> None:
        self._tap.close()
        self._object.close()

    def begin(self, services: Iterable[Service]) -> None:
        """Forget what was, and serve these."""
        for name in ("flows", "stash", "tombstones", "questions", "backends"):
            found = HashMap(self.map(name))
            for key, _ in list(found.items()):
                found.delete(key)
        for name in ("services", "limits", "open_flows"):
            clear_array(ArrayMap(self.map(name)))
        for service in services:
            self._serve(service)
        self._counted += self.counts()

    def set_time(self, now: float, wall: int) -> None:
        """All maps stay."""
        offset = wall * 10**9 - int(now * 10**9)
        ArrayMap(self.map("clock")).update(0, CLOCK.pack(Clock(offset)))
        if now != self._now:
            self._now, before = now, self._object
            self._object = self._load({name: before.map(name) for name in before.map_names()})
            before.close()

    def run(self, program: str, packet: bytes, *, from_tun: bool = False, clones: int = 0) -> Outcome:
        """``clones`` are waited for, as the kernel may take its time; others must not come."""
        link, index = (TUN_LINK, self._tun) if from_tun else (LINK, LOOPBACK)
        done = run_packet(self._object.program(program), link + packet, SkBuff(ifindex=index))
        if done.context.mark == WENT_ROUND:
            marked = SkBuff(ifindex=index, mark=WENT_ROUND)
            done = run_packet(self._object.program(program), done.packet, marked)
        return Outcome(done.verdict, done.packet[LINK_SIZE:], self._cloned(clones))

    def nanoseconds(self, program: str, packet: bytes, repeat: int) -> int:
        return run_packet(self._object.program(program), LINK + packet, repeat=repeat).nanoseconds

    def sweep(self) -> SweepResult:
        run_syscall(self._object.program("sweep"))
        return SWEEP_RESULT.unpack(ArrayMap(self.map("sweep_result")).lookup(0))

    def flow(self, key: FlowId) -> FlowRow | None:
        found = self.flows.lookup(FLOW_ID_LAYOUT.pack(key))
        return None if found is None else FLOW.unpack(found)

    def open_flows(self, services: Iterable[Service]) -> dict[int, int]:
        rows = ArrayMap(self.map("open_flows"))
        return {each.vip_index: OPEN_FLOWS.unpack(rows.lookup(each.vip_index)).open for each in services}

    def counts(self) -> Counter[str]:
        counters = PerCpuArray(self.map("counters"))
        return Counter({each.name.lower(): counters.sums(each)[0] for each in Count}) - self._counted

    def _cloned(self, expected: int) -> list[bytes]:
        packets: list[bytes] = []
        while select.select([self._tap], [], [], PATIENCE if len(packets) < expected else 0)[0]:
            packets.append(self._tap.recv(65536)[LINK_SIZE:])
        return packets

    def _load(self, reuse: dict[str, int]) -> BpfObject:
        constants = {
            "fixed_now_ns": int(self._now * 10**9),
            "tun_ifindex": self._tun,
            "open_idle_seconds": int(self.timeouts.idle),
        }
        return BpfObject(object_path("packetbridge"), constants=constants, reuse=reuse)

    def _serve(self, service: Service) -> None:
        port = service.backend_port.to_bytes(2, "big")
        row = ServiceRow(
            vip=service.vip,
            bridge=service.bridge,
            backend=service.backend,
            vip_port=service.vip_port.to_bytes(2, "big"),
            backend_port=port,
            in_use=1,
        )
        ArrayMap(self.map("services")).update(service.vip_index, SERVICE.pack(row))
        index = service.vip_index.to_bytes(4, "little")
        HashMap(self.map("backends")).update(ENDPOINT.pack(Endpoint(service.backend, port)), index)


class Bridges:
    """Core and programs. Each method runs both, demands that they agree, and says what was sent."""

    def __init__(self, programs: Programs, limits: Limits | None = None) -> None:
        self.now = NOW
        self.wall = scene.WALL
        self.core = PacketbridgeCore(SERVICES, KEYS.verify, lambda: self.wall, limits, programs.timeouts)
        self.programs = programs
        programs.begin(SERVICES)
        programs.set_time(self.now, self.wall)
        self._early: list[bytes] = []
        self._repeated: Counter[str] = Counter()

    def balancer(self, packet: Described | bytes) -> list[bytes]:
        """Comes in, as from the balancer. What the host keeps is not given to the core."""
        data = as_bytes(packet)
        if not is_taken(data):
            assert self.programs.run("ingress", data) == Outcome(PASSED, data, [])
            return []
        expected = self._by_plan(data, from_balancer=True)
        if expected is None:
            expected = _data(self.core.from_balancer(Packet(data), self.now))
        early = self.programs.counts()["early"]
        done = self.programs.run("ingress", data)
        assert done.cloned == []
        if self.programs.counts()["early"] > early:
            assert (done.verdict, done.packet, expected) == (REDIRECTED, data, [])
            self._early.append(data)
        elif done.verdict == REDIRECTED and done.packet == data:
            assert expected == []  # a stranger, that Python remembers
        else:
            assert ([] if done.verdict == DROPPED else [done.packet]) == expected
            for sent in expected:
                assert done.verdict in ((PASSED, REDIRECTED) if sent[16:20] in BACKENDS else (REDIRECTED,))
        self._require_same_counts()
        return expected

    def backend(self, packet: Described | bytes) -> list[bytes]:
        """From the backend's address."""
        data = as_bytes(packet)
        expected = self._by_plan(data, from_balancer=False)
        if expected is None:
            expected = _data(self.core.from_backend(Packet(data), self.now))
        reset_and_more = len(expected) == 2 and bool(expected[0][33] & RST)
        done = self.programs.run("egress", data, clones=int(reset_and_more))
        sent = done.cloned + ([] if done.verdict == DROPPED else [done.packet])
        if done.verdict == REDIRECTED and done.packet[33] & 0x02 == 0:
            sent += self._come_again()
        assert sent == expected
        if expected and done.verdict != DROPPED:
            assert done.verdict == (REDIRECTED if done.packet[16:20] in BACKENDS else PASSED)
        self._require_same_counts()
        return expected

    def open(self, offered: Described | None = None, answer: Described | None = None) -> list[bytes]:
        """Handoff and SYN-ACK; returns what ends the backend's handshake."""
        self.balancer(signed(offered or scene.handoff()))
        return self.backend(answer or scene.syn_ack())

    def settle(self) -> None:
        """Handoff and SYN-ACK, and the client has echoed the backend."""
        self.open()
        self.balancer(scene.from_client())

    def pass_time(self, seconds: int) -> list[bytes]:
        """Time goes by in both; returns the kernel's questions (flow keys, backend to client)."""
        self.now += seconds
        self.wall += seconds
        self.programs.set_time(self.now, self.wall)
        resets = self.core.counters["stranger_reset"]
        timeouts = self.core.on_timeout(self.now)
        self.core.counters["stranger_reset"] = resets  # those are Python's in both planes
        self.programs.sweep()
        asked = {self._key(FLOW_ID_LAYOUT.unpack(key)) for key, _ in self.programs.questions.items()}
        assert asked == set(timeouts.questions)
        assert self.programs.flows.count() == self.core.sizes["flows"]
        assert self.programs.open_flows(SERVICES) == self.core.flows_of_vips()
        return timeouts.questions

    def expect(self, **counts: int) -> None:
        """These have been counted so far, by the programs."""
        counted = self.programs.counts()
        assert {name: counted[name] for name in counts} == counts

    def _key(self, flow: FlowId) -> bytes:
        served = next(each for each in SERVICES if each.vip_index == flow.vip_index)
        return served.backend_key(flow.client, int.from_bytes(flow.client_port, "big"))

    def _by_plan(self, data: bytes, *, from_balancer: bool) -> list[bytes] | None:
        if len(data) < 40:
            return None
        buffer = bytearray(offload.emit(NO_OFFLOAD) + data)
        look = self.core.plan_from_balancer if from_balancer else self.core.plan_from_backend
        length = min(len(data), int.from_bytes(data[2:4], "big"))  # as ports say it
        plan = look(buffer, offload.SIZE, length, self.now)
        if plan is None:
            return None
        rewrite.apply(plan, buffer, offload.SIZE)
        return [bytes(buffer[offload.SIZE :])]

    def _come_again(self) -> list[bytes]:
        """What waited, by the client's sequence numbers, as Python gives it back when the flow is spliced."""
        before = self.programs.counts()
        waiting = sorted(self._early, key=lambda data: int.from_bytes(data[24:28], "big"))
        self._early = []
        passed = []
        for data in waiting:
            done = self.programs.run("ingress", data, from_tun=True)
            assert done.verdict in (PASSED, REDIRECTED)
            passed.append(done.packet)
        again = self.programs.counts() - before
        for counter in _BYTES:  # they go on only now
            del again[counter]
        self._repeated += again
        return passed

    def _require_same_counts(self) -> None:
        counted = self.programs.counts() - self._repeated
        ours = {each.name.lower() for each in Count if each not in _NOT_OF_CORE}
        by_core = {name: number for name, number in self.core.counts.items() if name in ours and number}
        assert {name: number for name, number in counted.items() if name in ours} == by_core
        assert self.programs.open_flows(SERVICES) == self.core.flows_of_vips()


def _data(packets: list[Packet]) -> list[bytes]:
    return [packet.data for packet in packets]


@contextmanager
def own_namespace() -> Iterator[None]:
    """The calling thread is in a network namespace with a loopback device and what stands for a TUN."""
    namespace = Namespace(f"l3dsr-bpf-{os.getpid()}")
    subprocess.run(["ip", "netns", "add", namespace.name], check=True, timeout=20)
    try:
        namespace.run("ip link set lo up")
        namespace.run(f"ip link add {TUN} address {TUN_LINK[:6].hex(':')} type veth peer name other")
        namespace.run(f"ip link set {TUN} up")
        with namespace.entered():
            yield
    finally:
        subprocess.run(["ip", "netns", "delete", namespace.name], check=True, timeout=20)


@contextmanager
def loaded_programs(timeouts: Timeouts = TIMEOUTS) -> Iterator[Programs]:
    """In a network namespace of their own, which the calling thread is in."""
    with own_namespace():
        programs = Programs(timeouts)
        try:
            yield programs
        finally:
            programs.close()
