"""Handoffs for tests, and the packet that scapy makes of one."""

from ipaddress import IPv4Address

from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from common.wire.handoff import Handoff
from common.wire.tcp_options import Timestamps
from tests.unit.wire.packets import ScapyOption, u16, u32

KEY = bytes(range(16))
"""Its last byte is odd: key id 1."""

NOP: ScapyOption = ("NOP", None)

EXAMPLE = Handoff(
    client=bytes([203, 0, 113, 7]),
    node=bytes([192, 168, 33, 20]),
    client_port=49152,
    service_port=80,
    vip_index=1,
    seq=0x01020304,
    ack=0x8A9B0C1D,
    window=64240,
    mss=1460,
    window_scale=7,
    sack_permitted=True,
    timestamps=Timestamps(0x11223344, 0x55667788),
    promised_scale=7,
    fin=False,
    time=0x6B49,
    payload=b"GET /a HTTP/1.1\r\nHost: example.com\r\n\r\n",
    key_id=1,
    tag=bytes.fromhex("d9526759b06c531b"),
)
"""The worked example of docs/handoff.md."""

handoffs = st.builds(
    Handoff,
    client=st.binary(min_size=4, max_size=4),
    node=st.binary(min_size=4, max_size=4),
    client_port=u16,
    service_port=u16,
    vip_index=st.integers(1, 63),
    seq=u32,
    ack=u32,
    window=u16,
    mss=u16,
    window_scale=st.one_of(st.none(), st.integers(0, 14)),
    sack_permitted=st.booleans(),
    timestamps=st.one_of(st.none(), st.builds(Timestamps, u32, u32)),
    promised_scale=st.integers(0, 14),
    fin=st.booleans(),
    time=u16,
    payload=st.binary(min_size=1, max_size=50),
    key_id=st.integers(0, 1),
    tag=st.binary(min_size=8, max_size=8),
    ecn=st.integers(0, 3),
)


def scapy_packet(handoff: Handoff) -> bytes:
    flags = 0x80 * handoff.fin | 0x40 * handoff.key_id | handoff.promised_scale
    experiment = b"\x4c\x33\x11" + bytes([flags]) + handoff.time.to_bytes(2, "big") + handoff.tag
    options: list[ScapyOption] = [
        ("MSS", handoff.mss),
        *([("SAckOK", b"")] if handoff.sack_permitted else [NOP] * 2),
        *([("Timestamp", tuple(handoff.timestamps))] if handoff.timestamps else [NOP] * 10),
        NOP,
        *([("WScale", handoff.window_scale)] if handoff.window_scale is not None else [NOP] * 3),
        (253, experiment),
    ]
    header = IP(
        src=str(IPv4Address(handoff.client)),
        dst=str(IPv4Address(handoff.node)),
        tos=handoff.vip_index * 4 + handoff.ecn,
        id=0,
        flags="DF",
        ttl=64,
    )
    segment = TCP(
        sport=handoff.client_port,
        dport=handoff.service_port,
        seq=handoff.seq,
        ack=handoff.ack,
        flags="S",
        window=handoff.window,
        options=options,
    )
    return bytes(raw(header / segment / Raw(handoff.payload)))
