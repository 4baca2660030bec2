"""Packets that are not as they should be, and such as are not for the balancer."""

from scapy.compat import raw
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP

from tests.conformance.balancer.established import FLOW, data
from tests.conformance.balancer.handshake import VERIFIED
from tests.conformance.balancer.words import BEHIND, GET, Talk
from tests.conformance.vector import Step, Vector, arrives, not_ours
from tests.unit.wire.packets import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    VIP,
    Described,
    built,
    with_field,
    with_ip_checksum,
)
from tests.unit.wire.packets import CLIENT as ADDRESS

CLIENT = Talk()
DATA = built(CLIENT.segment(b"more", at=BEHIND))
FIRST = built(CLIENT.segment(GET[:4]))
OF_UNKNOWN = built(Talk(50_000).segment(b"more", at=BEHIND))

DAMAGED = {
    "a first fragment": (6, 0x2000, "dropped_fragment"),
    "a total length beyond the packet": (2, 2000, "dropped_truncated"),
    "a total length without a TCP header": (2, 39, "dropped_truncated"),
    "a total length below the IP header": (2, 19, "dropped_truncated"),
    "a data offset below 20": (32, 0x4010, "dropped_bad_data_offset"),
    "a data offset behind the packet": (32, 0xF010, "dropped_bad_data_offset"),
}
BAD_FLAGS = (SYN | ACK, SYN | FIN, SYN | RST, RST | FIN, 0, FIN, PSH, 0x3F)


def damaged(packet: bytes, at: int, value: int, reason: str) -> Step:
    return arrives(with_ip_checksum(with_field(packet, at, value)), counts=reason)


def with_ip_options(sent: Described) -> bytes:
    segment = IP(built(sent))[TCP]
    return bytes(raw(IP(src=ADDRESS, dst=VIP, options=[IPOption_NOP()] * 4) / segment))


_DROPPED = [
    Vector(
        f"{name} is dropped {where}",
        (*before, damaged(packet, at, value, reason), damaged(packet, at, value, reason)),
    )
    for name, (at, value, reason) in DAMAGED.items()
    for where, before, packet in (
        ("of a flow", FLOW, DATA),
        ("as a first payload", VERIFIED, FIRST),
        ("of an unknown flow", (), OF_UNKNOWN),
    )
]
_FLAGS = [
    Vector(
        f"flags {flags:#x} are dropped {where}",
        (*before, arrives(CLIENT.segment(b"x", at=BEHIND, flags=flags), counts="dropped_bad_flags")),
    )
    for flags in BAD_FLAGS
    for where, before in (("of a flow", FLOW), ("of an unknown flow", ()))
]
_ALONE = [
    Vector(
        "IP options are dropped",
        (
            *FLOW,
            arrives(with_ip_options(CLIENT.segment(b"x", at=BEHIND)), counts="dropped_ip_options"),
            arrives(with_ip_options(CLIENT.syn()), counts="dropped_ip_options"),
        ),
    ),
    Vector(
        "a wrong IP checksum of what is answered is dropped",
        (
            arrives(with_field(built(CLIENT.syn()), 10, 0x1234), counts="dropped_bad_ip_checksum"),
            *VERIFIED,
            arrives(with_field(FIRST, 10, 0x1234), counts="dropped_bad_ip_checksum"),
        ),
    ),
    Vector(
        "a segment of an unknown flow is reset",
        (
            arrives(CLIENT.segment(b"x", at=99, ack=500), CLIENT.reset(ack=500), counts="resets_sent"),
            arrives(CLIENT.segment(flags=FIN | ACK, ack=500), CLIENT.reset(ack=500)),
            arrives(CLIENT.segment(flags=RST, ack=500)),
            arrives(CLIENT.segment(flags=RST | ACK, ack=500)),
        ),
    ),
    Vector(
        "a damaged segment of an unknown flow is reset all the same",
        (arrives(with_field(built(CLIENT.segment(b"x", ack=500)), 36, 0x1234), CLIENT.reset(ack=500)),),
    ),
    Vector(
        "other ports, protocols, hosts and later fragments are the host's",
        (
            not_ours(CLIENT.syn()._replace(server_port=443)),
            not_ours(CLIENT.syn()._replace(server="192.168.33.11")),
            not_ours(bytes(raw(IP(src=ADDRESS, dst=VIP) / UDP(sport=5, dport=80)))),
            not_ours(bytes(raw(IP(src=ADDRESS, dst=VIP, proto=89) / (b"\0" * 24)))),
            not_ours(with_ip_checksum(with_field(DATA, 6, 0x0001))),
            not_ours(with_ip_checksum(with_field(DATA, 6, 0x2001))),
            not_ours(CLIENT.segment()._replace(from_client=False)),
        ),
    ),
    Vector("damage of one packet does not matter to the next", (*FLOW, damaged(DATA, 6, 0x2000, ""), data())),
]

VECTORS = [*_DROPPED, *_FLAGS, *_ALONE]
