"""The handoff and the channel for scapy (docs/handoff.md, docs/channel.md).

    from scapy.all import *
    from l3dsr.scapy_layer import HandoffOption, handoff, handoff_option

    packets = rdpcap("trace.pcap")
    handoff_option(packets[0]).show()

Scapy keeps TCP options as pairs; that of kind 253 stays one, ``(253, bytes)``, and `handoff_option` reads it.
"""

# ruff: noqa: RUF012 - fields_desc is what scapy wants it to be

from typing import Any

from scapy.fields import BitEnumField, BitField, FlagsField, ShortField, XShortField, XStrFixedLenField
from scapy.layers.inet import IP, TCP
from scapy.packet import Packet, Raw

from l3dsr.scapy_channel import Channel

__all__ = ["Channel", "HandoffOption", "handoff", "handoff_option"]

KIND = 253
EXPERIMENT_ID = 0x4C33
_NOP = ("NOP", None)


class HandoffOption(Packet):
    """What stands behind kind and length."""

    name = "L3DSR handoff"
    fields_desc = [
        XShortField("exid", EXPERIMENT_ID),
        BitField("version", 1, 4),
        BitEnumField("type", 1, 4, {1: "first payload"}),
        FlagsField("flags", 0, 4, "rsKF"),
        BitField("promised_scale", 0, 4),
        ShortField("seconds", 0),
        XStrFixedLenField("tag", bytes(8), length=8),
    ]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return b"", s


def handoff_option(packet: Packet) -> HandoffOption | None:
    """The option of a packet's TCP header; None where there is none."""
    if TCP not in packet:
        return None
    for kind, value in packet[TCP].options:
        if kind == KIND and len(value) == 14 and value[:2] == EXPERIMENT_ID.to_bytes(2, "big"):
            return HandoffOption(value)
    return None


def handoff(
    option: HandoffOption,
    payload: bytes,
    *,
    client: str,
    client_port: int,
    node: str,
    service_port: int,
    vip_index: int,
    seq: int,
    ack: int,
    mss: int,
    window: int = 65535,
    sack_permitted: bool = True,
    timestamps: tuple[int, int] | None = None,
    window_scale: int | None = None,
    ecn: int = 0,
) -> Packet:
    """The whole packet, options where they belong; ``seq`` is S - 1, ``ack`` A - 1."""
    options: list[Any] = [("MSS", mss)]
    options += [("SAckOK", b"")] if sack_permitted else [_NOP] * 2
    options += [("Timestamp", timestamps)] if timestamps else [_NOP] * 10
    options += [_NOP, *([_NOP] * 3 if window_scale is None else [("WScale", window_scale)])]
    header = IP(src=client, dst=node, tos=vip_index << 2 | ecn, id=0, flags="DF", ttl=64)
    segment = TCP(
        sport=client_port,
        dport=service_port,
        seq=seq,
        ack=ack,
        flags="S",
        window=window,
        options=[*options, (KIND, bytes(option))],
    )
    return header / segment / Raw(payload)
