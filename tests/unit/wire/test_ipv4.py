import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, IPOption_Router_Alert

from common.wire import ipv4
from common.wire.errors import WireError
from common.wire.ipv4 import Ipv4Header
from tests.unit.wire.packets import built, described_packets, mutated, quickly

# The example that the literature likes: UDP from 192.168.0.1 to 192.168.0.199, checksum 0xb861.
EXAMPLE = bytes.fromhex("45000073 00004000 4011b861 c0a80001 c0a800c7")
EXAMPLE_HEADER = Ipv4Header(
    tos=0,
    total_length=115,
    identification=0,
    fragment=0x4000,
    ttl=64,
    protocol=17,
    checksum=0xB861,
    source=bytes([192, 168, 0, 1]),
    destination=bytes([192, 168, 0, 199]),
)


def test_a_header_is_read_field_by_field() -> None:
    assert ipv4.parse_untrusted(EXAMPLE + bytes(95)) == EXAMPLE_HEADER


def test_a_header_is_written_with_its_checksum_as_given_or_computed() -> None:
    assert ipv4.emit(EXAMPLE_HEADER) == EXAMPLE
    assert ipv4.emit(EXAMPLE_HEADER._replace(checksum=0x1234)) == EXAMPLE[:10] + b"\x12\x34" + EXAMPLE[12:]
    assert ipv4.emit_with_checksum(EXAMPLE_HEADER._replace(checksum=0x1234)) == EXAMPLE


def test_a_changed_bit_anywhere_in_the_header_is_seen_by_its_checksum() -> None:
    assert ipv4.checksum_holds(EXAMPLE + b"payload")
    assert not ipv4.checksum_holds(ipv4.emit(EXAMPLE_HEADER._replace(ttl=63)))
    assert not ipv4.checksum_holds(ipv4.emit(EXAMPLE_HEADER._replace(options=b"\x01\x01\x01\x00")))


def test_options_belong_to_the_header_and_to_its_checksum() -> None:
    made = bytes(IP(src="10.0.0.1", dst="10.0.0.2", id=7, proto=6, options=[IPOption_Router_Alert()]))
    header = ipv4.parse_untrusted(made)
    assert (header.options, header.size) == (b"\x94\x04\x00\x00", 24)
    assert ipv4.checksum_holds(made)
    assert ipv4.emit_with_checksum(header._replace(checksum=0)) == made


@pytest.mark.parametrize(
    ("fragment", "is_fragment"),
    [(0x0000, False), (0x4000, False), (0x8000, False), (0x2000, True), (0x0001, True), (0x5FFF, True)],
)
def test_more_fragments_or_an_offset_make_a_fragment_and_other_flags_do_not(
    fragment: int, is_fragment: bool
) -> None:
    assert EXAMPLE_HEADER._replace(fragment=fragment).is_fragment is is_fragment


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (EXAMPLE[:19], "truncated"),
        (EXAMPLE + bytes(94), "truncated"),
        (b"\x65" + EXAMPLE[1:] + bytes(95), "not_ipv4"),
        (b"\x44" + EXAMPLE[1:] + bytes(95), "not_ipv4"),
        (b"\x45\x00\x00\x13" + EXAMPLE[4:] + bytes(95), "truncated"),
        (b"\x46\x00\x00\x14" + EXAMPLE[4:] + bytes(95), "truncated"),
    ],
)
def test_a_header_that_does_not_fit_its_packet_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        ipv4.parse_untrusted(data)
    assert caught.value.reason == reason
    assert str(caught.value) == reason.replace("_", " ")


def emits_the_same_bytes(data: bytes) -> None:
    try:
        header = ipv4.parse_untrusted(data)
    except WireError:
        return
    assert ipv4.emit(header) == data[: header.size]
    assert header.size <= header.total_length <= len(data)


@quickly
@given(st.binary(max_size=80))
def test_hostile_bytes_raise_wire_error_or_emit_the_same_bytes(data: bytes) -> None:
    emits_the_same_bytes(data)


@quickly
@given(mutated(described_packets.map(built)))
def test_damaged_headers_raise_wire_error_or_emit_the_same_bytes(data: bytes) -> None:
    emits_the_same_bytes(data)
