import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire import tcp
from common.wire.errors import WireError
from common.wire.tcp import TcpHeader
from tests.unit.wire.packets import built, described_packets, mutated, quickly

EXAMPLE = bytes.fromhex("c0000050 01020304 0a0b0c0d 80180102 beef0003 0101080a 11223344 55667788")
EXAMPLE_HEADER = TcpHeader(
    source_port=49152,
    destination_port=80,
    seq=0x01020304,
    ack=0x0A0B0C0D,
    flags=0x018,
    window=0x0102,
    checksum=0xBEEF,
    urgent=3,
    options=bytes.fromhex("0101080a 11223344 55667788"),
)


def test_a_header_is_read_field_by_field_and_written_as_it_was() -> None:
    assert tcp.parse_untrusted(EXAMPLE + b"payload") == EXAMPLE_HEADER
    assert tcp.emit(EXAMPLE_HEADER) == EXAMPLE
    assert EXAMPLE_HEADER.size == 32


def test_the_flags_are_the_bits_of_rfc_9293() -> None:
    names = (tcp.FIN, tcp.SYN, tcp.RST, tcp.PSH, tcp.ACK, tcp.URG, tcp.ECE, tcp.CWR)
    assert names == (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80)


def test_accurate_ecn_and_reserved_bits_survive() -> None:
    data = EXAMPLE[:12] + b"\x8f" + EXAMPLE[13:]
    header = tcp.parse_untrusted(data)
    assert header.flags == 0xF18
    assert tcp.emit(header) == data


def test_the_checksum_stands_where_it_is_said_to_stand() -> None:
    assert EXAMPLE[tcp.CHECKSUM_AT : tcp.CHECKSUM_AT + 2] == b"\xbe\xef"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (EXAMPLE[:19], "truncated"),
        (EXAMPLE[:31], "bad_data_offset"),
        (EXAMPLE[:12] + b"\x40" + EXAMPLE[13:], "bad_data_offset"),
        (EXAMPLE[:12] + b"\xf0" + EXAMPLE[13:], "bad_data_offset"),
    ],
)
def test_a_header_that_does_not_fit_its_packet_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        tcp.parse_untrusted(data)
    assert caught.value.reason == reason


def emits_the_same_bytes(data: bytes) -> None:
    try:
        header = tcp.parse_untrusted(data)
    except WireError:
        return
    assert tcp.emit(header) == data[: header.size]


@quickly
@given(st.binary(max_size=80))
def test_hostile_bytes_raise_wire_error_or_emit_the_same_bytes(data: bytes) -> None:
    emits_the_same_bytes(data)


@quickly
@given(mutated(described_packets.map(lambda described: built(described)[20:])))
def test_damaged_headers_raise_wire_error_or_emit_the_same_bytes(data: bytes) -> None:
    emits_the_same_bytes(data)
