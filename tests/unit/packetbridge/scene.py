"""A client, a balancer and a backend that say what the test tells them, around one packetbridge core.

Packets are described here and built by scapy; nothing expected comes from the core.

    client leg    client's ISN CI, balancer's ISN LI, TSval of the balancer X
    backend leg   client's ISN CI, backend's ISN SI, TSval of its SYN-ACK B
"""

from collections.abc import Iterable
from ipaddress import IPv4Address

from common.wire import offload, rewrite
from common.wire.handoff import Handoff
from common.wire.offload import NO_OFFLOAD, Offload, Packet
from packetbridge.core import record
from packetbridge.core.engine import PacketbridgeCore
from packetbridge.core.machine import State
from packetbridge.core.record import FlowRecord
from packetbridge.core.service import Limits, Service, Timeouts
from tests.unit.wire.packets import (
    ACK,
    BACKEND,
    NODE,
    PSH,
    SYN,
    VIP,
    Described,
    ScapyOption,
    built,
)

PORT = 49152
CI, LI, SI = 1_000_000, 3_000_000_000, 500_000_000
TS, X, B = 40_000, 7_000_000, 1_200_000_000
CLIENT_SCALE, PROMISED_SCALE = 8, 7
WALL = 1_800_000_000
TAG = b"good tag"
REQUEST = b"GET /a HTTP/1.1\r\nHost: v\r\n\r\n"
SIZE = len(REQUEST)

SERVICE = Service(1, IPv4Address(VIP).packed, 80, IPv4Address(NODE).packed, IPv4Address(BACKEND).packed, 8080)
OTHER_VIP, OTHER_BACKEND = "192.168.33.11", "192.168.33.31"
OTHER_SERVICE = Service(
    2, IPv4Address(OTHER_VIP).packed, 80, SERVICE.bridge, IPv4Address(OTHER_BACKEND).packed, 8080
)
BACKEND_KEY = bytes([192, 168, 33, 30, 203, 0, 113, 7, 0x1F, 0x90, 0xC0, 0x00])
"""The flow's key, backend to client: 192.168.33.30:8080 to 203.0.113.7:49152."""
PARTIAL = Offload(flags=offload.NEEDS_CHECKSUM, header_length=52, checksum_start=20, checksum_offset=16)

NOP: ScapyOption = ("NOP", None)


def add(number: int, count: int) -> int:
    return (number + count) % 2**32


def stamps(value: int, echo: int) -> tuple[ScapyOption, ...]:
    return (NOP, NOP, ("Timestamp", (value % 2**32, echo % 2**32)))


def handoff(
    payload: bytes = REQUEST,
    *,
    client_isn: int = CI,
    balancer_isn: int = LI,
    sack: bool = True,
    timestamps: tuple[int, int] | None = (TS, X),
    scale: int | None = CLIENT_SCALE,
    promised: int = PROMISED_SCALE,
    fin: bool = False,
    time: int = WALL,
    tag: bytes = TAG,
    ecn: int = 0,
    window: int = 64_240,
    index: int = 1,
) -> Described:
    experiment = bytes([0x4C, 0x33, 0x11, fin << 7 | promised]) + (time % 2**16).to_bytes(2, "big") + tag
    options: list[ScapyOption] = [("MSS", 1400)]
    options += [("SAckOK", b"")] if sack else [NOP] * 2
    options += [("Timestamp", timestamps)] if timestamps else [NOP] * 10
    options += [NOP, ("WScale", scale)] if scale is not None else [NOP] * 4
    return Described(
        server=NODE,
        seq=client_isn,
        ack=balancer_isn,
        flags=SYN,
        window=window,
        options=(*options, (253, experiment)),
        payload=payload,
        tos=index << 2 | ecn,
    )


def from_client(
    payload: bytes = b"",
    *,
    sent: int = SIZE,
    got: int = 0,
    options: tuple[ScapyOption, ...] | None = None,
    flags: int = ACK,
    window: int = 502,
    ecn: int = 0,
) -> Described:
    """As the balancer passes it on; ``sent`` and ``got`` count payload bytes."""
    return Described(
        server=NODE,
        seq=add(CI, 1 + sent),
        ack=add(LI, 1 + got),
        flags=flags,
        window=window,
        options=stamps(TS + 5, X + 6) if options is None else options,
        payload=payload,
        tos=1 << 2 | ecn,
    )


def at_backend(described: Described, options: tuple[ScapyOption, ...] | None = None) -> Described:
    """The same as the backend must see it."""
    return described._replace(
        server=BACKEND,
        server_port=8080,
        ack=add(described.ack, SI - LI) if described.flags & ACK else described.ack,
        options=stamps(TS + 5, B + 5) if options is None else options,
        tos=described.tos % 4,
    )


def from_backend(
    payload: bytes = b"",
    *,
    sent: int = 0,
    got: int = SIZE,
    options: tuple[ScapyOption, ...] | None = None,
    flags: int = ACK,
    window: int = 509,
    tos: int = 0,
) -> Described:
    return Described(
        server=BACKEND,
        server_port=8080,
        from_client=False,
        seq=add(SI, 1 + sent),
        ack=add(CI, 1 + got),
        flags=flags,
        window=window,
        options=stamps(B + 10, TS) if options is None else options,
        payload=payload,
        tos=tos,
        identification=77,
    )


def at_client(described: Described, options: tuple[ScapyOption, ...] | None = None) -> Described:
    """The same as the client must see it."""
    return described._replace(
        server=VIP,
        server_port=80,
        seq=add(described.seq, LI - SI),
        options=stamps(X + 11, TS) if options is None else options,
        tos=described.tos % 4,
    )


def syn(options: tuple[ScapyOption, ...] | None = None, client_isn: int = CI) -> Described:
    """What the backend must be asked with."""
    usual: tuple[ScapyOption, ...] = (
        ("MSS", 1400),
        ("SAckOK", b""),
        ("Timestamp", (TS, 0)),
        NOP,
        ("WScale", CLIENT_SCALE),
    )
    return Described(
        server=BACKEND,
        server_port=8080,
        seq=client_isn,
        ack=0,
        flags=SYN,
        window=64_240,
        options=usual if options is None else options,
    )


def syn_ack(
    *,
    isn: int = SI,
    client_isn: int = CI,
    scale: int | None = PROMISED_SCALE,
    timestamps: tuple[int, int] | None = (B, TS),
) -> Described:
    options: list[ScapyOption] = [("MSS", 1460), ("SAckOK", b"")]
    options += [("Timestamp", timestamps)] if timestamps else [NOP] * 2
    options += [NOP, ("WScale", scale)] if scale is not None else []
    return Described(
        server=BACKEND,
        server_port=8080,
        from_client=False,
        seq=isn,
        ack=add(client_isn, 1),
        flags=SYN | ACK,
        window=65_160,
        options=tuple(options),
    )


FIRST = Described(
    server=BACKEND,
    server_port=8080,
    seq=CI + 1,
    ack=SI + 1,
    flags=ACK | PSH,
    window=64_240 >> CLIENT_SCALE,
    options=stamps(TS, B),
    payload=REQUEST,
)
"""The handoff's payload as it ends the backend's handshake."""


def refusal() -> Described:
    return Described(from_client=False, seq=add(LI, 1), ack=add(CI, 1), flags=0x14, window=0)


class Scene:
    def __init__(
        self, *services: Service, limits: Limits | None = None, timeouts: Timeouts | None = None
    ) -> None:
        self.now = 1000.0
        self.wall = WALL
        self.core = PacketbridgeCore(
            services or (SERVICE,), self._verify, lambda: self.wall, limits, timeouts
        )

    def _verify(self, offered: Handoff) -> bool:
        return offered.tag == TAG

    @property
    def counters(self) -> dict[str, int]:
        return self.core.counters

    def spliced(self) -> list[FlowRecord]:
        """The present flows, as the journal would keep them."""
        flows = self.core._flows._by_backend._values.values()
        return [record.of(flow) for flow in flows if flow.state in (State.ECHOING, State.ESTABLISHED)]

    def balancer(self, described: Described | bytes) -> list[bytes]:
        """What the slow path makes of a packet from the tap."""
        return self._sent(self.core.from_balancer(_packet(described), self.now))

    def backend(self, described: Described | bytes) -> list[bytes]:
        """What the slow path makes of a packet from the TUN."""
        return self._sent(self.core.from_backend(_packet(described), self.now))

    def fast_balancer(self, described: Described) -> bytes | None:
        """The packet rewritten by its plan, or None where it has none."""
        return self._fast(built(described), from_balancer=True)

    def fast_backend(self, described: Described) -> bytes | None:
        return self._fast(built(described), from_balancer=False)

    def _fast(self, data: bytes, *, from_balancer: bool) -> bytes | None:
        buffer = bytearray(offload.emit(NO_OFFLOAD) + data)
        look = self.core.plan_from_balancer if from_balancer else self.core.plan_from_backend
        plan = look(buffer, offload.SIZE, len(data), self.now)
        if plan is None:
            return None
        rewrite.apply(plan, buffer, offload.SIZE)
        return bytes(buffer[offload.SIZE :])

    def _sent(self, packets: Iterable[Packet]) -> list[bytes]:
        made = list(packets)
        assert all(packet.offload == NO_OFFLOAD for packet in made)
        return [packet.data for packet in made]

    def open(self, offered: Described | None = None, answer: Described | None = None) -> list[bytes]:
        """Handoff and SYN-ACK; returns what ends the backend's handshake."""
        self.balancer(offered or handoff())
        return self.backend(answer or syn_ack())

    def settle(self) -> None:
        """Handoff and SYN-ACK, and the client has echoed the backend."""
        self.open()
        self.balancer(from_client())

    def pass_time(self, seconds: float) -> tuple[list[bytes], list[bytes]]:
        """Let time pass as the shell does; returns the packets sent and the kernel's questions."""
        end = self.now + seconds
        packets: list[bytes] = []
        questions: list[bytes] = []
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            timeouts = self.core.on_timeout(self.now)
            packets += self._sent(timeouts.packets)
            questions += timeouts.questions
        self.now = end
        return packets, questions


def _packet(described: Described | bytes) -> Packet:
    return Packet(described if isinstance(described, bytes) else built(described))
