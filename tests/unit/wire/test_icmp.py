import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP
from scapy.packet import Raw

from common.wire import icmp
from common.wire.errors import WireError
from tests.unit.wire.packets import (
    BACKEND,
    VIP,
    Described,
    built,
    described_packets,
    mutated,
    quickly,
    u16,
    u32,
    with_field,
    with_ip_checksum,
    word,
)

VIP_BYTES, BACKEND_BYTES = bytes([192, 168, 33, 10]), bytes([192, 168, 33, 30])
REPLY = Described(from_client=False, seq=0x01020304, ack=7, payload=b"HTTP/1.1 200 OK\r\n")


def message(quoted: bytes, kind: int = 3, code: int = 4, mtu: int = 1400) -> bytes:
    """An ICMP error as scapy makes it."""
    return bytes(ICMP(type=kind, code=code, nexthopmtu=mtu) / Raw(quoted))


def test_a_router_s_fragmentation_needed_is_read() -> None:
    error = icmp.parse_untrusted(message(built(REPLY)[:28]))
    assert (error.type, error.code) == (3, 4)
    assert error.rest == b"\x00\x00\x05\x78"
    assert error.quoted_key == bytes.fromhex("c0a8210a cb007107 0050 c000")
    assert error.quoted_seq == 0x01020304


@pytest.mark.parametrize("kind", [3, 11, 12])
def test_each_kind_of_error_is_read(kind: int) -> None:
    assert icmp.parse_untrusted(bytes([kind]) + message(built(REPLY))[1:]).type == kind


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (message(built(REPLY)[:27]), "truncated"),
        (message(built(REPLY), kind=8, code=0), "not_an_icmp_error"),
        (message(built(REPLY), kind=5, code=0), "not_an_icmp_error"),
        (message(b"\x46" + built(REPLY)[1:]), "icmp_quotes_no_tcp"),
        (message(b"\x65" + built(REPLY)[1:]), "icmp_quotes_no_tcp"),
        (message(built(REPLY)[:9] + b"\x11" + built(REPLY)[10:]), "icmp_quotes_no_tcp"),
        (message(with_field(built(REPLY), 6, 0x0001)), "icmp_quotes_no_tcp"),
    ],
)
def test_what_is_no_error_about_tcp_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        icmp.parse_untrusted(data)
    assert caught.value.reason == reason


@quickly
@given(described_packets, st.integers(28, 60), u16, u32, st.integers(0, 0xFFFE), st.booleans())
def test_a_requoted_error_is_the_one_that_the_unrewritten_packet_would_have_met(
    described: Described, cut: int, port: int, seq: int, checksum_error: int, quote_is_damaged: bool
) -> None:
    """Cut anywhere, wrong checksums staying wrong by as much; TCP's own in the quote is not touched."""
    sent = described._replace(from_client=False, server=VIP)
    unrewritten = sent._replace(server=BACKEND, server_port=port, seq=seq)
    quoted, expected_quote = built(sent), with_field(built(unrewritten), 36, word(built(sent), 36))
    if quote_is_damaged:  # its TTL changed on the way, its checksum did not
        quoted, expected_quote = (packet[:8] + b"\x00" + packet[9:] for packet in (quoted, expected_quote))
    received, expected = message(quoted[:cut]), message(expected_quote[:cut])
    received, expected = (
        with_field(data, 2, (word(data, 2) + checksum_error) % 0xFFFF) for data in (received, expected)
    )
    requoted = icmp.requote(icmp.parse_untrusted(received), source=BACKEND_BYTES, source_port=port, seq=seq)
    assert icmp.emit(requoted) == expected


def emits_the_same_bytes(data: bytes) -> None:
    try:
        error = icmp.parse_untrusted(data)
    except WireError:
        return
    assert icmp.emit(error) == data
    assert (len(error.quoted_key), error.quoted_seq >> 32) == (12, 0)


@quickly
@given(st.binary(max_size=80))
def test_hostile_bytes_raise_wire_error_or_emit_the_same_bytes(data: bytes) -> None:
    emits_the_same_bytes(data)


@quickly
@given(mutated(described_packets.map(lambda described: message(with_ip_checksum(built(described))))))
def test_damaged_errors_raise_wire_error_or_emit_the_same_bytes(data: bytes) -> None:
    emits_the_same_bytes(data)
