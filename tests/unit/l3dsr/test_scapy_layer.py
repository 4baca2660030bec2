"""The scapy layers against the documents' bytes, and against `common.wire` each way."""

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import IP, TCP, UDP

from common.wire import channel, handoff, segment
from common.wire.channel import FlowAnswer, FlowQuestion, Key, Kind, NodeFacts, Reason, ServedVip
from common.wire.handoff import Handoff
from common.wire.offload import Packet
from l3dsr import scapy_layer
from l3dsr.scapy_layer import Channel, HandoffOption
from tests.unit.wire.handoffs import handoffs
from tests.unit.wire.packets import quickly, siphash, u16, u32
from tests.unit.wire.test_handoff_document import hex_block

KEY = Key(1, lambda message: siphash(bytes(range(16)), message))
NODE = bytes([192, 168, 33, 20])


def made_by_scapy(message: Handoff) -> bytes:
    option = HandoffOption(
        flags=("F" if message.fin else "") + ("K" if message.key_id else ""),
        promised_scale=message.promised_scale,
        seconds=message.time,
        tag=message.tag,
    )
    packet = scapy_layer.handoff(
        option,
        message.payload,
        client=str(IPv4Address(message.client)),
        client_port=message.client_port,
        node=str(IPv4Address(message.node)),
        service_port=message.service_port,
        vip_index=message.vip_index,
        seq=message.seq,
        ack=message.ack,
        mss=message.mss,
        window=message.window,
        sack_permitted=message.sack_permitted,
        timestamps=message.timestamps,
        window_scale=message.window_scale,
        ecn=message.ecn,
    )
    return bytes(raw(packet))


def test_the_document_s_example_is_read() -> None:
    option = scapy_layer.handoff_option(IP(hex_block("packet")))
    assert option is not None
    assert (option.exid, option.version, option.type) == (0x4C33, 1, 1)
    assert (str(option.flags), option.promised_scale, option.seconds) == ("K", 7, 27465)
    assert option.tag == bytes.fromhex("d9526759b06c531b")
    assert bytes(option) == bytes.fromhex("4c33 11 47 6b49 d9526759b06c531b")


def test_the_document_s_example_is_built() -> None:
    option = HandoffOption(flags="K", promised_scale=7, seconds=27465, tag=bytes.fromhex("d9526759b06c531b"))
    packet = scapy_layer.handoff(
        option,
        b"GET /a HTTP/1.1\r\nHost: example.com\r\n\r\n",
        client="203.0.113.7",
        client_port=49152,
        node="192.168.33.20",
        service_port=80,
        vip_index=1,
        seq=0x01020304,
        ack=0x8A9B0C1D,
        mss=1460,
        window=64240,
        timestamps=(0x11223344, 0x55667788),
        window_scale=7,
    )
    assert bytes(raw(packet)) == hex_block("packet")


@quickly
@given(handoffs)
def test_what_scapy_builds_the_daemons_read(message: Handoff) -> None:
    assert handoff.parse_untrusted(segment.parse_untrusted(Packet(made_by_scapy(message)))) == message


@quickly
@given(handoffs)
def test_what_the_daemons_emit_scapy_reads(message: Handoff) -> None:
    packet = IP(segment.emit(handoff.emit(message)).data)
    option = scapy_layer.handoff_option(packet)
    assert option is not None
    assert (message.fin, bool(message.key_id)) == (option.flags.F, option.flags.K)
    assert (option.promised_scale, option.seconds, option.tag) == (
        *message[12:13],
        *message[14:15],
        message.tag,
    )
    assert (packet.tos, packet[TCP].seq, packet[TCP].ack) == (
        *(message.vip_index << 2 | message.ecn, message.seq, message.ack),
    )


def test_other_packets_have_no_handoff_option() -> None:
    assert scapy_layer.handoff_option(IP() / TCP(flags="S", options=[(253, b"\x12\x34" + bytes(12))])) is None
    assert scapy_layer.handoff_option(IP() / UDP()) is None


def datagram(kind: Kind, body: bytes) -> bytes:
    return channel.seal(kind, body, KEY, time=1_700_000_000, nonce=0x1122334455667788, node=NODE)


def built_again(data: bytes) -> bytes:
    """What scapy makes of the fields that it has read, no bytes of before kept."""
    message = UDP(raw(UDP(sport=19507, dport=4000) / data))[Channel]
    message.raw_packet_cache = None
    if message.body is not None:
        message.body.raw_packet_cache = None
    return bytes(raw(message))


@quickly
@given(st.lists(st.integers(1, 63), unique=True, max_size=5).map(sorted), u32, u32, u16)
def test_reports_of_the_channel_are_read_and_built(
    indices: list[int], flows: int, delivered: int, port: int
) -> None:
    vips = tuple(ServedVip(index, NODE, port, flows) for index in indices)
    facts = NodeFacts("0.2.0", "ebpf", 77.0, delivered, vips)
    data = datagram(Kind.REPORT, channel.emit_report(channel.Report(facts, 0x1C, 123)))
    message = Channel(data)
    body = message.body
    assert (message.type, message.key_id, message.seconds, message.nonce) == (
        *(2, 1, 1_700_000_000, 0x1122334455667788),
    )
    assert (message.node, message.tag) == ("192.168.33.20", data[-8:])
    assert (body.tos, body.engine) == (0x1C, 2)
    assert (body.bytes_to_clients, body.release.rstrip(b"\0")) == (delivered, b"0.2.0")
    assert [(vip.vip_index, vip.vip_port, vip.vip, vip.flows) for vip in body.vips] == [
        (index, port, "192.168.33.20", flows) for index in indices
    ]
    assert built_again(data) == data


def test_questions_and_answers_about_flows_are_read_and_built() -> None:
    question = channel.emit_flow_question(FlowQuestion(7, bytes([203, 0, 113, 7]), 49152))
    asked = Channel(datagram(Kind.ASK_FLOW, question)).body
    assert (asked.vip_index, asked.client, asked.client_port) == (7, "203.0.113.7", 49152)
    answer = channel.emit_flow(FlowAnswer("spliced", 1.5, 0.25, b'{"seq_delta":5}'))
    told = Channel(datagram(Kind.FLOW, answer)).body
    assert (told.state.rstrip(b"\0"), told.age, told.idle, told.details) == (
        b"spliced",
        1500,
        250,
        b'{"seq_delta":5}',
    )
    for kind, body in ((Kind.ASK_FLOW, question), (Kind.FLOW, answer), (Kind.ASK_REPORT, b"")):
        assert built_again(datagram(kind, body)) == datagram(kind, body)


def test_a_refusal_has_no_tag() -> None:
    data = channel.refuse(Reason.TOO_OLD, time=5, nonce=6, node=NODE)
    message = Channel(data)
    assert (message.type, message.body.reason, message.tag) == (15, 2, None)
    assert built_again(data) == data


def test_a_filler_has_no_tag() -> None:
    data = channel.fill(1472, time=5, nonce=6, node=NODE)
    message = Channel(data)
    assert (message.type, message.nonce, message.tag, bytes(message.body)) == (5, 6, None, bytes(1472 - 20))
    assert built_again(data) == data
