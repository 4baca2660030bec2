"""The ICMP errors of the simulated routers (RFC 792, RFC 1191), made and read without the product's code."""

import struct
from typing import NamedTuple

from common.wire.offload import Packet
from tests.sim.segment import Socket, folded_sum, ip_header

PROTOCOL = 1
_FRAGMENTATION_NEEDED = (3, 4)


class FragmentationNeeded(NamedTuple):
    source: Socket
    """Of the packet that was too long, as are all other fields."""
    destination: Socket
    seq: int
    mtu: int
    is_intact: bool
    """All three checksums are right: IP, ICMP, quoted IP."""


def fragmentation_needed(router: bytes, packet: Packet, mtu: int) -> Packet:
    """What a router sends to the source of ``packet``, quoting its headers."""
    quoted = packet.data[:60]
    message = struct.pack(">BBHHH", *_FRAGMENTATION_NEEDED, 0, 0, mtu) + quoted
    message = message[:2] + (0xFFFF - folded_sum(message)).to_bytes(2, "big") + message[4:]
    return Packet(ip_header((router, packet.data[12:16]), PROTOCOL, len(message)) + message)


def parse(packet: Packet) -> FragmentationNeeded:
    header, message = packet.data[:20], packet.data[20:]
    if (message[0], message[1]) != _FRAGMENTATION_NEEDED:
        raise ValueError(f"ICMP type {message[0]} code {message[1]}")
    quoted = message[8:]
    source_port, destination_port, seq = struct.unpack_from(">HHI", quoted, 20)
    return FragmentationNeeded(
        (quoted[12:16], source_port),
        (quoted[16:20], destination_port),
        seq,
        int.from_bytes(message[6:8], "big"),
        all(folded_sum(part) == 0xFFFF for part in (header, message, quoted[:20])),
    )
