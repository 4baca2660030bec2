"""What the packetbridge's vectors are written with: the words of its unit tests, and a few more."""

from typing import Any

from scapy.compat import raw
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from packetbridge.core.service import Service
from tests.conformance.oracle import TAG_KEY
from tests.conformance.vector import Step, Vector, arrives, leaves
from tests.unit.packetbridge.scene import (
    FIRST,
    OTHER_SERVICE,
    REQUEST,
    SERVICE,
    at_backend,
    at_client,
    from_backend,
    from_client,
    handoff,
    syn,
    syn_ack,
)
from tests.unit.wire.packets import BACKEND, NODE, RST, Described, ScapyOption, built, siphash

SERVICES: tuple[Service, ...] = (SERVICE, OTHER_SERVICE)
TO_BACKEND = Described(server=BACKEND, server_port=8080, window=0, ack=0)
TOO_BIG = ICMP(type=3, code=4, nexthopmtu=1300)
END = 0x11
"""FIN and ACK."""


def signed(offered: Described, key: bytes = TAG_KEY) -> Described:
    """The handoff with its right tag and key id (docs/handoff.md)."""
    *options, (kind, said) = offered.options
    assert isinstance(said, bytes)
    said = said[:3] + bytes((said[3] | (key[-1] & 1) << 6,)) + said[4:6]
    packet = built(offered._replace(options=(*options, (kind, said + bytes(8)))))
    message = packet[12:24] + bytes((packet[1] >> 2,)) + packet[24:32] + packet[40:68]
    return offered._replace(options=(*options, (kind, said + siphash(key, message))))


def offered(payload: bytes = REQUEST, **said: Any) -> Described:
    """A handoff with the arguments of `handoff`, signed."""
    return signed(handoff(payload, **said))


def icmp_error(
    quoted: bytes,
    *,
    about: ICMP = TOO_BIG,
    source: str = "198.51.100.1",
    destination: str = NODE,
    tos: int = 1 << 2 | 2,
) -> bytes:
    header = IP(src=source, dst=destination, tos=tos, ttl=60, id=4242)
    return bytes(raw(header / about / Raw(quoted)))


OPENING: tuple[Step, ...] = (arrives(offered(), syn()),)
SPLICED = (*OPENING, leaves(syn_ack(), FIRST))
"""The client has echoed nothing of the backend yet."""
SETTLED = (*SPLICED, arrives(from_client(), at_backend(from_client())))


def to_backend(sent: Described, options: tuple[ScapyOption, ...] | None = None) -> Step:
    """The client's segment reaches the backend."""
    return arrives(sent, at_backend(sent, options))


def to_client(sent: Described) -> Step:
    return leaves(sent, at_client(sent))


ENDED = (*SETTLED, leaves(from_backend(flags=RST), at_client(from_backend(flags=RST))))
"""By the backend's RST."""


def in_both(name: str, *steps: Step) -> list[Vector]:
    """Before and after the client has echoed the backend."""
    return [
        Vector(f"{name}, {state}", (*before, *steps))
        for state, before in (("echoing", SPLICED), ("settled", SETTLED))
    ]
