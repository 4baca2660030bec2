import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire import seq, syncookie
from common.wire.syncookie import StampedOptions
from tests.unit.wire.packets import quickly, siphash, u16, u32

KEY = bytes.fromhex("cb007107 c0a8210a c000 0050")
SECRET = bytes(range(16))
DAY_OF_PERIODS = st.integers(0, 1 << 34)

stamped_options = st.builds(
    StampedOptions,
    window_scale=st.one_of(st.none(), st.integers(0, 14)),
    sack_permitted=st.booleans(),
)


def mac(message: bytes) -> bytes:
    return siphash(SECRET, message)


def other_mac(message: bytes) -> bytes:
    return siphash(SECRET[::-1], message)


def test_the_isn_is_period_class_and_hash_of_what_is_documented() -> None:
    asked = []

    def fixed(message: bytes) -> bytes:
        asked.append(message)
        return bytes.fromhex("a1b2c3d4e5f60718")

    isn = syncookie.make(fixed, KEY, 0x01020304, mss=1400, period=0x2_0000_0023)
    assert isn == 0b00011_101 << 24 | 0xA1B2C3
    assert asked == [KEY + bytes.fromhex("01020304 00000023 05")]


@quickly
@given(u32, u16, DAY_OF_PERIODS, st.integers(0, syncookie.MAX_AGE_PERIODS))
def test_a_cookie_gives_the_mss_class_back_until_it_is_too_old(
    client_isn: int, mss: int, period: int, age: int
) -> None:
    isn = syncookie.make(mac, KEY, client_isn, mss, period)
    classes = [48, 536, 1024, 1220, 1360, 1400, 1440, 1460]
    expected = max((size for size in classes if size <= mss), default=48)
    assert 0 <= isn < 2**32
    assert syncookie.check(mac, KEY, client_isn, isn, period + age) == expected


# 31 and 2^32 - 1: the five bits in the ISN wrap, the period's hashed bits wrap.
@pytest.mark.parametrize("made", [0, 29, 31, 1000, 2**32 - 1])
@pytest.mark.parametrize(
    ("age", "is_good"), [(0, True), (1, True), (2, False), (3, False), (31, False), (32, False)]
)
def test_a_cookie_is_good_in_its_own_period_and_in_the_next_one(made: int, age: int, is_good: bool) -> None:
    isn = syncookie.make(mac, KEY, 0x01020304, 1460, made)
    assert syncookie.check(mac, KEY, 0x01020304, isn, made + age) == (1460 if is_good else None)


def test_a_cookie_from_the_future_is_refused() -> None:
    isn = syncookie.make(mac, KEY, 1, 1460, 100)
    assert syncookie.check(mac, KEY, 1, isn, 99) is None


def test_a_cookie_is_bound_to_secret_tuple_client_isn_and_period() -> None:
    isn = syncookie.make(mac, KEY, 0x01020304, 1460, 100)
    assert syncookie.check(other_mac, KEY, 0x01020304, isn, 100) is None
    assert syncookie.check(mac, KEY, 0x01020305, isn, 100) is None
    for at in range(len(KEY)):
        other_key = KEY[:at] + bytes([KEY[at] ^ 1]) + KEY[at + 1 :]
        assert syncookie.check(mac, other_key, 0x01020304, isn, 100) is None
    # 64 periods on, the five bits are the same.
    assert syncookie.check(mac, KEY, 0x01020304, isn, 164) is None


@quickly
@given(st.integers(0, 31))
def test_a_changed_bit_of_the_isn_is_seen(bit: int) -> None:
    isn = syncookie.make(mac, KEY, 0x01020304, 1460, 100)
    assert syncookie.check(mac, KEY, 0x01020304, isn ^ 1 << bit, 100) is None


@pytest.mark.parametrize(
    ("mss", "index"), [(0, 0), (47, 0), (48, 0), (535, 0), (536, 1), (1459, 6), (1460, 7), (65535, 7)]
)
def test_an_mss_is_rounded_down_to_its_class(mss: int, index: int) -> None:
    assert syncookie.mss_class(mss) == index


@quickly
@given(u32, stamped_options)
def test_a_stamp_is_the_newest_value_not_after_the_clock_and_carries_the_options(
    ticks: int, options: StampedOptions
) -> None:
    value = syncookie.stamp(ticks, options)
    assert 0 <= value < 2**32
    assert 0 <= seq.distance(value, ticks) < 64
    assert syncookie.read_stamp(value) == options


@pytest.mark.parametrize(
    ("ticks", "options", "value"),
    [
        (0x12345680, StampedOptions(None, sack_permitted=False), 0x1234564F),
        (0x123456BF, StampedOptions(7, sack_permitted=True), 0x12345697),
        (0x12345680, StampedOptions(0, sack_permitted=False), 0x12345680),
        (0x00000003, StampedOptions(7, sack_permitted=True), 0xFFFFFFD7),
        (0xFFFFFFFF, StampedOptions(14, sack_permitted=True), 0xFFFFFFDE),
    ],
)
def test_a_stamp_has_scale_and_sack_in_its_low_bits_and_steps_back_over_the_wrap(
    ticks: int, options: StampedOptions, value: int
) -> None:
    assert syncookie.stamp(ticks, options) == value


@quickly
@given(u32, stamped_options, st.integers(1, 5000))
def test_stamps_never_run_backwards(ticks: int, options: StampedOptions, later: int) -> None:
    first = syncookie.stamp(ticks, options)
    second = syncookie.stamp(seq.add(ticks, later), options)
    assert seq.le(first, second)


@quickly
@given(u32)
def test_any_echo_says_something(echo: int) -> None:
    said = syncookie.read_stamp(echo)
    assert said.window_scale is None or 0 <= said.window_scale <= 14
