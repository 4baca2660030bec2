from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.keyring import Keyring
from common.wire import channel, handoff
from common.wire.channel import (
    FlowAnswer,
    FlowQuestion,
    Key,
    Kind,
    Message,
    NodeFacts,
    Reason,
    Report,
    ServedVip,
)
from common.wire.errors import WireError
from tests.unit.wire import channel_messages as bytes_of
from tests.unit.wire.channel_messages import HANDOFF_KEY, NODE, NONCE, TIME, refusal, tagged, untagged
from tests.unit.wire.handoffs import EXAMPLE
from tests.unit.wire.packets import quickly, siphash, u16, u32

CLIENT = bytes([203, 0, 113, 7])
KEYS = Keyring((HANDOFF_KEY,)).channel_keys()
FACTS = NodeFacts(
    release="0.1.0",
    engine="ebpf",
    uptime=3600.0,
    bytes_to_clients=65536,
    vips=(
        ServedVip(1, bytes([192, 168, 33, 10]), 80, 12),
        ServedVip(7, bytes([192, 168, 33, 11]), 443, 0),
    ),
)
REPORT = Report(FACTS, tos=0x1C, milliseconds=500)
QUESTION = FlowQuestion(1, CLIENT, 49152)
ANSWER = FlowAnswer("established", 1.5, 0.25, bytes_of.DETAILS)
REPORT_BODY, QUESTION_BODY, FLOW_BODY = (
    bytes_of.REPORT_BODY + bytes_of.VIPS,
    bytes_of.QUESTION_BODY,
    bytes_of.FLOW_BODY,
)
KINDS = [
    pytest.param(Kind.ASK_REPORT, b"", id="ask_report"),
    pytest.param(Kind.REPORT, REPORT_BODY, id="report"),
    pytest.param(Kind.ASK_FLOW, QUESTION_BODY, id="ask_flow"),
    pytest.param(Kind.FLOW, FLOW_BODY, id="flow"),
]
BODIES = [
    pytest.param(channel.parse_report_untrusted, channel.emit_report, REPORT_BODY, REPORT, id="report"),
    pytest.param(
        channel.parse_flow_question_untrusted,
        channel.emit_flow_question,
        QUESTION_BODY,
        QUESTION,
        id="flow_question",
    ),
    pytest.param(channel.parse_flow_untrusted, channel.emit_flow, FLOW_BODY, ANSWER, id="flow"),
    pytest.param(
        channel.parse_flow_untrusted, channel.emit_flow, bytes(24), FlowAnswer("", 0, 0), id="unknown_flow"
    ),
]


def reason_of(parse: Callable[[bytes], object], data: bytes) -> str:
    with pytest.raises(WireError) as caught:
        parse(data)
    return caught.value.reason


@pytest.mark.parametrize(("kind", "body"), KINDS)
def test_a_datagram_has_the_bytes_of_the_document_and_a_right_tag(kind: Kind, body: bytes) -> None:
    made = channel.seal(kind, body, KEYS[0], time=TIME, nonce=NONCE, node=NODE)
    assert made == tagged(untagged(kind, body))
    parsed = channel.parse_untrusted(made)
    assert parsed == Message(1, kind, TIME, NONCE, NODE, untagged(kind, body)[20:])
    assert channel.key_of(made, KEYS) is KEYS[0]


@pytest.mark.parametrize("kind", [Kind.ASK_REPORT, Kind.ASK_FLOW])
def test_a_request_is_as_large_as_the_largest_answer(kind: Kind) -> None:
    assert len(channel.seal(kind, b"", KEYS[0], time=0, nonce=0, node=NODE)) == 1200
    vips = tuple(ServedVip(index, NODE, 80, 1 << 40) for index in range(1, 64))
    report = channel.emit_report(Report(FACTS._replace(vips=vips), 0, 999))
    flow = channel.emit_flow(ANSWER._replace(details=bytes(channel.MAX_DETAILS)))
    assert (
        len(channel.seal(Kind.REPORT, report, KEYS[0], time=0, nonce=0, node=NODE)) == 20 + 44 + 63 * 12 + 8
    )
    assert len(channel.seal(Kind.FLOW, flow, KEYS[0], time=0, nonce=0, node=NODE)) == 1200
    with pytest.raises(ValueError, match="do not fit"):
        channel.emit_flow(ANSWER._replace(details=bytes(channel.MAX_DETAILS + 1)))


@pytest.mark.parametrize(("parse", "emit", "body", "value"), BODIES)
def test_a_body_has_the_bytes_of_the_document(
    parse: Callable[[bytes], object], emit: Callable[[object], bytes], body: bytes, value: object
) -> None:
    assert emit(value) == body
    assert parse(body) == value


def test_values_beyond_their_fields_are_given_as_the_largest() -> None:
    vip = ServedVip(1, NODE, 80, 1 << 40)
    facts = FACTS._replace(vips=(vip,), uptime=1e12, bytes_to_clients=1 << 80, release="r" * 30)
    read = channel.parse_report_untrusted(channel.emit_report(Report(facts, 0, 0))).facts
    assert read.vips[0].flows == read.uptime == 0xFFFFFFFF
    assert read.bytes_to_clients == 0xFFFFFFFFFFFFFFFF
    assert read.release == "r" * 24
    flow = channel.parse_flow_untrusted(channel.emit_flow(FlowAnswer("x" * 20, 1e9, -1.0)))
    assert flow == FlowAnswer("x" * 16, 4294967.295, 0.0)


def test_an_engine_without_a_number_of_its_own_is_no_engine() -> None:
    made = channel.emit_report(Report(FACTS._replace(engine="dpdk"), 0, 0))
    assert channel.parse_report_untrusted(made).facts.engine == ""


@pytest.mark.parametrize("reason", list(Reason))
def test_a_refusal_has_the_bytes_of_the_document_and_no_tag(reason: Reason) -> None:
    made = channel.refuse(reason, time=TIME, nonce=NONCE, node=NODE)
    assert made == refusal(reason)
    assert len(made) == 24
    parsed = channel.parse_untrusted(made)
    assert parsed[:5] == (1, Kind.REFUSAL, TIME, NONCE, NODE)
    assert channel.parse_refusal_untrusted(parsed.body) is reason


def test_a_refusal_of_another_version_can_be_read_and_names_it() -> None:
    parsed = channel.parse_untrusted(refusal(3, version=2))
    assert (parsed.version, parsed.kind, parsed.nonce) == (2, Kind.REFUSAL, NONCE)


def test_of_another_version_the_nonce_can_be_told() -> None:
    other = untagged(bytes_of.ASK_REPORT, b"")
    with pytest.raises(channel.UnknownVersionError) as caught:
        channel.parse_untrusted(other[:2] + b"\x21" + other[3:50])
    assert (caught.value.nonce, caught.value.reason) == (NONCE, "unknown_channel_version")


def test_filler_is_as_long_as_it_is_told_and_has_no_tag() -> None:
    made = channel.fill(1472, time=bytes_of.TIME, nonce=NONCE, node=NODE)
    assert made == untagged(5, b"", flags=0).ljust(1472, b"\0")


GOOD = tagged(untagged(bytes_of.ASK_REPORT, b""))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_a_channel_message"),
        (GOOD[:23], "not_a_channel_message"),
        (b"\x4c\x34" + GOOD[2:], "not_a_channel_message"),
        (GOOD + b"\0", "not_a_channel_message"),
        (GOOD[:-1], "bad_channel_message"),
        (GOOD[:2] + b"\x10" + GOOD[3:], "bad_channel_message"),
        (GOOD[:2] + b"\x16" + GOOD[3:], "bad_channel_message"),
        (GOOD[:2] + b"\x15" + GOOD[3:], "channel_filler"),
        (GOOD[:2] + b"\x15" + GOOD[3:] + bytes(7000), "channel_filler"),
        (GOOD[:3] + b"\x81" + GOOD[4:], "bad_channel_message"),
        (untagged(bytes_of.FLOW, b"")[:27] + bytes(7), "bad_channel_message"),
    ],
)
def test_what_is_not_laid_out_as_a_datagram_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    assert reason_of(channel.parse_untrusted, data) == reason


@pytest.mark.parametrize(
    "body",
    [
        b"",
        REPORT_BODY[:43],
        REPORT_BODY[:-1],
        REPORT_BODY + bytes(12),
        REPORT_BODY[:2] + b"\x03" + REPORT_BODY[3:],
        REPORT_BODY[:4] + b"\x03\xe8" + REPORT_BODY[6:],
        REPORT_BODY[:20] + b"\n" + REPORT_BODY[21:],
        REPORT_BODY[:20] + b"\0a" + REPORT_BODY[22:],
        REPORT_BODY[:44] + b"\x00" + REPORT_BODY[45:],
        REPORT_BODY[:44] + b"\x07" + REPORT_BODY[45:],
        REPORT_BODY[:44] + b"\x08" + REPORT_BODY[45:],
        REPORT_BODY[:56] + b"\x40" + REPORT_BODY[57:],
    ],
)
def test_a_report_that_contradicts_itself_is_refused(body: bytes) -> None:
    assert reason_of(channel.parse_report_untrusted, body) == "bad_channel_message"


def test_other_bodies_that_make_no_sense_are_refused() -> None:
    for index in (0, 64, 255):
        assert (
            reason_of(channel.parse_flow_question_untrusted, bytes([index]) + QUESTION_BODY[1:])
            == "bad_channel_message"
        )
    assert reason_of(channel.parse_flow_question_untrusted, QUESTION_BODY[:7]) == "bad_channel_message"
    assert reason_of(channel.parse_flow_untrusted, FLOW_BODY[:23]) == "bad_channel_message"
    assert reason_of(channel.parse_flow_untrusted, b"\xff" + FLOW_BODY[1:]) == "bad_channel_message"
    for body in (b"\1\0\0", bytes(4), b"\4\0\0\0"):
        assert reason_of(channel.parse_refusal_untrusted, body) == "bad_channel_message"


@quickly
@given(st.integers(0, 1199), st.integers(1, 255))
def test_the_tag_covers_every_byte_of_a_datagram(at: int, change: int) -> None:
    damaged = bytearray(GOOD)
    damaged[at] ^= change
    assert channel.key_of(bytes(damaged), KEYS) is None


def test_no_tag_of_a_datagram_is_a_tag_of_a_handoff() -> None:
    signed = handoff.signed_bytes(EXAMPLE)
    assert handoff.sign(EXAMPLE, lambda message: siphash(HANDOFF_KEY, message)).tag == EXAMPLE.tag
    assert KEYS[0].mac(signed) != EXAMPLE.tag
    assert all(len(label) != len(signed) for label in channel.KEY_LABELS)


def test_the_key_that_made_a_tag_is_found_among_those_of_its_id() -> None:
    keys = [Key(key[-1] & 1, Keyring((key,)).channel_keys()[0].mac) for key in (bytes(16), HANDOFF_KEY)]
    previous = channel.seal(Kind.ASK_REPORT, b"", keys[1], time=TIME, nonce=NONCE, node=NODE)
    assert previous == GOOD
    assert channel.key_of(previous, keys) is keys[1]
    assert channel.key_of(previous, keys[:1]) is None
    wrongly_named = [keys[1]._replace(id=0)]
    assert channel.key_of(previous, wrongly_named) is None
    current = channel.seal(Kind.ASK_REPORT, b"", keys[0], time=TIME, nonce=NONCE, node=NODE)
    assert current == tagged(untagged(bytes_of.ASK_REPORT, b"", flags=0), bytes(16))


@pytest.mark.parametrize(
    ("sent", "read", "age"),
    [
        (TIME, TIME, 0),
        (TIME, TIME + 61, 61),
        (TIME, TIME - 61, -61),
        (0xFFFFFFFF, 1 << 32, 1),
        (5, (1 << 32) - 5, -10),
    ],
)
def test_the_age_is_signed_and_crosses_the_wrap(sent: int, read: int, age: int) -> None:
    assert channel.age(Message(1, Kind.REPORT, sent, NONCE, NODE, b""), read) == age


facts_values = st.builds(
    NodeFacts,
    release=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=24),
    engine=st.sampled_from(("", "raw", "ebpf")),
    uptime=u32.map(float),
    bytes_to_clients=st.integers(0, (1 << 64) - 1),
    vips=st.dictionaries(
        st.integers(1, 63), st.tuples(st.binary(min_size=4, max_size=4), u16, u32), max_size=63
    ).map(lambda vips: tuple(ServedVip(index, *vips[index]) for index in sorted(vips))),
)
reports = st.builds(Report, facts_values, st.integers(0, 255), st.integers(0, 999))


@quickly
@given(reports)
def test_a_report_is_read_back(report: Report) -> None:
    assert channel.parse_report_untrusted(channel.emit_report(report)) == report


def damaged(data: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """With some bytes changed, and cut or made longer."""
    changes = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=4)

    def apply(data: bytes, changes: list[tuple[int, int]], keep: int, more: bytes) -> bytes:
        made = bytearray(data)
        for at, value in changes:
            if at < len(made):
                made[at] = value
        return bytes(made[:keep]) + more

    return st.builds(apply, data, changes, st.sampled_from((24, 28, 40, 1300)), st.binary(max_size=3))


hostile = st.one_of(
    st.binary(max_size=64),
    st.binary(max_size=64).map(lambda rest: b"\x4c\x33" + rest),
    damaged(st.sampled_from((GOOD, tagged(untagged(4, FLOW_BODY)), refusal(1)))),
    damaged(reports.map(lambda report: tagged(untagged(2, channel.emit_report(report))))),
)
PARSERS = (
    channel.parse_report_untrusted,
    channel.parse_flow_question_untrusted,
    channel.parse_flow_untrusted,
    channel.parse_refusal_untrusted,
)


@quickly
@given(hostile)
def test_hostile_bytes_raise_wire_error_only(data: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(data)
        except WireError:
            pass
    try:
        message = channel.parse_untrusted(data)
    except WireError:
        return
    channel.key_of(data, KEYS)
    for parse in PARSERS:
        try:
            parse(message.body)
        except WireError:
            pass
