"""Packets that are not as they should be, such as are not ours, and ICMP errors."""

from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, UDP

from tests.conformance.packetbridge.words import OPENING, SETTLED, icmp_error, to_backend, to_client
from tests.conformance.vector import Step, Vector, arrives, leaves, not_ours, passes
from tests.unit.packetbridge.scene import LI, OTHER_VIP, SI, add, from_backend, from_client
from tests.unit.wire.packets import (
    BACKEND,
    CLIENT,
    NODE,
    Described,
    built,
    with_field,
    with_ip_checksum,
    word,
)

LOST = Described(from_client=False, seq=add(LI, 5001), payload=b"x" * 1400, ttl=3)
"""What a router could not pass on."""
SENT = LOST._replace(server=BACKEND, server_port=8080, seq=SI + 5001)
"""The same as the backend sent it."""
TOO_BIG = icmp_error(built(LOST)[:28])
ABOUT = {
    "fragmentation needed": ICMP(type=3, code=4, nexthopmtu=1300),
    "host unreachable": ICMP(type=3, code=1),
    "time exceeded": ICMP(type=11, code=0),
    "parameter problem": ICMP(type=12, code=0),
}


def with_ip_options(packet: bytes) -> bytes:
    """With four bytes of options that mean nothing."""
    longer = (len(packet) + 4).to_bytes(2, "big")
    return with_ip_checksum(b"\x46" + packet[1:2] + longer + packet[4:20] + b"\1\1\1\0" + packet[20:])


def altered(packet: bytes, at: int, value: int) -> bytes:
    return with_ip_checksum(with_field(packet, at, value))


def dropped(packet: bytes, reason: str) -> Step:
    return arrives(packet, counts=reason)


CAME, LEFT = built(from_client(b"x" * 8)), built(from_backend(b"x" * 8))
_DROPPED = {
    "a first fragment": (6, 0x2000, "fragment"),
    "a data offset below 20": (32, 0x4010, "bad_data_offset"),
    "a data offset behind the packet": (32, 0xF010, "bad_data_offset"),
    "a total length beyond the packet": (2, 2000, "truncated"),
    "a total length without a TCP header": (2, 39, "truncated"),
}
_PACKETS = [
    *(
        Vector(
            f"{name} of a flow is dropped, whichever way it goes",
            (
                *SETTLED,
                dropped(altered(CAME, at, value), reason),
                leaves(altered(LEFT, at, value), counts=reason),
                to_backend(from_client()),
                to_client(from_backend()),
            ),
        )
        for name, (at, value, reason) in _DROPPED.items()
    ),
    Vector(
        "a packet of an unknown flow that cannot be read is dropped",
        tuple(dropped(altered(CAME, at, value), reason) for at, value, reason in _DROPPED.values()),
    ),
    Vector(
        "IP options of a flow are dropped, whichever way they go",
        (
            *SETTLED,
            dropped(with_ip_options(CAME), "ip_options"),
            leaves(with_ip_options(LEFT), counts="ip_options"),
        ),
    ),
    Vector(
        "a wrong IP checksum of what is no plain data is dropped",
        (
            dropped(with_field(built(from_client()), 10, 0x1234), "bad_ip_checksum"),
            *SETTLED,
            dropped(with_field(built(from_client(flags=0x11)), 10, 0x1234), "bad_ip_checksum"),
            leaves(with_field(built(from_backend(flags=0x11)), 10, 0x1234), counts="bad_ip_checksum"),
        ),
    ),
    Vector(
        "a later fragment from the backend is dropped",
        (*SETTLED, leaves(altered(LEFT, 6, 0x00B9), counts="fragment")),
    ),
    Vector(
        "what leaves and belongs to no flow leaves untouched",
        (
            *SETTLED,
            passes(from_backend(b"direct", tos=0xB8)._replace(client_port=50_000)),
            passes(from_backend(b"ssh")._replace(server_port=22)),
            passes(with_ip_options(built(from_backend(b"direct")._replace(client_port=50_000)))),
            passes(bytes(raw(IP(src=BACKEND, dst=CLIENT) / UDP(sport=8080, dport=49152) / b"datagram"))),
            passes(bytes(raw(IP(src=BACKEND, dst=CLIENT) / ICMP(type=0)))),
        ),
    ),
    Vector(
        "what comes and is not for a bridge is left to the host",
        (
            *SETTLED,
            not_ours(from_client()._replace(tos=3)),
            not_ours(from_client()._replace(server="192.168.33.99")),
            not_ours(from_client()._replace(server_port=22)),
            not_ours(altered(CAME, 6, 0x00B9)),
            not_ours(bytes(raw(IP(src=CLIENT, dst=NODE, tos=4) / UDP(sport=5, dport=80)))),
            not_ours(bytes(raw(IP(src=CLIENT, dst=NODE, tos=4) / ICMP(type=8)))),
        ),
    ),
    Vector(
        "a segment of an unknown DSCP is dropped",
        (*SETTLED, dropped(built(from_client()._replace(tos=9 << 2)), "unknown_dscp")),
    ),
]
_ICMP = [
    *(
        Vector(
            f"{name} about a packet of the VIP reaches the backend as about its own",
            (
                *SETTLED,
                arrives(
                    icmp_error(built(LOST)[:28], about=about),
                    icmp_error(built(SENT)[:28], about=about, destination=BACKEND, tos=2),
                    counts="icmp_passed",
                ),
            ),
        )
        for name, about in ABOUT.items()
    ),
    Vector(
        "a long quote is kept whole",
        (
            *SETTLED,
            arrives(
                icmp_error(built(LOST)[:528]),
                icmp_error(
                    with_field(built(SENT)[:528], 36, word(built(LOST), 36)), destination=BACKEND, tos=2
                ),
            ),
        ),
    ),
    Vector(
        "a quoted number wraps around",
        (
            *SETTLED,
            arrives(
                icmp_error(built(LOST._replace(seq=5))[:28]),
                icmp_error(built(SENT._replace(seq=add(5, SI - LI)))[:28], destination=BACKEND, tos=2),
            ),
        ),
    ),
    Vector(
        "an ICMP error about no flow is dropped",
        (
            *SETTLED,
            dropped(icmp_error(built(LOST._replace(client_port=1))), "icmp_of_unknown_flow"),
            dropped(icmp_error(built(LOST._replace(server=OTHER_VIP))), "icmp_quotes_no_vip"),
            dropped(icmp_error(built(LOST)[:27]), "truncated"),
            dropped(icmp_error(built(LOST), tos=9 << 2), "unknown_dscp"),
            dropped(with_field(TOO_BIG, 10, 0x1234), "bad_ip_checksum"),
            dropped(altered(TOO_BIG, 6, 0x2000), "fragment"),
            dropped(with_ip_options(TOO_BIG), "ip_options"),
        ),
    ),
    Vector(
        "an ICMP error about a flow without a backend yet is dropped",
        (*OPENING, dropped(TOO_BIG, "icmp_of_unknown_flow")),
    ),
    Vector(
        "ICMP that is no error or quotes none of our packets is left to the host",
        (
            *SETTLED,
            not_ours(icmp_error(built(LOST), about=ICMP(type=8))),
            not_ours(icmp_error(built(LOST._replace(server_port=81)))),
            not_ours(icmp_error(built(LOST._replace(server=NODE)))),
            not_ours(icmp_error(b"\x46" + built(LOST)[1:])),
            not_ours(icmp_error(with_field(built(LOST), 6, 0x00B9))),
            not_ours(icmp_error(built(LOST), tos=2)),
        ),
    ),
    Vector(
        "an ICMP error of the backend's host about a bridged packet does not leave",
        (
            *SETTLED,
            leaves(
                icmp_error(
                    built(Described(server=BACKEND, server_port=8080, seq=5)),
                    about=ICMP(type=3, code=13),
                    source=BACKEND,
                    destination=CLIENT,
                    tos=0,
                ),
                counts="icmp_from_backend",
            ),
            passes(
                icmp_error(
                    built(Described(server=BACKEND, server_port=8080, seq=5, client_port=1)),
                    source=BACKEND,
                    destination=CLIENT,
                    tos=0,
                )
            ),
        ),
    ),
]

VECTORS = [*_PACKETS, *_ICMP]
