import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP

from common.wire import tcp_options
from common.wire.errors import WireError
from common.wire.tcp_options import Option, SynOptions, Timestamps
from tests.unit.wire.packets import ScapyOption, mutated, quickly, scapy_options, u16, u32

LINUX_SYN = bytes.fromhex("020405b4 0402 080a 11223344 00000000 01 030307")


def area_of(options: list[ScapyOption]) -> bytes:
    """The option area that scapy makes."""
    return bytes(TCP(options=options))[20:]


def said_by(area: bytes) -> SynOptions:
    return tcp_options.syn_options(tcp_options.parse_untrusted(area))


def test_a_linux_syn_s_options_are_read() -> None:
    assert said_by(LINUX_SYN) == SynOptions(
        mss=1460, window_scale=7, sack_permitted=True, timestamps=Timestamps(0x11223344, 0)
    )


def test_a_linux_syn_s_options_are_written_as_linux_orders_them() -> None:
    said = SynOptions(mss=1460, window_scale=7, sack_permitted=True, timestamps=Timestamps(0x11223344, 0))
    assert tcp_options.emit_syn(said) == LINUX_SYN


@pytest.mark.parametrize(
    ("said", "area"),
    [
        (SynOptions(), ""),
        (SynOptions(mss=536), "02040218"),
        (SynOptions(mss=1460, sack_permitted=True), "020405b4 01010402"),
        (SynOptions(mss=1460, window_scale=0), "020405b4 01030300"),
        (SynOptions(mss=1460, timestamps=Timestamps(1, 2)), "020405b4 0101080a 00000001 00000002"),
        (SynOptions(mss=1460, window_scale=14, sack_permitted=True), "020405b4 01010402 0103030e"),
    ],
)
def test_an_option_that_is_missing_leaves_the_others_aligned(said: SynOptions, area: str) -> None:
    assert tcp_options.emit_syn(said) == bytes.fromhex(area)
    assert said_by(bytes.fromhex(area)) == said


def test_no_operations_and_what_stands_behind_the_end_are_kept() -> None:
    area = bytes.fromhex("01 1e03aa 01 00 ffee")
    options = tcp_options.parse_untrusted(area)
    assert options == (Option(1), Option(30, b"\xaa"), Option(1), Option(0, b"\xff\xee"))
    assert tcp_options.emit(options) == area


def test_options_behind_the_end_say_nothing() -> None:
    assert said_by(bytes.fromhex("00 020405b4 00 00 00")) == SynOptions()


def test_options_of_a_wrong_length_say_nothing() -> None:
    assert said_by(bytes.fromhex("020305 0304 0707 040300 080600000001")) == SynOptions()


def test_the_last_of_a_repeated_option_counts() -> None:
    assert said_by(bytes.fromhex("02040218 020405b4")).mss == 1460


def test_a_window_scale_above_14_means_14() -> None:
    assert said_by(bytes.fromhex("010303ff")).window_scale == 14


@pytest.mark.parametrize("area", ["02", "0200", "0201", "020405", "1e05aabb"])
def test_an_option_that_reaches_over_the_end_or_is_too_short_is_refused(area: str) -> None:
    with pytest.raises(WireError) as caught:
        tcp_options.parse_untrusted(bytes.fromhex(area))
    assert caught.value.reason == "bad_tcp_options"


@quickly
@given(u32, u32)
def test_timestamps_are_found_wherever_they_stand(value: int, echo: int) -> None:
    area = area_of([("SAckOK", b""), ("NOP", None), ("Timestamp", (value, echo))])
    assert tcp_options.timestamps_untrusted(area) == (value, echo)
    assert tcp_options.timestamps_at(area) == area.index(b"\x08\x0a") + 2


@pytest.mark.parametrize(
    "area",
    [
        "",
        "0101 0402 0806 00000001",
        "0101 080a 00000001 0000",
        "0101 080b 00000001 00000002 00",
        "00 080a 00000001 00000002 000000",
        "0301 080a 00000001 00000002",
        "05ff 080a 00000001 00000002",
        "08",
    ],
)
def test_an_area_without_readable_timestamps_has_none(area: str) -> None:
    assert tcp_options.timestamps_at(bytes.fromhex(area)) is None
    assert tcp_options.timestamps_untrusted(bytes.fromhex(area)) is None


def test_timestamps_are_written_behind_two_no_operations() -> None:
    assert tcp_options.emit_timestamps(Timestamps(1, 2)) == bytes.fromhex("0101080a 00000001 00000002")
    assert tcp_options.emit_timestamps(None) == b""


@quickly
@given(u16, st.integers(0, 14), st.booleans(), u32, u32)
def test_scapy_reads_what_was_written(mss: int, scale: int, sack: bool, value: int, echo: int) -> None:
    said = SynOptions(mss=mss, window_scale=scale, sack_permitted=sack, timestamps=Timestamps(value, echo))
    area = tcp_options.emit_syn(said)
    seen = dict(TCP(bytes([*bytes(12), (20 + len(area)) * 4, *bytes(7)]) + area).options)
    assert (seen["MSS"], seen["WScale"], seen["Timestamp"], "SAckOK" in seen) == (
        mss,
        scale,
        (value, echo),
        sack,
    )


def emits_the_same_bytes(area: bytes) -> None:
    try:
        options = tcp_options.parse_untrusted(area)
    except WireError:
        return
    assert tcp_options.emit(options) == area
    tcp_options.syn_options(options)
    tcp_options.timestamps_untrusted(area)


@quickly
@given(st.binary(max_size=40))
def test_hostile_bytes_raise_wire_error_or_emit_the_same_bytes(area: bytes) -> None:
    emits_the_same_bytes(area)


@quickly
@given(mutated(scapy_options.map(lambda options: area_of(list(options)))))
def test_damaged_options_raise_wire_error_or_emit_the_same_bytes(area: bytes) -> None:
    emits_the_same_bytes(area)
