"""struct virtio_net_hdr: what the kernel says of a packet beyond its bytes (linux/virtio_net.h).

AF_PACKET with PACKET_VNET_HDR and TUN with IFF_VNET_HDR put these 10 bytes in front of each packet, in the
host's byte order. Here offsets count from the IP header, as on a TUN.
"""

import struct
from typing import NamedTuple

from common.wire.buffer import Buffer

SIZE = 10
NEEDS_CHECKSUM = 1
"""The checksum field holds an uncomplemented pseudo-header sum; the rest is added on the way out."""
GSO_NONE = 0
_HEADER = struct.Struct("=BBHHHH")


class Offload(NamedTuple):
    flags: int = 0
    gso_type: int = GSO_NONE
    header_length: int = 0
    gso_size: int = 0
    """Payload bytes of each segment that a superpacket stands for."""
    checksum_start: int = 0
    checksum_offset: int = 0

    @property
    def needs_checksum(self) -> bool:
        return bool(self.flags & NEEDS_CHECKSUM)


NO_OFFLOAD = Offload()
"""An ordinary packet with a complete checksum."""


class Packet(NamedTuple):
    """One IPv4 packet, link header removed, and what is still to be done to it."""

    data: bytes
    offload: Offload = NO_OFFLOAD


def parse(data: Buffer) -> Offload:
    """From the first `SIZE` bytes of ``data``, which come from our own kernel."""
    return Offload(*_HEADER.unpack_from(data))


def emit(offload: Offload) -> bytes:
    return _HEADER.pack(*offload)
