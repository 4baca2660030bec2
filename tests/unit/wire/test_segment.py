import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP

from common.wire import offload, segment
from common.wire.errors import WireError
from common.wire.offload import NO_OFFLOAD, Offload, Packet
from common.wire.segment import Segment
from tests.unit.wire.packets import (
    ACK,
    FIN,
    PSH,
    SYN,
    Described,
    addresses,
    built,
    described_packets,
    finished_by_the_card,
    ip_checksum_error,
    mutated,
    quickly,
    scapy_options,
    tcp_checksum,
    tcp_checksum_error,
    u16,
    u32,
    with_field,
    with_ip_checksum,
    with_partial_checksum,
    word,
)

CLIENT_BYTES, VIP_BYTES = bytes([203, 0, 113, 7]), bytes([192, 168, 33, 10])
EXAMPLE = Described(
    seq=0x01020304,
    ack=0x0A0B0C0D,
    flags=ACK | PSH,
    window=502,
    options=(("NOP", None), ("NOP", None), ("Timestamp", (1, 2))),
    payload=b"GET / HTTP/1.1\r\n",
    urgent=9,
    tos=0x2A,
    ttl=57,
    identification=0x1234,
)
PARTIAL = Offload(flags=offload.NEEDS_CHECKSUM, checksum_start=20, checksum_offset=16)
SUPERPACKET = PARTIAL._replace(gso_type=1, gso_size=1448, header_length=52)


def test_a_packet_is_read_field_by_field() -> None:
    packet = built(EXAMPLE)
    assert segment.parse_untrusted(Packet(packet)) == Segment(
        source=CLIENT_BYTES,
        destination=VIP_BYTES,
        source_port=49152,
        destination_port=80,
        seq=0x01020304,
        ack=0x0A0B0C0D,
        flags=0x18,
        window=502,
        options=bytes.fromhex("0101080a0000000100000002"),
        payload=b"GET / HTTP/1.1\r\n",
        urgent=9,
        tos=0x2A,
        ttl=57,
        identification=0x1234,
        fragment=0x4000,
        checksum=tcp_checksum(packet),
    )


def test_a_segment_of_our_own_has_ip_id_0_df_ttl_64_and_tos_0() -> None:
    ours = Segment(CLIENT_BYTES, VIP_BYTES, 49152, 80, seq=1, ack=2, flags=ACK, window=3, payload=b"odd")
    expected = built(Described(seq=1, ack=2, flags=ACK, window=3, payload=b"odd"))
    assert segment.emit(ours) == Packet(expected, NO_OFFLOAD)
    assert (expected[1], expected[4:9]) == (0, b"\x00\x00\x40\x00\x40")


@quickly
@given(described_packets)
def test_a_segment_without_a_checksum_gets_the_one_that_scapy_computes(described: Described) -> None:
    packet = built(described)
    parsed = segment.parse_untrusted(Packet(packet))
    assert segment.emit(parsed._replace(checksum=None)) == Packet(packet)


def test_bytes_behind_the_total_length_are_link_padding() -> None:
    packet = built(Described())
    assert segment.parse_untrusted(Packet(packet + bytes(6))) == segment.parse_untrusted(Packet(packet))


def test_the_length_counts_payload_syn_and_fin() -> None:
    plain = segment.parse_untrusted(Packet(built(EXAMPLE)))
    assert plain.length == 16
    assert plain._replace(flags=ACK | FIN).length == 17
    assert plain._replace(flags=SYN | FIN, payload=b"").length == 2


def test_a_flow_key_is_the_packet_s_bytes_12_to_24() -> None:
    packet = built(EXAMPLE)
    key = bytes.fromhex("cb007107 c0a8210a c000 0050")
    assert segment.parse_untrusted(Packet(packet)).key == key
    assert packet[segment.FLOW_KEY_AT : segment.FLOW_KEY_END] == key
    assert segment.key_ports(key) == (49152, 80)
    assert segment.reverse(key) == bytes.fromhex("c0a8210a cb007107 0050 c000")


def with_ip_options(packet: bytes) -> bytes:
    return with_ip_checksum(b"\x46" + packet[1:20] + b"\x94\x04\x00\x00" + packet[20:])


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP()), "not_tcp"),
        (with_ip_checksum(with_field(built(EXAMPLE), 6, 0x2000)), "fragment"),
        (with_ip_checksum(with_field(built(EXAMPLE), 6, 0x0001)), "fragment"),
        (with_ip_options(built(EXAMPLE)), "ip_options"),
        (with_field(built(EXAMPLE), 10, 0x1234), "bad_ip_checksum"),
        (with_ip_checksum(with_field(built(Described()), 2, 39)), "truncated"),
        (with_field(built(Described()), 32, 0x6010), "bad_data_offset"),
    ],
)
def test_what_is_no_whole_tcp_packet_is_refused_with_the_reason(packet: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        segment.parse_untrusted(Packet(packet))
    assert caught.value.reason == reason


def test_a_right_checksum_holds_and_a_wrong_one_does_not() -> None:
    packet = built(EXAMPLE)
    right = segment.parse_untrusted(Packet(packet))
    assert segment.checksum_holds(right)
    assert not segment.checksum_holds(right._replace(payload=b"GET / HTTP/1.0\r\n"))
    assert not segment.checksum_holds(right._replace(destination=CLIENT_BYTES))


def test_a_checksum_of_ffff_holds_where_0_would() -> None:
    # Linux writes 0xffff for 0 when it completes a checksum in software (CSUM_MANGLED_0).
    balanced = built(Described(urgent=tcp_checksum(built(Described()))))
    assert tcp_checksum(balanced) == 0
    packet = with_field(balanced, 36, 0xFFFF)
    assert segment.checksum_holds(segment.parse_untrusted(Packet(packet)))


def test_a_checksum_that_the_kernel_will_compute_holds() -> None:
    unfinished = Packet(with_partial_checksum(built(EXAMPLE)), PARTIAL)
    assert segment.checksum_holds(segment.parse_untrusted(unfinished))
    assert segment.checksum_holds(segment.parse_untrusted(unfinished)._replace(checksum=None))


def remade(received: Segment, described: Described) -> Packet:
    """The received segment given the header that scapy would give it, and the received one's checksum."""
    header = segment.parse_untrusted(Packet(built(described._replace(payload=b""))))
    made = header._replace(payload=received.payload, checksum=None)
    return segment.emit(segment.with_checksum_of(made, received))


@quickly
@given(described_packets, addresses, u16, u32, scapy_options, st.integers(0, 0xFFFE))
def test_a_remade_header_keeps_the_received_checksum_s_error(
    described: Described,
    server: str,
    port: int,
    ack: int,
    options: tuple[tuple[str | int, object], ...],
    error: int,
) -> None:
    packet = built(described)
    damaged = with_field(packet, 36, (word(packet, 36) + error) % 0xFFFF)
    changed = described._replace(server=server, server_port=port, ack=ack, options=options)
    made = remade(segment.parse_untrusted(Packet(damaged)), changed)
    assert tcp_checksum_error(made.data) == error
    assert with_field(made.data, 36, 0) == with_field(built(changed), 36, 0)
    assert made.offload == NO_OFFLOAD


@quickly
@given(described_packets, addresses, scapy_options)
def test_a_remade_header_leaves_an_unfinished_checksum_to_the_card(
    described: Described, server: str, options: tuple[tuple[str | int, object], ...]
) -> None:
    received = segment.parse_untrusted(Packet(with_partial_checksum(built(described)), PARTIAL))
    changed = described._replace(server=server, options=options)
    made = remade(received, changed)
    assert made.data == with_partial_checksum(built(changed))
    assert made.offload == PARTIAL._replace(header_length=len(built(changed._replace(payload=b""))))
    finished = finished_by_the_card(made.data, made.offload.checksum_start, made.offload.checksum_offset)
    assert finished == built(changed)


def test_an_unfinished_checksum_whose_pseudo_header_sums_to_zero_is_ffff() -> None:
    described = Described(client="255.229.0.0", server="0.0.0.0")
    received = segment.parse_untrusted(Packet(with_partial_checksum(built(described)), PARTIAL))
    made = remade(received, described._replace(seq=5))
    assert word(made.data, 36) == 0xFFFF
    assert finished_by_the_card(made.data) == built(described._replace(seq=5))


def test_a_superpacket_with_other_options_is_still_a_superpacket() -> None:
    described = EXAMPLE._replace(payload=bytes(range(256)) * 250)
    received = segment.parse_untrusted(Packet(with_partial_checksum(built(described)), SUPERPACKET))
    made = segment.emit(segment.with_checksum_of(received._replace(options=b""), received))
    assert made.data == with_partial_checksum(built(described._replace(options=())))
    assert made.offload == SUPERPACKET._replace(header_length=40)


def test_one_segment_made_of_a_superpacket_s_bytes_stays_one_segment() -> None:
    described = EXAMPLE._replace(payload=bytes(1000))
    small = SUPERPACKET._replace(gso_size=500)
    received = segment.parse_untrusted(Packet(with_partial_checksum(built(described)), small))
    assert remade(received, described).offload == PARTIAL._replace(header_length=52)


def test_a_segment_made_from_one_of_our_own_gets_a_computed_checksum() -> None:
    ours = Segment(CLIENT_BYTES, VIP_BYTES, 49152, 80, seq=1000, ack=2000, flags=ACK, window=502)
    made = segment.with_checksum_of(ours._replace(seq=1001), ours)
    assert segment.emit(made).data == built(Described(seq=1001))


def emits_the_same_bytes(data: bytes) -> None:
    try:
        parsed = segment.parse_untrusted(Packet(data))
    except WireError:
        return
    emitted = segment.emit(parsed).data
    assert emitted == data[: len(emitted)]
    assert len(emitted) == word(data, 2)
    assert ip_checksum_error(emitted) == 0


@quickly
@given(st.binary(max_size=80))
def test_hostile_bytes_raise_wire_error_or_emit_the_same_bytes(data: bytes) -> None:
    emits_the_same_bytes(data)


@quickly
@given(mutated(described_packets.map(built)), st.booleans())
def test_damaged_packets_raise_wire_error_or_emit_the_same_bytes(data: bytes, repaired: bool) -> None:
    emits_the_same_bytes(with_ip_checksum(data) if repaired else data)
