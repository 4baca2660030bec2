"""The channel: what balancer and packetbridges say to each other beside the handoffs, in UDP datagrams.

A balancer asks, a packetbridge answers at its bridge address and remembers nothing of it. The layouts are
`HEADER_LAYOUT` and those of the bodies; docs/channel.md, whose diagrams and tables are made from them, adds
what the two sides do.
"""

import hmac
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from common.wire import dscp
from common.wire.errors import WireError
from common.wire.handoff import Field
from common.wire.mac import Mac

PORT = 19507
VERSION = 1
MAGIC = 0x4C33
HEADER_SIZE = 20
TAG_SIZE = 8
DATAGRAM_SIZE = 1200
"""Of each request, and the most that an answer may have: asking brings forth no more bytes than it takes."""
REFUSAL_SIZE = HEADER_SIZE + 4
MAX_AGE_SECONDS = 60
KEY_LABELS = (b"l3dsr channel 0", b"l3dsr channel 1")
"""What the handoff key is asked for: the tags of both, one behind the other, are the channel's key."""

ENGINES = ("", "raw", "ebpf")
"""By their number in a report; the first one is none that is known."""

_FLAG_KEY_ID = 1 << 7
_TIME_MODULUS = 1 << 32
_U32_MAX, _U64_MAX = (1 << 32) - 1, (1 << 64) - 1

_HEADER = struct.Struct(">HBBIQ4s")
_REPORT = struct.Struct(">BBBBHHIQ24s")
_VIP = struct.Struct(">BBH4sI")
_FLOW_QUESTION = struct.Struct(">BBH4s")
_FLOW = struct.Struct(">16sII")
_REFUSAL = struct.Struct(">B3x")
_VERSION_TEXT_SIZE = 24
_STATE_SIZE = 16
_BODY_SIZE = DATAGRAM_SIZE - HEADER_SIZE - TAG_SIZE
MAX_DETAILS = _BODY_SIZE - _FLOW.size


class Kind(IntEnum):
    ASK_REPORT = 1
    REPORT = 2
    ASK_FLOW = 3
    FLOW = 4
    FILLER = 5
    """As long as the path is believed to carry: a router that cannot carry it says so. Nobody reads it."""
    REFUSAL = 15
    """The only one without a tag: a hint, not a statement. Its layout is that of all versions."""


class Reason(IntEnum):
    """Why a request is refused."""

    BAD_TAG = 1
    TOO_OLD = 2
    UNKNOWN_VERSION = 3


HEADER_LAYOUT = (
    Field("magic", 16, "0x4C33"),
    Field("version", 4, "1; in a refusal the one that the node speaks"),
    Field(
        "type",
        4,
        "1: asks for a report; 2: a report; 3: asks for a flow; 4: a flow; 5: a filler; 15: a refusal",
    ),
    Field("K", 1, "key id: the lowest bit of the last byte of the handoff key that the tag's key is made of"),
    Field("rsv", 7, "0"),
    Field("time", 32, "wall-clock seconds modulo 2^32 at which this datagram was sent"),
    Field("nonce", 64, "drawn at random for each request; an answer has its request's"),
    Field("node", 32, "the node's bridge address, whoever sends"),
)
"""The 20 bytes in front of the body."""

REPORT_LAYOUT = (
    Field("TOS", 8, "the TOS byte that the request arrived with"),
    Field("rsv", 8, "0, not looked at"),
    Field("engine", 8, "1: raw; 2: ebpf; 0: another"),
    Field("VIPs", 8, "how many entries follow, at most 63"),
    Field("milliseconds", 16, "of the node's clock, 0 to 999, beside the header's seconds"),
    Field("rsv", 16, "0, not looked at"),
    Field("uptime", 32, "seconds since the packetbridge's start"),
    Field(
        "bytes to clients",
        64,
        "IP bytes sent to clients as a VIP, since the start, or the first one of those that kept their flows",
    ),
    Field("release", 192, "the packetbridge's release in ASCII, zeros behind it"),
)
"""The body of a report, in front of its entries."""

VIP_LAYOUT = (
    Field("VIP index", 8, "1 to 63, ascending from entry to entry"),
    Field("rsv", 8, "0, not looked at"),
    Field("VIP port", 16, "where clients connect to"),
    Field("VIP", 32, "its address"),
    Field("flows", 32, "that are open, at most 2^32 - 1"),
)
"""One entry of a report: a VIP that the node serves."""

FLOW_QUESTION_LAYOUT = (
    Field("VIP index", 8, "1 to 63"),
    Field("rsv", 8, "0, not looked at"),
    Field("client port", 16, "the flow's"),
    Field("client", 32, "its address"),
)
"""The body of a request for a flow, in front of the zeros that fill it."""

FLOW_LAYOUT = (
    Field("state", 128, "its name in ASCII, zeros behind it; nothing but zeros: the node knows no such flow"),
    Field("age", 32, "milliseconds since the handoff was made, at most 2^32 - 1"),
    Field("idle", 32, "milliseconds since its last packet, at most 2^32 - 1"),
)
"""The body of an answer about a flow, in front of its details."""

REFUSAL_LAYOUT = (
    Field("reason", 8, "1: wrong tag; 2: time more than 60 s off; 3: unknown version"),
    Field("rsv", 24, "0, not looked at"),
)
"""The body of a refusal; no tag follows."""


class Key(NamedTuple):
    id: int
    """0 or 1, by the handoff key that it is made of."""
    mac: Mac


class Message(NamedTuple):
    """A datagram whose header has the right layout. Its tag is not verified."""

    version: int
    kind: Kind
    time: int
    nonce: int
    node: bytes
    """Bridge address, 4 bytes."""
    body: bytes
    """Between header and tag, padding with it."""


class UnknownVersionError(WireError):
    """A datagram of another version; what all versions have in common can be read."""

    def __init__(self, nonce: int) -> None:
        super().__init__("unknown_channel_version")
        self.nonce = nonce


class ServedVip(NamedTuple):
    """A VIP as a node serves it."""

    vip_index: int
    address: bytes
    port: int
    flows: int


class NodeFacts(NamedTuple):
    """What a packetbridge says of itself."""

    release: str
    """ASCII, at most 24 bytes count."""
    engine: str
    uptime: float
    bytes_to_clients: int
    vips: tuple[ServedVip, ...]
    """Ascending by index."""


class Report(NamedTuple):
    facts: NodeFacts
    tos: int
    """The TOS byte that the request arrived with."""
    milliseconds: int
    """Of the node's clock, beside the datagram's seconds."""


class FlowQuestion(NamedTuple):
    vip_index: int
    client: bytes
    client_port: int


class FlowAnswer(NamedTuple):
    state: str
    """Lower-case ASCII, at most 16 bytes; empty: there is no such flow."""
    age: float
    idle: float
    details: bytes = b""
    """A JSON object, at most `MAX_DETAILS` bytes; empty: there are none."""


UNKNOWN_FLOW = FlowAnswer("", 0.0, 0.0)


def seal(kind: Kind, body: bytes, key: Key, *, time: int, nonce: int, node: bytes) -> bytes:
    """The datagram; a request is filled up. ``time`` is wall-clock seconds."""
    if kind in (Kind.ASK_REPORT, Kind.ASK_FLOW):
        body = body.ljust(_BODY_SIZE, b"\0")
    flags = _FLAG_KEY_ID if key.id else 0
    signed = _HEADER.pack(MAGIC, VERSION << 4 | kind, flags, time % _TIME_MODULUS, nonce, node) + body
    return signed + key.mac(signed)


def fill(size: int, *, time: int, nonce: int, node: bytes) -> bytes:
    """A filler of ``size`` bytes, at least those of the header."""
    header = _HEADER.pack(MAGIC, VERSION << 4 | Kind.FILLER, 0, time % _TIME_MODULUS, nonce, node)
    return header.ljust(size, b"\0")


def refuse(reason: Reason, *, time: int, nonce: int, node: bytes) -> bytes:
    header = _HEADER.pack(MAGIC, VERSION << 4 | Kind.REFUSAL, 0, time % _TIME_MODULUS, nonce, node)
    return header + _REFUSAL.pack(reason)


def parse_untrusted(data: bytes) -> Message:
    """`WireError`, among them `UnknownVersionError`, if it is none."""
    if len(data) < REFUSAL_SIZE:
        raise WireError("not_a_channel_message")
    magic, type_byte, flags, time, nonce, node = _HEADER.unpack_from(data)
    version, number = type_byte >> 4, type_byte & 0x0F
    if magic == MAGIC and number == Kind.FILLER:
        raise WireError("channel_filler")
    if magic != MAGIC or len(data) > DATAGRAM_SIZE:
        raise WireError("not_a_channel_message")
    if number == Kind.REFUSAL:
        return Message(version, Kind.REFUSAL, time, nonce, node, data[HEADER_SIZE:])
    if version != VERSION:
        raise UnknownVersionError(nonce)
    try:
        kind = Kind(number)
    except ValueError:
        raise WireError("bad_channel_message") from None
    if flags & ~_FLAG_KEY_ID or len(data) < HEADER_SIZE + TAG_SIZE:
        raise WireError("bad_channel_message")
    if kind in (Kind.ASK_REPORT, Kind.ASK_FLOW) and len(data) != DATAGRAM_SIZE:
        raise WireError("bad_channel_message")
    return Message(version, kind, time, nonce, node, data[HEADER_SIZE:-TAG_SIZE])


def key_of(data: bytes, keys: Iterable[Key]) -> Key | None:
    """Under which of ``keys`` the tag of a datagram that could be parsed is right; None: under none."""
    signed, tag = data[:-TAG_SIZE], data[-TAG_SIZE:]
    key_id = int(bool(data[3] & _FLAG_KEY_ID))
    return next(
        (key for key in keys if key.id == key_id and hmac.compare_digest(key.mac(signed), tag)),
        None,
    )


def age(message: Message, wall_seconds: int) -> int:
    """Seconds since it was sent, negative where its clock is ahead; -2^31 to 2^31 - 1."""
    half = _TIME_MODULUS // 2
    return (wall_seconds - message.time + half) % _TIME_MODULUS - half


def emit_report(report: Report) -> bytes:
    facts = report.facts
    head = _REPORT.pack(
        report.tos,
        0,
        ENGINES.index(facts.engine) if facts.engine in ENGINES else 0,
        len(facts.vips),
        report.milliseconds,
        0,
        min(int(facts.uptime), _U32_MAX),
        min(facts.bytes_to_clients, _U64_MAX),
        facts.release.encode("ascii", "replace")[:_VERSION_TEXT_SIZE],
    )
    return head + b"".join(
        _VIP.pack(vip.vip_index, 0, vip.port, vip.address, min(vip.flows, _U32_MAX)) for vip in facts.vips
    )


def parse_report_untrusted(body: bytes) -> Report:
    if len(body) < _REPORT.size:
        raise WireError("bad_channel_message")
    tos, _, engine, count, milliseconds, _, uptime, delivered, release = _REPORT.unpack_from(body)
    if len(body) != _REPORT.size + count * _VIP.size or engine >= len(ENGINES) or milliseconds > 999:
        raise WireError("bad_channel_message")
    vips = tuple(
        ServedVip(index, address, port, flows)
        for index, _, port, address, flows in _VIP.iter_unpack(body[_REPORT.size :])
    )
    indices = [vip.vip_index for vip in vips]
    if indices != sorted(set(indices)) or not all(dscp.MIN_INDEX <= n <= dscp.MAX_INDEX for n in indices):
        raise WireError("bad_channel_message")
    facts = NodeFacts(
        release=_text_untrusted(release),
        engine=ENGINES[engine],
        uptime=float(uptime),
        bytes_to_clients=delivered,
        vips=vips,
    )
    return Report(facts, tos, milliseconds)


def emit_flow_question(question: FlowQuestion) -> bytes:
    return _FLOW_QUESTION.pack(question.vip_index, 0, question.client_port, question.client)


def parse_flow_question_untrusted(body: bytes) -> FlowQuestion:
    if len(body) < _FLOW_QUESTION.size:
        raise WireError("bad_channel_message")
    index, _, port, client = _FLOW_QUESTION.unpack_from(body)
    if not dscp.MIN_INDEX <= index <= dscp.MAX_INDEX:
        raise WireError("bad_channel_message")
    return FlowQuestion(index, client, port)


def emit_flow(flow: FlowAnswer) -> bytes:
    """ValueError if the details are too long."""
    if len(flow.details) > MAX_DETAILS:
        raise ValueError(f"details of {len(flow.details)} bytes do not fit into a datagram")
    state = flow.state.encode("ascii", "replace")[:_STATE_SIZE]
    return _FLOW.pack(state, _milliseconds(flow.age), _milliseconds(flow.idle)) + flow.details


def parse_flow_untrusted(body: bytes) -> FlowAnswer:
    """The details are bytes yet: whoever reads them must expect anything."""
    if len(body) < _FLOW.size:
        raise WireError("bad_channel_message")
    state, since, idle = _FLOW.unpack_from(body)
    return FlowAnswer(_text_untrusted(state), since / 1000, idle / 1000, body[_FLOW.size :])


def parse_refusal_untrusted(body: bytes) -> Reason:
    if len(body) < _REFUSAL.size:
        raise WireError("bad_channel_message")
    try:
        return Reason(body[0])
    except ValueError:
        raise WireError("bad_channel_message") from None


def _text_untrusted(field: bytes) -> str:
    text = field.rstrip(b"\0")
    if not all(0x20 <= byte < 0x7F for byte in text):
        raise WireError("bad_channel_message")
    return text.decode("ascii")


def _milliseconds(seconds: float) -> int:
    return max(0, min(round(seconds * 1000), _U32_MAX))
