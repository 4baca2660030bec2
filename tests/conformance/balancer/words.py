"""What the balancer's vectors are written with: a service, clients, and the packets of both sides.

Numbers of a client's stream are relative: 0 is the first byte of either direction.
"""

import struct
from array import array
from typing import NamedTuple

from scapy.compat import raw
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from balancer.core.service import Service, make_node
from common.hashing.maglev import LookupTable
from tests.conformance import oracle
from tests.conformance.oracle import START, TABLE_SIZE, WALL, packed
from tests.unit.wire.packets import ACK, CLIENT, RST, SYN, VIP, Described, ScapyOption, built

PORT, INDEX = 80, 5
NODES = ("192.168.33.21", "192.168.33.22", "192.168.33.23")
NAMES = ("node1", "node2", "node3")
WINDOW = 14_240
"""Of the preamble: ten segments of 1424 bytes."""
MAX_PAYLOAD = 1424
PATH = b"/film/1.ts"
GET = b"GET /film/1.ts HTTP/1.1\r\nHost: v\r\n\r\n"
BEHIND = len(GET)
NOP: ScapyOption = ("NOP", None)


def service(count: int = 1, **changes: object) -> Service:
    """With so many nodes; slot i of the table has node i modulo their number."""
    vip = packed(VIP)
    nodes = {
        name: make_node(vip, PORT, INDEX, name, packed(address))
        for name, address in zip(NAMES, NODES, strict=True)
    }
    slots = array("H", (slot % count for slot in range(TABLE_SIZE))) if count else None
    made = Service(vip, PORT, INDEX, nodes, LookupTable(NAMES[:count], slots) if slots else None)
    return made._replace(**changes)  # type: ignore[arg-type]


TOO_BIG = ICMP(type=3, code=4, nexthopmtu=1300)
ONE_NODE, THREE_NODES, NO_NODE = service(), service(3), service(0)


class Talk(NamedTuple):
    """A client's connection: what its SYN says, and what it says later."""

    port: int = 49_152
    isn: int = 0x1000_0000
    mss: int | None = 1460
    scale: int | None = 7
    sack: bool = True
    clock: int | None = 5000
    """Its TSval; None: no timestamps."""
    window: int = 502
    greeted: float = START
    """When its SYN is answered."""
    promised_scale: int = 7
    max_payload: int = MAX_PAYLOAD

    @property
    def cookie(self) -> int:
        mss = 536 if self.mss is None else self.mss
        return oracle.cookie(CLIENT, self.port, VIP, PORT, self.isn, mss, self.greeted)

    @property
    def echo(self) -> int:
        """What the SYN-ACK's TSval is."""
        return oracle.tsval(self.greeted, self.scale, sack=self.sack)

    @property
    def key(self) -> bytes:
        return oracle.four_tuple(CLIENT, self.port, VIP, PORT)

    # Of the client

    def syn(self, *, flags: int = SYN, payload: bytes = b"", raw_options: bytes | None = None) -> Described:
        options: list[ScapyOption] = [("MSS", self.mss)] if self.mss is not None else []
        options += [("SAckOK", b"")] if self.sack else []
        options += [("Timestamp", (self.clock, 0))] if self.clock is not None else []
        options += [NOP, ("WScale", self.scale)] if self.scale is not None else []
        return Described(
            client_port=self.port,
            seq=self.isn,
            ack=0,
            flags=flags,
            window=64_240,
            options=() if raw_options is not None else tuple(options),
            raw_options=raw_options,
            payload=payload,
        )

    def segment(
        self,
        payload: bytes = b"",
        *,
        at: int = 0,
        ack: int = 0,
        flags: int = ACK,
        tos: int = 0,
        options: tuple[ScapyOption, ...] = (),
    ) -> Described:
        """``options`` come behind the timestamps."""
        return Described(
            client_port=self.port,
            seq=(self.isn + 1 + at) % 2**32,
            ack=(self.cookie + 1 + ack) % 2**32 if flags & ACK else 0,
            flags=flags,
            window=self.window,
            options=(*self._stamps(), *options),
            payload=payload,
            tos=tos,
            ttl=57,
            identification=0x4D2,
        )

    def _stamps(self) -> tuple[ScapyOption, ...]:
        return (NOP, NOP, ("Timestamp", (self.clock, self.echo))) if self.clock is not None else ()

    # Of the balancer to the client

    def answer(
        self,
        *,
        flags: int,
        at: int = 0,
        ack: int = 0,
        window: int,
        options: tuple[ScapyOption, ...] = (),
        payload: bytes = b"",
    ) -> Described:
        return Described(
            client_port=self.port,
            from_client=False,
            seq=(self.cookie + 1 + at) % 2**32,
            ack=(self.isn + 1 + ack) % 2**32,
            flags=flags,
            window=window,
            options=options,
            payload=payload,
        )

    def syn_ack(self) -> Described:
        stamped = self.clock is not None
        options: list[ScapyOption] = [("MSS", self.max_payload + 12 * stamped)]
        if self.sack != stamped:  # as Linux lays them out: two of them share a word
            options += [NOP] * 2
        options += [("SAckOK", b"")] if self.sack else []
        options += [("Timestamp", (self.echo, self.clock))] if stamped else []
        options += [NOP, ("WScale", self.promised_scale)] if self.scale is not None else []
        return self.answer(flags=SYN | ACK, at=-1, window=10 * self.max_payload, options=tuple(options))

    def says(self, payload: bytes = b"", *, flags: int = ACK, at: int = 0, ack: int = 0) -> Described:
        """A segment of the balancer's own within the connection."""
        shift = 0 if self.scale is None else self.promised_scale
        stamps: tuple[ScapyOption, ...] = ()
        if self.clock is not None:
            stamps = (NOP, NOP, ("Timestamp", (self.echo, self.clock)))
        window = 10 * self.max_payload >> shift
        return self.answer(flags=flags, at=at, ack=ack, window=window, options=stamps, payload=payload)

    def reset(self, *, ack: int = 0) -> Described:
        """In answer to a segment that acknowledges ``ack``."""
        return self.answer(flags=RST, at=ack, window=0)._replace(ack=0)

    # Of the balancer to a node

    def handoff(
        self,
        payload: bytes,
        *,
        node: str = NODES[0],
        seconds: int = 0,
        fin: bool = False,
        ecn: int = 0,
        mss: int | None = None,
    ) -> Described:
        """Made ``seconds`` after the start (docs/handoff.md)."""
        area = struct.pack(">BBH", 2, 4, mss or (536 if self.mss is None else self.mss))
        area += b"\x04\x02" if self.sack else b"\x01\x01"
        stamped = self.clock is not None
        area += struct.pack(">BBII", 8, 10, self.clock, self.echo) if stamped else b"\x01" * 10
        area += b"\x01\x03\x03" + bytes((self.scale,)) if self.scale is not None else b"\x01" * 4
        says = 0x80 * fin | 0x40 | (0 if self.scale is None else self.promised_scale)
        area += struct.pack(">BBHBBH", 253, 16, 0x4C33, 0x11, says, (WALL + seconds) % 2**16)
        numbers = struct.pack(">II", self.isn, self.cookie)
        area += oracle.tag(CLIENT, self.port, node, PORT, INDEX, numbers, area)
        return Described(
            server=node,
            client_port=self.port,
            seq=self.isn,
            ack=self.cookie,
            flags=SYN,
            window=min(self.window << (self.scale or 0), 0xFFFF),
            raw_options=area,
            payload=payload,
            tos=INDEX << 2 | ecn,
        )


def to_node(sent: Described, node: str = NODES[0]) -> Described:
    """A client's segment as its node gets it."""
    return sent._replace(server=node, tos=INDEX << 2 | sent.tos & 3)


def node_of(key: bytes) -> str:
    """Of three."""
    return NODES[oracle.slot(key) % 3]


def port_apart_from(key: bytes) -> int:
    """A client port whose 4-tuple has another of three nodes than the key."""
    return next(port for port in range(49_152, 65_536) if node_of(Talk(port).key) != node_of(key))


def icmp_error(
    talk: Talk,
    *,
    about: ICMP = TOO_BIG,
    source: str = "198.51.100.1",
    destination: str = VIP,
    tos: int = 0,
    quoted: Described | None = None,
    size: int = 28,
) -> bytes:
    """About a packet of the connection from the VIP, which it quotes in part."""
    sent = quoted or Described(client_port=talk.port, from_client=False, seq=7, payload=b"x" * 1400)
    header = IP(src=source, dst=destination, tos=tos, ttl=60, id=4242)
    return bytes(raw(header / about / Raw(built(sent)[:size])))
