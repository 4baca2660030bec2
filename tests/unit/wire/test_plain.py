import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire import segment, tcp
from common.wire.errors import WireError
from common.wire.offload import Packet
from common.wire.plain import payload_size
from tests.unit.wire.packets import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    Described,
    built,
    described_packets,
    mutated,
    quickly,
    with_field,
    with_ip_checksum,
)

STAMPS = (("NOP", None), ("NOP", None), ("Timestamp", (1, 2)))


def look(packet: bytes, at: int = 0) -> int | None:
    """As the receive buffer holds it: something before it, and remains of an older packet behind it."""
    return payload_size(bytes([0x99] * at) + packet + bytes([0xFF] * 60), at, len(packet))


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | 0x1E0])
@pytest.mark.parametrize("size", [0, 1, 1448])
def test_a_plain_segment_tells_the_size_of_its_payload(flags: int, size: int) -> None:
    packet = built(Described(flags=flags, options=STAMPS, payload=bytes(size)))
    assert look(packet) == size
    assert look(packet, at=24) == size


def test_link_padding_is_no_payload() -> None:
    assert look(built(Described()) + bytes(6)) == 0


@pytest.mark.parametrize("flags", [0, PSH, ACK | SYN, ACK | FIN, ACK | RST, SYN, RST])
def test_a_segment_without_ack_or_with_syn_fin_or_rst_is_not_plain(flags: int) -> None:
    assert look(built(Described(flags=flags))) is None


@pytest.mark.parametrize(
    "packet",
    [
        b"\x46" + built(Described(options=STAMPS))[1:],
        b"\x65" + built(Described())[1:],
        with_field(built(Described()), 6, 0x2000),
        with_field(built(Described()), 6, 0x0001),
        built(Described())[:9] + b"\x11" + built(Described())[10:],
        with_field(built(Described()), 2, 41),
        with_field(built(Described()), 2, 39),
        with_field(built(Described()), 32, 0x6010),
        with_field(built(Described()), 32, 0x4010),
    ],
)
def test_what_the_headers_do_not_fit_is_not_plain(packet: bytes) -> None:
    assert look(packet) is None


@quickly
@given(st.one_of(described_packets.map(built), mutated(described_packets.map(built))))
def test_plain_means_what_parsing_the_segment_means(packet: bytes) -> None:
    packet = with_ip_checksum(packet)
    try:
        parsed = segment.parse_untrusted(Packet(packet))
    except WireError:
        expected = None
    else:
        is_plain = parsed.flags & (tcp.ACK | tcp.SYN | tcp.FIN | tcp.RST) == tcp.ACK
        expected = len(parsed.payload) if is_plain else None
    assert look(packet) == expected
