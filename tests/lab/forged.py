"""Handoffs as docs/handoff.md describes them, made from its words and not from the code."""

import struct
import time
from dataclasses import dataclass, field, replace

from scapy.layers.inet import IP, TCP
from scapy.packet import Packet, Raw
from siphash24 import siphash24

from tests.lab.crafted import GHOST

_OPTIONS = struct.Struct(">BBH BB BBII B BBB BBH BB H 8s")
_SIGNED_OPTIONS = 28
_KEY_ID = 0x40


@dataclass(frozen=True)
class ForgedHandoff:
    key: bytes
    node: str
    client_port: int
    payload: bytes
    client: str = GHOST
    dscp: int = 1
    client_isn: int = 0x2000_0000
    vip_isn: int = 0x3000_0000
    mss: int = 1460
    scale: int = 7
    window: int = 65535
    seconds: int = field(default_factory=lambda: int(time.time()))

    def packet(self) -> Packet:
        options = self._options(self._tag())
        header = TCP(
            sport=self.client_port,
            dport=80,
            seq=self.client_isn,
            ack=self.vip_isn,
            flags="S",
            window=self.window,
            dataofs=14,
        )
        addresses = IP(src=self.client, dst=self.node, tos=self.dscp << 2, flags="DF", id=0)
        packet = addresses / header / Raw(options + self.payload)
        return IP(bytes(packet))

    def signed_as(self, other: "ForgedHandoff") -> Packet:
        """With the tag of another one."""
        genuine = other._tag()
        packet = bytes(self.packet()).replace(self._tag(), genuine)
        fresh = IP(packet)
        del fresh[TCP].chksum
        return IP(bytes(fresh))

    def changed(self, **changes: object) -> "ForgedHandoff":
        return replace(self, **changes)  # type: ignore[arg-type]

    def _options(self, tag: bytes) -> bytes:
        flags = (_KEY_ID if self.key[-1] & 1 else 0) | 7
        return _OPTIONS.pack(
            *(2, 4, self.mss),
            *(4, 2),
            *(8, 10, 12345, 54321),
            *(1, 3, 3, self.scale),
            *(253, 16, 0x4C33, 0x11, flags, self.seconds % 65536),
            tag,
        )

    def _tag(self) -> bytes:
        addresses = bytes(IP(src=self.client, dst=self.node))[12:20]
        numbers = struct.pack(">HHBII", self.client_port, 80, self.dscp, self.client_isn, self.vip_isn)
        signed = addresses + numbers + self._options(bytes(8))[:_SIGNED_OPTIONS]
        tag: bytes = siphash24(signed, key=self.key).digest()
        return tag
