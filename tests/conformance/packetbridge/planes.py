"""The packetbridge on both data planes."""

import itertools
import math
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import NamedTuple, cast

from common.bpf import keys
from common.bpf.abi import CLOCK, WENT_ROUND, Clock
from common.bpf.counts import read_counts
from common.bpf.maps import PerCpuArray
from common.bpf.run import SkBuff, run_packet, run_syscall
from common.keyring import Keyring
from common.net.intake import of_packetbridge
from common.net.sock_diag import SocketQuery
from common.wire import offload, rewrite
from common.wire.offload import NO_OFFLOAD, Packet
from common.wire.rewrite import Rewrite
from common.wire.segment import FlowKey
from packetbridge.core.engine import PacketbridgeCore
from packetbridge.core.flow import Flow
from packetbridge.core.machine import Event, State
from packetbridge.core.service import Limits, Service
from packetbridge.core.step import Step
from packetbridge.ebpf import abi
from packetbridge.ebpf.flows import MapFlows, backend_key, index_of, key_of_backend
from packetbridge.ebpf.passed_up import PassedUp
from packetbridge.ebpf.questions import Questions, flows_of
from packetbridge.ebpf.served import ServedMaps
from tests.bpf.arrays import clear_array
from tests.conformance import loaded
from tests.conformance.loaded import LINK, NS, REDIRECT, SHOT, TUN_LINK, UNSPEC, Loads
from tests.conformance.oracle import PREVIOUS_TAG_KEY, START, TAG_KEY, WALL
from tests.conformance.plane import Filter, Waited

KEYRING = Keyring((TAG_KEY, PREVIOUS_TAG_KEY))
LIMITS = Limits()
Rule = tuple[State, Event]
_MOST_BYTES = 65_536
_ALL_PROTOCOLS = 3
_MARK_HEADER = bytes(12) + b"\x88\xb5"
"""Of a frame of a protocol for experiments."""
_TO_PYTHON = (abi.Counter.STRANGERS_PASSED_UP, abi.Counter.EARLY)


_numbers = itertools.count()
"""Of marks: no two are alike."""


class _NotingCore(PacketbridgeCore):
    """It notes which rules of the state machine events came by."""

    rules: set[Rule]

    def _run(self, event: Event, flow: Flow | None, step: Step) -> list[Packet]:
        self.rules.add((flow.state if flow else State.UNKNOWN, event))
        return super()._run(event, flow, step)


class Core:
    """The raw plane without its sockets."""

    passed_up = 0

    def __init__(self, services: Sequence[Service], limits: Limits = LIMITS) -> None:
        self.now = START
        self.core = _NotingCore(services, KEYRING.verify, lambda: WALL + math.floor(self.now - START), limits)
        self.rules: set[Rule] = set()
        self.core.rules = self.rules
        bridge, ports = IPv4Address(services[0].bridge), [service.vip_port for service in services]
        self._filter = Filter(of_packetbridge(bridge, ports))

    @property
    def counters(self) -> Counter[str]:
        return Counter(self.core.counts)

    def arrive(self, packet: bytes) -> list[bytes] | None:
        if not self._filter.takes(packet):
            return None
        buffer = _buffer(packet)
        plan = self.core.plan_from_balancer(buffer, offload.SIZE, len(packet), self.now)
        if plan is not None:
            self.rules.add((State.ESTABLISHED, Event.CLIENT_SEGMENT))
            return [_rewritten(buffer, plan)]
        return _data(self.core.from_balancer(Packet(packet), self.now))

    def leave(self, packet: bytes) -> list[bytes] | None:
        buffer = _buffer(packet)
        plan = self.core.plan_from_backend(buffer, offload.SIZE, len(packet), self.now)
        if plan is not None:
            return [_rewritten(buffer, plan)]
        made = _data(self.core.from_backend(Packet(packet), self.now))
        return None if made == [packet] else made

    def wait(self, seconds: float) -> Waited:
        end = self.now + seconds
        waited = Waited([], [])
        while (deadline := self.core.next_deadline() or math.inf) <= end:
            self.now = max(self.now, deadline)
            timeouts = self.core.on_timeout(self.now)
            waited.packets.extend(_data(timeouts.packets))
            waited.questions.extend(timeouts.questions)
        self.now = end
        return waited

    def answer(self, said: Mapping[bytes, bool]) -> None:
        for key, exists in said.items():
            self.core.socket_exists(key, exists, self.now)


class _Device(NamedTuple):
    """That a packet comes by or leaves by."""

    ifindex: int
    link: bytes
    """Header of a packet to it."""


class _Said(dict[FlowKey, bool]):
    """The kernel, as far as it is asked: what the vector says of each flow."""

    def existing(self, keys: Iterable[FlowKey]) -> set[FlowKey]:
        return {key for key in keys if self[key]}


class _Clones:
    """What programs send by clones, to the loopback device.

    Such a packet is queued on its CPU and arrives soon; one more that is queued there shows that it has.
    """

    def __init__(self) -> None:
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        self._tap.bind(("lo", _ALL_PROTOCOLS))
        self._tap.settimeout(60)

    def taken(self) -> list[bytes]:
        """Without link headers."""
        mark = _MARK_HEADER + next(_numbers).to_bytes(46, "big")
        self._tap.send(mark)
        packets: list[bytes] = []
        while True:
            frame, (_, _, kind, *_) = self._tap.recvfrom(_MOST_BYTES)
            if kind == socket.PACKET_OUTGOING:
                continue
            if frame == mark:
                return packets
            packets.append(frame[len(LINK) :])

    def close(self) -> None:
        self._tap.close()


class Programs:
    """The programs by BPF_PROG_TEST_RUN, and Python's part on their maps. One for many vectors, in turn."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._tun = _Device(loaded.tun_index(), TUN_LINK)
        self._tapped = _Device(loaded.LOOPBACK, LINK)
        self._loads = Loads(
            "packetbridge",
            {"tun_ifindex": self._tun.ifindex, "resets_per_second": int(limits.resets_per_second)},
            {"flows": limits.flows},
        )
        keys.write(self._loads.hash_map("handoff_keys"), KEYRING)
        self._loads.array_map("clock").update(0, CLOCK.pack(Clock(WALL * NS - round(START * NS))))
        self._counters = PerCpuArray(self._loads.map("counters"))
        self._questions = self._loads.hash_map("questions")
        self._clones = _Clones()

    def begin(self, services: Sequence[Service]) -> None:
        """Forget what was, and serve these."""
        self._clones.taken()
        self._loads.clear("flows", "stash", "tombstones", "questions", "backends", "limits")
        rows = self._loads.array_map("services")
        clear_array(rows)
        self.now = START
        self._services = {service.vip_index: service for service in services}
        self.flows = MapFlows(self._loads.hash_map("flows"), self._loads.hash_map("tombstones"))
        ServedMaps(rows, self._loads.hash_map("backends"), lambda _: 0).serve(services)
        self._python = PassedUp(self._services, self.flows, self._limits)
        self._counted = self._counts()
        self.passed_up = 0

    @property
    def counters(self) -> Counter[str]:
        return self._counts() - self._counted + Counter(self._python.counters)

    def arrive(self, packet: bytes) -> list[bytes] | None:
        verdict, made = self._run("ingress", packet, self._tapped)
        if verdict == UNSPEC and made == [packet]:
            return None
        return made

    def leave(self, packet: bytes) -> list[bytes] | None:
        verdict, made = self._run("egress", packet, self._tapped)
        waited = self._look_after_waiting()
        return None if verdict == UNSPEC and made == [packet] and not waited else made + waited

    def wait(self, seconds: float) -> Waited:
        end = self.now + seconds
        made: list[bytes] = []
        while (deadline := self._python.next_deadline() or math.inf) <= end:
            self.now = max(self.now, deadline)
            made += self._written(self._python.on_timeout(self.now))
        self.now = end
        known = {key for key, _ in self._questions.items()}
        run_syscall(self._loads.program("sweep", end))
        asked = [key for key, _ in self._questions.items() if key not in known]
        return Waited(made, [backend_key(self._services[index_of(key)], key) for key in asked])

    def answer(self, said: Mapping[bytes, bool]) -> None:
        query = cast("SocketQuery", _Said(said))
        services, counters = self._services, self._python.counters
        asking = Questions(self._questions, query, services, self.flows, counters)
        questions = asking.take()
        asking.settle(questions, asking.existing(flows_of(questions)), self.now)

    @property
    def waiting_bytes(self) -> int:
        """Of packets that Python keeps until their backend has answered."""
        return self._python.sizes["waiting_bytes"]

    def row(self, key: FlowKey) -> abi.FlowRow | None:
        """Of the flow with the key, backend to client."""
        service = next(each for each in self._services.values() if each.backend == key[:4])
        return self.flows.row(key_of_backend(service, key))

    def close(self) -> None:
        self._clones.close()
        self._loads.close()

    def _run(self, program: str, packet: bytes, device: _Device) -> tuple[int, list[bytes]]:
        """The verdict, and what was sent, by Python too."""
        before = self._to_python()
        descriptor = self._loads.program(program, self.now)
        done = run_packet(descriptor, device.link + packet, SkBuff(ifindex=device.ifindex))
        if done.context.mark == WENT_ROUND:
            done = run_packet(descriptor, done.packet, SkBuff(ifindex=device.ifindex, mark=WENT_ROUND))
        sent = self._clones.taken() if program == "egress" else []
        made = done.packet[len(LINK) :]
        if self._to_python() > before:
            assert (done.verdict, made) == (REDIRECT, packet), "a packet that is passed up was changed"
            self.passed_up += 1
            return REDIRECT, self._written(self._python.receive(Packet(packet), self.now))
        assert done.verdict in (UNSPEC, SHOT, REDIRECT)
        return done.verdict, sent if done.verdict == SHOT else [*sent, made]

    def _written(self, packets: Iterable[Packet]) -> list[bytes]:
        """What Python writes to its TUN passes the program there."""
        return [sent for packet in packets for sent in self._run("ingress", packet.data, self._tun)[1]]

    def _look_after_waiting(self) -> list[bytes]:
        """As Python does within 50 ms."""
        waiting = self._python._waiting
        latest = max((guest.next_look for guest in waiting._guests.values()), default=None)
        return [] if latest is None else self._written(waiting.due(latest))

    def _to_python(self) -> int:
        return sum(self._counters.sums(each)[0] for each in _TO_PYTHON)

    def _counts(self) -> Counter[str]:
        return Counter(read_counts(self._counters, abi.Counter))


def _buffer(packet: bytes) -> bytearray:
    """As the daemon's, larger than any header."""
    return bytearray(offload.emit(NO_OFFLOAD) + packet + bytes(64))


def _rewritten(buffer: bytearray, plan: Rewrite) -> bytes:
    rewrite.apply(plan, buffer, offload.SIZE)
    return bytes(buffer[offload.SIZE : -64])


def _data(packets: Iterable[Packet]) -> list[bytes]:
    return [packet.data for packet in packets]
