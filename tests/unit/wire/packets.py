"""Packets for the tests of `common.wire`, made and judged by scapy.

Nothing here imports `common.wire`: it is the independent oracle.
"""

from ipaddress import IPv4Address
from typing import NamedTuple

import siphash24
from hypothesis import Phase, settings
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import IP, TCP, in4_chksum
from scapy.packet import Raw
from scapy.utils import checksum as internet_checksum

ScapyOption = tuple[str | int, object]

CLIENT, VIP, NODE, BACKEND = "203.0.113.7", "192.168.33.10", "192.168.33.20", "192.168.33.30"
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
NEEDS_CHECKSUM = 1

quickly = settings(
    derandomize=True, deadline=None, max_examples=100, phases=(Phase.explicit, Phase.generate, Phase.shrink)
)
"""For property tests: the same examples in each run, few of them, and scapy not traced line by line."""

u8, u16, u32 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32))


class Described(NamedTuple):
    """A TCP packet by its fields; `built` makes it."""

    client: str = CLIENT
    server: str = VIP
    client_port: int = 49152
    server_port: int = 80
    from_client: bool = True
    seq: int = 1000
    ack: int = 2000
    flags: int = ACK
    window: int = 502
    options: tuple[ScapyOption, ...] = ()
    raw_options: bytes | None = None
    """An option area that scapy would not make, instead of ``options``; a multiple of four bytes."""
    payload: bytes = b""
    urgent: int = 0
    tos: int = 0
    ttl: int = 64
    identification: int = 0


def built(described: Described) -> bytes:
    """The packet's bytes, both checksums right."""
    ends = [(described.client, described.client_port), (described.server, described.server_port)]
    (source, source_port), (destination, destination_port) = ends if described.from_client else ends[::-1]
    area = described.raw_options or b""
    segment = TCP(
        sport=source_port,
        dport=destination_port,
        seq=described.seq,
        ack=described.ack,
        flags=described.flags,
        window=described.window,
        urgptr=described.urgent,
        options=list(described.options),
        dataofs=5 + len(area) // 4 if described.raw_options is not None else None,
    )
    header = IP(
        src=source,
        dst=destination,
        tos=described.tos,
        ttl=described.ttl,
        id=described.identification,
        flags="DF",
    )
    return bytes(raw(header / segment / Raw(area + described.payload)))


def with_field(packet: bytes, at: int, value: int) -> bytes:
    """The packet with the 16-bit word at ``at`` replaced."""
    return packet[:at] + value.to_bytes(2, "big") + packet[at + 2 :]


def with_ip_checksum(packet: bytes) -> bytes:
    """The packet with the right IP header checksum, if it is long enough to have one."""
    size = (packet[0] & 0xF) * 4 if packet else 0
    if not 20 <= size <= len(packet):
        return packet
    return with_field(packet, 10, internet_checksum(with_field(packet, 10, 0)[:size]))


def word(packet: bytes, at: int) -> int:
    return int.from_bytes(packet[at : at + 2], "big")


def tcp_checksum(packet: bytes) -> int:
    """What the TCP checksum field ought to hold."""
    return int(in4_chksum(6, IP(packet), with_field(packet, 36, 0)[20:]))


def tcp_checksum_error(packet: bytes) -> int:
    """By how much the TCP checksum field is wrong, modulo 65535."""
    return (word(packet, 36) - tcp_checksum(packet)) % 0xFFFF


def ip_checksum_error(packet: bytes) -> int:
    right = internet_checksum(with_field(packet, 10, 0)[:20])
    return int(word(packet, 10) - right) % 0xFFFF


def with_partial_checksum(packet: bytes) -> bytes:
    """As a sender leaves it to its card: the checksum field holds the pseudo-header's uncomplemented sum."""
    pseudo = packet[12:20] + b"\0\x06" + (len(packet) - 20).to_bytes(2, "big")
    return with_field(packet, 36, 0xFFFF - internet_checksum(pseudo))


def finished_by_the_card(packet: bytes, start: int = 20, offset: int = 16) -> bytes:
    """What a card makes of a partial checksum: the complemented sum of all from ``start`` on."""
    return with_field(packet, start + offset, internet_checksum(packet[start:]))


def siphash(key: bytes, message: bytes) -> bytes:
    return bytes(siphash24.siphash24(message, key=key).digest())


def _option_size(option: ScapyOption) -> int:
    kind, value = option
    sizes = {"NOP": 1, "MSS": 4, "WScale": 3, "SAckOK": 2, "Timestamp": 10}
    if isinstance(kind, str) and kind in sizes:
        return sizes[kind]
    assert isinstance(value, tuple | bytes)
    return 2 + (len(value) * 4 if kind == "SAck" else len(value))


def _sack(edges: list[int]) -> ScapyOption:
    return ("SAck", tuple(edges[: len(edges) // 2 * 2]))


scapy_options = st.lists(
    st.one_of(
        st.tuples(st.just("NOP"), st.none()),
        st.tuples(st.just("Timestamp"), st.tuples(u32, u32)),
        st.lists(u32, min_size=2, max_size=8).map(_sack),
        st.tuples(st.just("MSS"), u16),
        st.tuples(st.just("WScale"), u8),
        st.tuples(st.just("SAckOK"), st.just(b"")),
        st.tuples(st.just(30), st.binary(max_size=9)),
    ),
    max_size=8,
).map(lambda options: tuple(_fitting(options)))


def _fitting(options: list[ScapyOption]) -> list[ScapyOption]:
    """As many of the first options as fit into 40 bytes."""
    total = 0
    for count, option in enumerate(options):
        total += _option_size(option)
        if total > 40:
            return options[:count]
    return options


addresses = u32.map(lambda number: str(IPv4Address(number)))

described_packets = st.builds(
    Described,
    client=addresses,
    server=addresses,
    client_port=u16,
    server_port=u16,
    from_client=st.booleans(),
    seq=u32,
    ack=u32,
    flags=st.integers(0, 0x1FF),
    window=u16,
    options=scapy_options,
    raw_options=st.none(),
    payload=st.binary(max_size=40),
    urgent=u16,
    tos=u8,
    ttl=st.integers(1, 255),
    identification=u16,
)


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """A valid message with a few bytes flipped, cut out, cut off or put in."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("flip", "flip", "remove", "cut", "insert"))):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case "cut":
                del data[at:]
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data)
