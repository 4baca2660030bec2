from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire import handoff, segment
from common.wire.errors import WireError
from common.wire.handoff import Handoff
from common.wire.offload import Packet
from common.wire.segment import Segment
from tests.unit.wire.handoffs import EXAMPLE, KEY, handoffs, scapy_packet
from tests.unit.wire.packets import mutated, quickly, siphash, u32, with_ip_checksum


def mac(message: bytes) -> bytes:
    return siphash(KEY, message)


def received(packet: bytes) -> Segment:
    return segment.parse_untrusted(Packet(packet))


EXAMPLE_SEGMENT = received(scapy_packet(EXAMPLE))


def test_the_mac_is_siphash_2_4_as_its_authors_write_it() -> None:
    # The last line of the example in the appendix of "SipHash: a fast short-input PRF".
    assert mac(bytes(range(15))) == 0xA129CA6149BE45E5.to_bytes(8, "little")


@quickly
@given(handoffs)
def test_a_handoff_is_the_packet_that_scapy_makes_and_is_read_back(made: Handoff) -> None:
    packet = scapy_packet(made)
    assert segment.emit(handoff.emit(made)).data == packet
    assert handoff.parse_untrusted(received(packet)) == made
    assert len(packet) == 20 + handoff.HEADER_SIZE + len(made.payload)


def test_the_payload_may_fill_a_packet_of_1500_bytes_and_no_more() -> None:
    largest = EXAMPLE._replace(payload=bytes(1424))
    assert len(scapy_packet(largest)) == 1500
    assert handoff.parse_untrusted(received(scapy_packet(largest))) == largest
    assert handoff.MAX_PAYLOAD == 1424
    with pytest.raises(WireError) as caught:
        handoff.parse_untrusted(received(scapy_packet(EXAMPLE._replace(payload=bytes(1425)))))
    assert caught.value.reason == "bad_handoff_payload"


def with_options(at: int, changed: str) -> Segment:
    """The example with bytes of its header replaced, counted from the header's start."""
    data = bytes.fromhex(changed)
    options = EXAMPLE_SEGMENT.options
    return EXAMPLE_SEGMENT._replace(options=options[: at - 20] + data + options[at - 20 + len(data) :])


@pytest.mark.parametrize(
    ("segment_", "reason"),
    [
        (EXAMPLE_SEGMENT._replace(flags=0x12), "not_a_handoff"),
        (EXAMPLE_SEGMENT._replace(flags=0x102), "not_a_handoff"),
        (EXAMPLE_SEGMENT._replace(flags=0x10), "not_a_handoff"),
        (EXAMPLE_SEGMENT._replace(urgent=1), "not_a_handoff"),
        (EXAMPLE_SEGMENT._replace(options=EXAMPLE_SEGMENT.options[:32]), "not_a_handoff"),
        (EXAMPLE_SEGMENT._replace(options=EXAMPLE_SEGMENT.options + bytes(4)), "not_a_handoff"),
        (EXAMPLE_SEGMENT._replace(options=b""), "not_a_handoff"),
        (EXAMPLE_SEGMENT._replace(payload=b""), "bad_handoff_payload"),
        (with_options(20, "0304"), "bad_handoff_options"),
        (with_options(21, "03"), "bad_handoff_options"),
        (with_options(24, "0401"), "bad_handoff_options"),
        (with_options(24, "0102"), "bad_handoff_options"),
        (with_options(26, "080b"), "bad_handoff_options"),
        (with_options(26, "0101"), "bad_handoff_options"),
        (with_options(36, "00"), "bad_handoff_options"),
        (with_options(37, "0302"), "bad_handoff_options"),
        (with_options(37, "0101"), "bad_handoff_options"),
        (with_options(39, "0f"), "bad_handoff_options"),
        (with_options(40, "fe"), "not_a_handoff"),
        (with_options(41, "0f"), "not_a_handoff"),
        (with_options(42, "4c34"), "not_a_handoff"),
        (with_options(44, "21"), "unknown_handoff_version"),
        (with_options(44, "12"), "unknown_handoff_version"),
        (with_options(45, "67"), "unknown_handoff_version"),
        (with_options(45, "57"), "unknown_handoff_version"),
        (with_options(45, "4f"), "bad_handoff_options"),
    ],
)
def test_what_is_not_laid_out_as_a_handoff_is_refused_with_the_reason(segment_: Segment, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        handoff.parse_untrusted(segment_)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "changed",
    [
        {"client": bytes([203, 0, 113, 8])},
        {"node": bytes([192, 168, 33, 21])},
        {"client_port": 49153},
        {"service_port": 81},
        {"vip_index": 2},
        {"seq": 0x01020305},
        {"ack": 0x8A9B0C1E},
        {"mss": 1461},
        {"window_scale": 8},
        {"window_scale": None},
        {"sack_permitted": False},
        {"timestamps": None},
        {"timestamps": EXAMPLE.timestamps._replace(value=0) if EXAMPLE.timestamps else None},
        {"timestamps": EXAMPLE.timestamps._replace(echo=0) if EXAMPLE.timestamps else None},
        {"promised_scale": 8},
        {"fin": True},
        {"time": 0x6B4A},
        {"key_id": 0},
    ],
    ids="-".join,
)
def test_the_tag_covers_what_identifies_or_shapes_the_flow(changed: dict[str, Any]) -> None:
    assert handoff.sign(EXAMPLE._replace(tag=bytes(8)), mac).tag == EXAMPLE.tag
    assert handoff.sign(EXAMPLE._replace(**changed), mac).tag != EXAMPLE.tag


@pytest.mark.parametrize("changed", [{"window": 1}, {"payload": b"GET /b"}, {"ecn": 3}, {"tag": bytes(8)}])
def test_the_tag_does_not_cover_what_belongs_to_the_one_segment(changed: dict[str, Any]) -> None:
    assert handoff.sign(EXAMPLE._replace(**changed), mac).tag == EXAMPLE.tag


@quickly
@given(handoffs)
def test_what_is_signed_is_49_bytes_of_the_packet_and_its_dscp(made: Handoff) -> None:
    packet = scapy_packet(made)
    signed = packet[12:24] + bytes([packet[1] >> 2]) + packet[24:32] + packet[40:68]
    assert handoff.signed_bytes(made) == signed
    assert len(signed) == 49
    assert handoff.sign(made, mac).tag == siphash(KEY, signed)


def test_the_key_is_the_flow_s_from_client_to_node() -> None:
    assert EXAMPLE.key == bytes.fromhex("cb007107 c0a82114 c000 0050")


@pytest.mark.parametrize(
    ("time", "wall_seconds", "age"),
    [
        (0x6B49, 0x6B49, 0),
        (0x6B49, 0x6B49 + 60, 60),
        (0x6B49, 0x6B49 - 60, -60),
        (0xFFFF, 0x5_0000, 1),
        (0x0000, 0x4_FFFF, -1),
        (0x0000, 0x7FFF, 0x7FFF),
        (0x0000, 0x8000, -0x8000),
    ],
)
def test_the_age_is_signed_and_crosses_the_wrap_of_the_sixteen_bits(
    time: int, wall_seconds: int, age: int
) -> None:
    assert handoff.age(EXAMPLE._replace(time=time), wall_seconds) == age


@quickly
@given(st.integers(0, 1 << 40), st.integers(-0x8000, 0x7FFF))
def test_the_age_is_the_wall_clock_s_distance_to_the_time_of_sending(sent: int, age: int) -> None:
    made = EXAMPLE._replace(time=handoff.time_of(sent))
    assert 0 <= made.time <= 0xFFFF
    assert handoff.age(made, sent + age) == age


def laid_out_like(found: Handoff, carrier: Segment) -> None:
    """Emitted again, in the same carrier, it has the same bytes."""
    emitted = handoff.emit(found)._replace(
        ttl=carrier.ttl,
        identification=carrier.identification,
        fragment=carrier.fragment,
        checksum=carrier.checksum,
        offload=carrier.offload,
    )
    assert emitted == carrier


@quickly
@given(
    st.builds(
        EXAMPLE_SEGMENT._replace,
        flags=st.sampled_from((0x02, 0x12)),
        seq=u32,
        options=st.one_of(
            st.binary(min_size=36, max_size=36),
            mutated(st.just(EXAMPLE_SEGMENT.options)),
            st.binary(max_size=40),
        ),
        payload=st.binary(max_size=3),
    )
)
def test_hostile_segments_raise_wire_error_or_emit_the_same_bytes(carrier: Segment) -> None:
    try:
        found = handoff.parse_untrusted(carrier)
    except WireError:
        return
    laid_out_like(found, carrier)


@quickly
@given(mutated(handoffs.map(scapy_packet)))
def test_damaged_handoffs_raise_wire_error_or_emit_the_same_bytes(packet: bytes) -> None:
    try:
        carrier = received(with_ip_checksum(packet))
        found = handoff.parse_untrusted(carrier)
    except WireError:
        return
    laid_out_like(found, carrier)
