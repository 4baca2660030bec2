"""The channel's datagrams for scapy (docs/channel.md). Importing this binds them to UDP port 19507."""

# ruff: noqa: RUF012 - fields_desc is what scapy wants it to be

from typing import Any

from scapy.fields import (
    BitEnumField,
    BitField,
    ByteEnumField,
    ByteField,
    ConditionalField,
    FieldLenField,
    IntField,
    IPField,
    LongField,
    PacketField,
    PacketListField,
    ShortField,
    StrField,
    StrFixedLenField,
    XLongField,
    XShortField,
    XStrFixedLenField,
)
from scapy.layers.inet import UDP
from scapy.packet import Packet, Raw, bind_layers

PORT = 19507
MAGIC = 0x4C33
ASK_REPORT, REPORT, ASK_FLOW, FLOW, FILLER, REFUSAL = 1, 2, 3, 4, 5, 15
_TYPES = {
    ASK_REPORT: "asks for a report",
    REPORT: "report",
    ASK_FLOW: "asks for a flow",
    FLOW: "flow",
    FILLER: "filler",
    REFUSAL: "refusal",
}
_WITHOUT_TAG = (FILLER, REFUSAL)
_TAG_SIZE = 8


class _Body(Packet):
    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return b"", s


class ServedVip(_Body):
    name = "served VIP"
    fields_desc = [
        ByteField("vip_index", 1),
        ByteField("reserved", 0),
        ShortField("vip_port", 80),
        IPField("vip", "0.0.0.0"),
        IntField("flows", 0),
    ]


class ReportBody(_Body):
    name = "report"
    fields_desc = [
        ByteField("tos", 0),
        ByteField("reserved", 0),
        ByteEnumField("engine", 0, {0: "unknown", 1: "raw", 2: "ebpf"}),
        FieldLenField("count", None, fmt="B", count_of="vips"),
        ShortField("milliseconds", 0),
        ShortField("reserved2", 0),
        IntField("uptime", 0),
        LongField("bytes_to_clients", 0),
        StrFixedLenField("release", b"", length=24),
        PacketListField("vips", [], ServedVip, count_from=lambda body: body.count),
    ]


class FlowQuestionBody(_Body):
    name = "question for a flow"
    fields_desc = [
        ByteField("vip_index", 1),
        ByteField("reserved", 0),
        ShortField("client_port", 0),
        IPField("client", "0.0.0.0"),
        StrField("padding", b""),
    ]


class FlowBody(_Body):
    name = "flow"
    fields_desc = [
        StrFixedLenField("state", b"", length=16),
        IntField("age", 0),
        IntField("idle", 0),
        StrField("details", b""),
    ]


class RefusalBody(_Body):
    name = "refusal"
    fields_desc = [
        ByteEnumField("reason", 1, {1: "bad tag", 2: "too old", 3: "unknown version"}),
        StrFixedLenField("reserved", bytes(3), length=3),
    ]


_BODIES: dict[int, type[Packet]] = {
    REPORT: ReportBody,
    ASK_FLOW: FlowQuestionBody,
    FLOW: FlowBody,
    REFUSAL: RefusalBody,
}


class _BodyField(PacketField):
    """All up to the tag, as what the message's type says."""

    def __init__(self) -> None:
        super().__init__("body", None, Raw)

    def getfield(self, pkt: Packet, s: bytes) -> tuple[bytes, Any]:
        end = len(s) if pkt.type in _WITHOUT_TAG else max(len(s) - _TAG_SIZE, 0)
        return s[end:], _BODIES.get(pkt.type, Raw)(s[:end])


class Channel(Packet):
    """Its tag stands last, behind the body; a filler and a refusal have none."""

    name = "L3DSR channel"
    fields_desc = [
        XShortField("magic", MAGIC),
        BitField("version", 1, 4),
        BitEnumField("type", ASK_REPORT, 4, _TYPES),
        BitField("key_id", 0, 1),
        BitField("reserved", 0, 7),
        IntField("seconds", 0),
        XLongField("nonce", 0),
        IPField("node", "0.0.0.0"),
        _BodyField(),
        ConditionalField(
            XStrFixedLenField("tag", bytes(_TAG_SIZE), length=_TAG_SIZE),
            lambda message: message.type not in _WITHOUT_TAG,
        ),
    ]


bind_layers(UDP, Channel, dport=PORT)
bind_layers(UDP, Channel, sport=PORT)
