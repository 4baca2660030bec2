"""What is expected here is built by scapy from the changed fields, both checksums computed anew."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire import offload, rewrite
from common.wire.offload import Offload, Packet
from common.wire.rewrite import Rewrite, Splice
from tests.unit.wire.packets import (
    ACK,
    BACKEND,
    FIN,
    NODE,
    PSH,
    RST,
    VIP,
    Described,
    ScapyOption,
    built,
    described_packets,
    finished_by_the_card,
    ip_checksum_error,
    quickly,
    tcp_checksum_error,
    u16,
    u32,
    with_field,
    with_partial_checksum,
    word,
)

VIP_END, NODE_END, BACKEND_END = (
    (bytes([192, 168, 33, last]), port) for last, port in ((10, 80), (20, 80), (30, 8080))
)
PARTIAL = Offload(flags=offload.NEEDS_CHECKSUM, checksum_start=20, checksum_offset=16)
LINUX_OPTIONS: tuple[ScapyOption, ...] = (("NOP", None), ("NOP", None), ("Timestamp", (5000, 9000)))
BLOCKS = (0xFFFFFFF0, 0x10, 0x20, 0x30)

REQUEST = Described(server=VIP, flags=ACK | PSH, options=LINUX_OPTIONS, payload=b"GET /", tos=0xB9, ttl=57)
REPLY = Described(
    server=BACKEND, server_port=8080, from_client=False, options=LINUX_OPTIONS, payload=b"HTTP/1", ttl=63
)


def add(number: int, delta: int) -> int:
    return (number + delta) % 2**32


def shifted(option: ScapyOption, *, edges: int = 0, value: int = 0, echo: int = 0) -> ScapyOption:
    match option:
        case ("Timestamp", (int(own), int(echoed))):
            return ("Timestamp", (add(own, value), add(echoed, echo)))
        case ("SAck", tuple(numbers)):
            return ("SAck", tuple(add(number, edges) for number in numbers))
    return option


def towards_node(described: Described, index: int) -> Described:
    return described._replace(server=NODE, server_port=80, tos=index * 4 + described.tos % 4)


def towards_backend(described: Described, ack: int, echo: int) -> Described:
    options = tuple(shifted(option, edges=ack, echo=echo) for option in described.options)
    return described._replace(
        server=BACKEND,
        server_port=8080,
        tos=described.tos % 4,
        ack=add(described.ack, ack) if described.flags & ACK else described.ack,
        options=options,
    )


def towards_client(described: Described, seq: int, value: int, window: int) -> Described:
    return described._replace(
        server=VIP,
        server_port=80,
        tos=described.tos % 4,
        seq=add(described.seq, seq),
        window=min(int(described.window * 2.0**window), 0xFFFF),
        options=tuple(shifted(option, value=value) for option in described.options),
    )


def to_node(index: int) -> Rewrite:
    return Rewrite(rewrite.to_destination(VIP_END, NODE_END, index=index))


def to_backend(ack_delta: int, echo_delta: int) -> Rewrite:
    splice = Splice(-ack_delta % 2**32, -echo_delta % 2**32, 0, 0)
    return Rewrite(rewrite.to_destination(NODE_END, BACKEND_END), splice)


def to_client(seq_delta: int = 0, value_delta: int = 0, window_shift: int = 0) -> Rewrite:
    splice = Splice(seq_delta % 2**32, value_delta % 2**32, window_shift, 0)
    return Rewrite(rewrite.to_source(BACKEND_END, VIP_END), splice)


def check(plan: Rewrite, before: Described, after: Described) -> None:
    assert rewrite.applied(plan, Packet(built(before))) == Packet(built(after))


# Balancer: client to node


@pytest.mark.parametrize("ecn", [0b00, 0b01, 0b10, 0b11])
@pytest.mark.parametrize("index", [1, 2, 63])
def test_the_balancer_replaces_destination_and_dscp_and_keeps_ecn(index: int, ecn: int) -> None:
    request = REQUEST._replace(tos=0b101010_00 | ecn)
    check(
        to_node(index),
        request,
        request._replace(server=NODE, tos=index << 2 | ecn),
    )


@quickly
@given(described_packets, st.integers(1, 63))
def test_the_balancer_changes_nothing_else_of_any_packet(described: Described, index: int) -> None:
    before = described._replace(from_client=True, server=VIP, server_port=80)
    check(to_node(index), before, towards_node(before, index))


# Packetbridge: client to backend


def test_the_node_shifts_ack_and_echo_and_clears_the_dscp() -> None:
    check(
        to_backend(ack_delta=-500, echo_delta=-8000),
        REQUEST._replace(server=NODE, tos=0b000001_11),
        REQUEST._replace(
            server=BACKEND,
            server_port=8080,
            tos=0b11,
            ack=1500,
            options=(("NOP", None), ("NOP", None), ("Timestamp", (5000, 1000))),
        ),
    )


@pytest.mark.parametrize(
    "options",
    [
        [*LINUX_OPTIONS, ("NOP", None), ("NOP", None), ("SAck", BLOCKS)],
        [("SAck", BLOCKS), *LINUX_OPTIONS],
        [("NOP", None), ("SAck", BLOCKS), ("Timestamp", (5000, 9000))],
        [("Timestamp", (5000, 9000)), ("NOP", None), ("SAck", (*BLOCKS, 0x40, 0x50))],
        [("NOP", None), ("Timestamp", (5000, 9000)), ("NOP", None)],
        [("WScale", 7), ("Timestamp", (5000, 9000)), ("SAck", BLOCKS)],
        [(30, b"\x00"), ("SAck", BLOCKS), ("NOP", None), ("NOP", None), ("Timestamp", (5000, 9000))],
    ],
)
def test_sack_blocks_move_with_the_ack_at_even_and_odd_places(options: list[ScapyOption]) -> None:
    before = REQUEST._replace(server=NODE, options=tuple(options))
    check(
        to_backend(ack_delta=0x89ABCDEF, echo_delta=0x12345679),
        before,
        towards_backend(before, 0x89ABCDEF, 0x12345679),
    )


@quickly
@given(described_packets, u32, u32)
def test_any_packet_to_the_backend_is_the_one_that_scapy_builds(
    described: Described, ack: int, echo: int
) -> None:
    before = described._replace(from_client=True, server=NODE, server_port=80, flags=described.flags | ACK)
    plan = to_backend(ack_delta=ack, echo_delta=echo)
    check(plan, before, towards_backend(before, ack, echo))


@pytest.mark.parametrize("flags", [RST, FIN, 0])
def test_a_segment_without_ack_keeps_its_ack_number(flags: int) -> None:
    before = REQUEST._replace(server=NODE, flags=flags, ack=0, options=(), payload=b"")
    check(
        to_backend(ack_delta=77, echo_delta=5),
        before,
        before._replace(server=BACKEND, server_port=8080, tos=REQUEST.tos % 4),
    )


# Packetbridge: backend to client


def test_the_node_shifts_seq_value_and_window_of_a_reply() -> None:
    check(
        to_client(seq_delta=40_000, value_delta=17, window_shift=2),
        REPLY._replace(window=502),
        REPLY._replace(
            server=VIP,
            server_port=80,
            seq=41_000,
            window=2008,
            options=(("NOP", None), ("NOP", None), ("Timestamp", (5017, 9000))),
        ),
    )


@pytest.mark.parametrize(
    ("window", "shift", "expected"),
    [
        (0, 7, 0),
        (1, 14, 0x4000),
        (0x7FFF, 1, 0xFFFE),
        (0x8000, 1, 0xFFFF),
        (0xFFFF, 14, 0xFFFF),
        (0xFFFF, -3, 0x1FFF),
        (7, -3, 0),
        (502, 0, 502),
    ],
)
def test_a_window_is_rescaled_rounded_down_and_clamped(window: int, shift: int, expected: int) -> None:
    check(
        to_client(window_shift=shift),
        REPLY._replace(window=window),
        REPLY._replace(server=VIP, server_port=80, window=expected),
    )


@quickly
@given(described_packets, u32, u32, st.integers(-14, 14))
def test_any_packet_to_the_client_is_the_one_that_scapy_builds(
    described: Described, seq: int, value: int, window: int
) -> None:
    before = described._replace(from_client=False, server=BACKEND, server_port=8080)
    plan = to_client(seq_delta=seq, value_delta=value, window_shift=window)
    check(plan, before, towards_client(before, seq, value, window))


def test_sack_blocks_of_the_backend_speak_of_the_client_s_numbers_and_stay() -> None:
    before = REPLY._replace(options=(*LINUX_OPTIONS, ("NOP", None), ("NOP", None), ("SAck", BLOCKS)))
    plan = to_client(seq_delta=99)
    check(plan, before, before._replace(server=VIP, server_port=80, seq=1099))


# Both ways


@quickly
@given(described_packets, u32, u32, st.integers(-14, 14), st.integers(-14, 14))
def test_one_splice_serves_both_directions(
    described: Described, seq: int, value: int, server_shift: int, client_shift: int
) -> None:
    splice = Splice(seq, value, server_shift, client_shift)
    request = described._replace(from_client=True, server=NODE, server_port=80, flags=described.flags | ACK)
    rescaled = min(int(request.window * 2.0**client_shift), 0xFFFF)
    check(
        Rewrite(rewrite.to_destination(NODE_END, BACKEND_END), splice),
        request,
        towards_backend(request, -seq, -value)._replace(window=rescaled),
    )
    reply = described._replace(from_client=False, server=BACKEND, server_port=8080)
    check(
        Rewrite(rewrite.to_source(BACKEND_END, VIP_END), splice),
        reply,
        towards_client(reply, seq, value, server_shift),
    )


@pytest.mark.parametrize("delta", [1, -1, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("number", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_every_number_wraps_around_at_two_to_the_32(number: int, delta: int) -> None:
    stamps: ScapyOption = ("Timestamp", (number, number))
    before = REQUEST._replace(server=NODE, ack=number, options=(stamps, ("SAck", (number, number))))
    plan = to_backend(ack_delta=delta, echo_delta=delta)
    check(plan, before, towards_backend(before, delta, delta))
    reply = REPLY._replace(seq=number, options=(("NOP", None), stamps))
    plan = to_client(seq_delta=delta, value_delta=delta)
    check(plan, reply, towards_client(reply, delta, delta, 0))


@quickly
@given(described_packets, u32, u32, st.integers(0, 0xFFFE), st.integers(0, 0xFFFE))
def test_wrong_checksums_stay_wrong_by_the_same_amount(
    described: Described, ack: int, echo: int, ip_error: int, tcp_error: int
) -> None:
    before = built(described._replace(from_client=True, server=NODE, server_port=80))
    damaged = with_field(before, 10, (word(before, 10) + ip_error) % 0xFFFF)
    damaged = with_field(damaged, 36, (word(before, 36) + tcp_error) % 0xFFFF)
    plan = to_backend(ack_delta=ack, echo_delta=echo)
    after = rewrite.applied(plan, Packet(damaged)).data
    assert (ip_checksum_error(after), tcp_checksum_error(after)) == (ip_error, tcp_error)


@pytest.mark.parametrize(
    ("area", "expected"),
    [
        ("01010101 080a 00000005 0000", None),  # timestamps cut off by the header's end
        ("0101 0808 00000005 0000 0000", None),  # timestamps too short
        ("0101 080c 00000005 00000009 0000", None),  # timestamps too long
        ("0101 050c 00000005 00000009 0000", None),  # one SACK block and a piece of one
        ("0101 0506 00000005", None),  # half a SACK block
        ("0800 00000005 00000009 0101", None),  # length zero
        ("0801 00000005 00000009 0101", None),  # length one
        ("010101 08", None),  # no length
        ("0002 080a 00000005 00000009", None),  # timestamps behind the end
        ("080a 00000005 00000009 1e00 00000000", "080a 00000005 0000000c 1e00 00000000"),  # before damage
    ],
)
def test_malformed_options_are_left_as_they_are(area: str, expected: str | None) -> None:
    before = REQUEST._replace(server=NODE, options=(), raw_options=padded(area))
    check(
        to_backend(ack_delta=7, echo_delta=3),
        before,
        towards_backend(before, 7, 3)._replace(raw_options=padded(expected or area)),
    )


def padded(area: str) -> bytes:
    data = bytes.fromhex(area)
    return data + bytes(-len(data) % 4)


PLANS: list[tuple[Rewrite, Described, Callable[[Described], Described]]] = [
    (to_node(1), REQUEST, lambda before: towards_node(before, 1)),
    (
        to_backend(ack_delta=0xFEDCBA98, echo_delta=0x76543210),
        REQUEST._replace(server=NODE),
        lambda before: towards_backend(before, 0xFEDCBA98, 0x76543210),
    ),
    (
        to_client(seq_delta=0x12345678, value_delta=-9, window_shift=7),
        REPLY,
        lambda before: towards_client(before, 0x12345678, -9, 7),
    ),
]


@pytest.mark.parametrize(("plan", "described", "change"), PLANS)
@pytest.mark.parametrize("size", [0, 1, 1448, 65535 - 20 - 32])
def test_an_unfinished_checksum_is_right_once_the_card_has_finished_it(
    plan: Rewrite, described: Described, change: Callable[[Described], Described], size: int
) -> None:
    before = described._replace(payload=(bytes(range(251)) * 262)[:size])
    superpacket = PARTIAL._replace(gso_type=1, gso_size=1448, header_length=52)
    after = rewrite.applied(plan, Packet(with_partial_checksum(built(before)), superpacket))
    assert after == Packet(with_partial_checksum(built(change(before))), superpacket)
    assert finished_by_the_card(after.data) == built(change(before))


@quickly
@given(st.sampled_from(PLANS), described_packets)
def test_any_unfinished_checksum_stays_the_pseudo_header_s_sum(
    plan: tuple[Rewrite, Described, Callable[[Described], Described]], described: Described
) -> None:
    ends, change = plan[1], plan[2]
    before = described._replace(
        from_client=ends.from_client,
        server=ends.server,
        server_port=ends.server_port,
        flags=described.flags | ACK,
    )
    after = rewrite.applied(plan[0], Packet(with_partial_checksum(built(before)), PARTIAL))
    assert after.data == with_partial_checksum(built(change(before)))


@quickly
@given(st.binary(min_size=1, max_size=40), st.binary(max_size=40), u16)
def test_only_the_packet_s_own_bytes_in_the_buffer_change(before: bytes, behind: bytes, window: int) -> None:
    described = REPLY._replace(window=window)
    plan = to_client(seq_delta=5, window_shift=1)
    buffer = bytearray(before + bytes(offload.SIZE) + built(described) + behind)
    rewrite.apply(plan, buffer, len(before) + offload.SIZE)
    assert buffer == before + bytes(offload.SIZE) + built(towards_client(described, 5, 0, 1)) + behind


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("error", [0, 0x1234])
def test_an_echo_is_replaced_wherever_it_stands_and_the_checksum_stays_exactly_as_wrong(
    padding: int, error: int
) -> None:
    def made(echo: int) -> bytes:
        options: tuple[ScapyOption, ...] = (*[("NOP", None)] * padding, ("Timestamp", (7, echo)))
        return built(Described(options=options, payload=b"odd"))

    before, after = made(0xFFFF0001), made(5)
    damaged = with_field(before, 36, (word(before, 36) + error) % 0xFFFF)
    for changed in (rewrite.with_echo(Packet(damaged), 5), rewrite.with_raised_echo(Packet(damaged), 5)):
        assert with_field(changed.data, 36, 0) == with_field(after, 36, 0)
        assert tcp_checksum_error(changed.data) == error
    later = Packet(after)
    assert rewrite.with_raised_echo(later, 0xFFFF0001) is later


def test_an_echo_is_replaced_under_a_checksum_that_is_still_to_be_computed() -> None:
    options: tuple[ScapyOption, ...] = (("Timestamp", (7, 1)),)
    partial = Packet(with_partial_checksum(built(Described(options=options))), PARTIAL)
    made = rewrite.with_echo(partial, 9)
    assert made.offload == PARTIAL
    assert finished_by_the_card(made.data) == built(Described(options=(("Timestamp", (7, 9)),)))


def test_a_packet_without_timestamps_has_no_echo_to_replace() -> None:
    packet = Packet(built(Described(options=(("NOP", None),))))
    assert rewrite.with_echo(packet, 5) is packet
    assert rewrite.with_raised_echo(packet, 5) is packet
