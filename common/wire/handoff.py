"""The handoff: how the balancer tells a node of a connection, in one packet with its first payload.

A handoff travels as a TCP SYN whose DSCP is the VIP's index and whose header always has the same layout:
`LAYOUT`. docs/handoff.md, whose diagram and table are made from it, adds what sender and receiver do.
"""

import struct
from typing import NamedTuple

from common.wire import dscp, tcp, tcp_options
from common.wire.errors import WireError
from common.wire.mac import Mac
from common.wire.segment import FlowKey, Segment, flow_key
from common.wire.tcp_options import NOP_BYTE, Timestamps

VERSION = 1
FIRST_PAYLOAD = 1
"""The only message type so far: the connection's first payload, or the first of a later request."""
EXPERIMENT_ID = 0x4C33
HEADER_SIZE = 56
MAX_PAYLOAD = 1424
TAG_SIZE = 8
MAX_AGE_SECONDS = 60

FLAG_FIN, FLAG_KEY_ID = 1 << 7, 1 << 6
_RESERVED_FLAGS = 0b11 << 4
_SCALE_MASK = 0x0F
_TIME_MODULUS = 1 << 16

_MSS = struct.Struct(">BBH")
_TIMESTAMPS = struct.Struct(">BBII")
_EXPERIMENT = struct.Struct(">BBHBBH8s")
_SEQUENCE = struct.Struct(">BII")
_OPTIONS_SIZE = HEADER_SIZE - tcp.HEADER_SIZE
_SIGNED_OPTIONS = _OPTIONS_SIZE - TAG_SIZE


class Field(NamedTuple):
    name: str
    bits: int
    meaning: str


LAYOUT = (
    Field("client port", 16, "source port"),
    Field("service port", 16, "destination port: the VIP's"),
    Field("S - 1", 32, "sequence number; S is that of the first payload byte carried"),
    Field("A - 1", 32, "acknowledgment number, its flag not set; A is what the client acknowledged"),
    Field("offset", 4, "14: the header has 56 bytes"),
    Field("control bits", 12, "SYN alone: 0x002"),
    Field("window", 16, "the client's current window in bytes, not scaled, at most 65535"),
    Field("checksum", 16, "TCP's own"),
    Field("urgent pointer", 16, "0"),
    Field("kind 2, length 4", 16, "MSS option"),
    Field("MSS", 16, "the client's"),
    Field("SACK-permitted, or NOP NOP", 16, "kind 4, length 2; where the client did not offer it, two NOPs"),
    Field(
        "kind 8, length 10",
        16,
        "timestamps option; where the client did not offer it, ten NOPs",
    ),
    Field("TSval", 32, "the client's newest"),
    Field("TSecr", 32, "the newest TSval of the balancer that the client echoed"),
    Field("NOP", 8, "1"),
    Field(
        "kind 3, length 3",
        16,
        "window scale option; where the client did not offer it, three NOPs",
    ),
    Field("shift", 8, "the client's window scale, at most 14"),
    Field("kind 253, length 16", 16, "experimental option (RFC 6994)"),
    Field("ExID", 16, "0x4C33"),
    Field("version", 4, "1"),
    Field("type", 4, "1: a first payload"),
    Field("F", 1, "FIN: the payload is the last that the client sends"),
    Field("K", 1, "key id: the lowest bit of the last byte of the key that made the tag"),
    Field("rsv", 2, "0; kept for ECN and for a node index in TSval"),
    Field("scale", 4, "the window scale that the balancer promised the client, at most 14; 0 where none"),
    Field("time", 16, "wall-clock seconds modulo 2^16 at which this packet was sent"),
    Field("tag", 64, "SipHash-2-4, least significant byte first"),
)
"""The TCP header bit by bit, in the order of the wire."""


class Handoff(NamedTuple):
    client: bytes
    node: bytes
    """The node's bridge address."""
    client_port: int
    service_port: int
    vip_index: int
    """The VIP's index, which is the packet's DSCP."""
    seq: int
    """S - 1, S being the sequence number of the payload's first byte."""
    ack: int
    """A - 1, A being what the client acknowledged in that segment."""
    window: int
    """The client's current window in bytes, at most 65535."""
    mss: int
    window_scale: int | None
    """The client's. None, False and None where it did not offer the option."""
    sack_permitted: bool
    timestamps: Timestamps | None
    """The client's newest TSval, and the newest of ours that it echoed."""
    promised_scale: int
    """The window scale that the balancer's SYN-ACK promised for the node; 0 where none was negotiated."""
    fin: bool
    """Whether the payload is the client's last, FIN behind it."""
    time: int
    """Wall-clock seconds modulo 2^16."""
    payload: bytes
    key_id: int = 0
    tag: bytes = bytes(TAG_SIZE)
    ecn: int = 0

    @property
    def key(self) -> FlowKey:
        return flow_key(self.client, self.client_port, self.node, self.service_port)


def parse_untrusted(segment: Segment) -> Handoff:
    """A handoff whose layout is right; tag and age are not verified."""
    if segment.flags != tcp.SYN or segment.urgent or len(segment.options) != _OPTIONS_SIZE:
        raise WireError("not_a_handoff")
    if not 0 < len(segment.payload) <= MAX_PAYLOAD:
        raise WireError("bad_handoff_payload")
    mss, scale, sack_permitted, stamps = _parse_negotiated(segment.options)
    kind, length, experiment, type_byte, flags_byte, time, tag = _EXPERIMENT.unpack_from(segment.options, 20)
    if (kind, length, experiment) != (tcp_options.EXPERIMENT, _EXPERIMENT.size, EXPERIMENT_ID):
        raise WireError("not_a_handoff")
    if type_byte != VERSION << 4 | FIRST_PAYLOAD or flags_byte & _RESERVED_FLAGS:
        raise WireError("unknown_handoff_version")
    promised_scale = flags_byte & _SCALE_MASK
    if promised_scale > tcp_options.MAX_WINDOW_SCALE:
        raise WireError("bad_handoff_options")
    return Handoff(
        client=segment.source,
        node=segment.destination,
        client_port=segment.source_port,
        service_port=segment.destination_port,
        vip_index=dscp.index_of(segment.tos),
        seq=segment.seq,
        ack=segment.ack,
        window=segment.window,
        mss=mss,
        window_scale=scale,
        sack_permitted=sack_permitted,
        timestamps=stamps,
        promised_scale=promised_scale,
        fin=bool(flags_byte & FLAG_FIN),
        time=time,
        payload=segment.payload,
        key_id=int(bool(flags_byte & FLAG_KEY_ID)),
        tag=tag,
        ecn=dscp.ecn_of(segment.tos),
    )


def emit(handoff: Handoff) -> Segment:
    """The segment that carries it; its checksum is left to be computed."""
    return Segment(
        source=handoff.client,
        destination=handoff.node,
        source_port=handoff.client_port,
        destination_port=handoff.service_port,
        seq=handoff.seq,
        ack=handoff.ack,
        flags=tcp.SYN,
        window=handoff.window,
        options=_emit_options(handoff),
        payload=handoff.payload,
        tos=dscp.with_index(handoff.ecn, handoff.vip_index),
    )


def signed_bytes(handoff: Handoff) -> bytes:
    """The 49 bytes that the tag covers.

    Flow key (12), VIP index (1), S - 1 (4), A - 1 (4), and the options up to the tag (28).
    """
    sequence = _SEQUENCE.pack(handoff.vip_index, handoff.seq, handoff.ack)
    return handoff.key + sequence + _emit_options(handoff)[:_SIGNED_OPTIONS]


def sign(handoff: Handoff, mac: Mac) -> Handoff:
    return handoff._replace(tag=mac(signed_bytes(handoff)))


def age(handoff: Handoff, wall_seconds: int) -> int:
    """Seconds since it was made, negative where its clock is ahead; -32768 to 32767."""
    half = _TIME_MODULUS // 2
    return (wall_seconds - handoff.time + half) % _TIME_MODULUS - half


def time_of(wall_seconds: int) -> int:
    return wall_seconds % _TIME_MODULUS


def _parse_negotiated(options: bytes) -> tuple[int, int | None, bool, Timestamps | None]:
    """MSS, window scale, SACK-permitted and timestamps, each exactly where it belongs."""
    kind, length, mss = _MSS.unpack_from(options, 0)
    sack, stamps, scale = options[4:6], options[6:16], options[16:20]
    if (kind, length) != (tcp_options.MSS, 4) or scale[:1] != NOP_BYTE:
        raise WireError("bad_handoff_options")
    if sack not in (NOP_BYTE * 2, bytes((tcp_options.SACK_PERMITTED, 2))):
        raise WireError("bad_handoff_options")
    timestamps = None
    if stamps != NOP_BYTE * 10:
        kind, length, value, echo = _TIMESTAMPS.unpack(stamps)
        if (kind, length) != (tcp_options.TIMESTAMPS, 10):
            raise WireError("bad_handoff_options")
        timestamps = Timestamps(value, echo)
    window_scale = None
    if scale != NOP_BYTE * 4:
        window_scale = scale[3]
        if scale[1:3] != bytes((tcp_options.WINDOW_SCALE, 3)) or window_scale > tcp_options.MAX_WINDOW_SCALE:
            raise WireError("bad_handoff_options")
    return mss, window_scale, sack != NOP_BYTE * 2, timestamps


def _emit_options(handoff: Handoff) -> bytes:
    stamps, scale = handoff.timestamps, handoff.window_scale
    flags = (FLAG_FIN if handoff.fin else 0) | (FLAG_KEY_ID if handoff.key_id else 0)
    return b"".join(
        (
            _MSS.pack(tcp_options.MSS, 4, handoff.mss),
            bytes((tcp_options.SACK_PERMITTED, 2)) if handoff.sack_permitted else NOP_BYTE * 2,
            _TIMESTAMPS.pack(tcp_options.TIMESTAMPS, 10, *stamps) if stamps else NOP_BYTE * 10,
            NOP_BYTE,
            bytes((tcp_options.WINDOW_SCALE, 3, scale)) if scale is not None else NOP_BYTE * 3,
            _EXPERIMENT.pack(
                tcp_options.EXPERIMENT,
                _EXPERIMENT.size,
                EXPERIMENT_ID,
                VERSION << 4 | FIRST_PAYLOAD,
                flags | handoff.promised_scale,
                handoff.time,
                handoff.tag,
            ),
        )
    )
