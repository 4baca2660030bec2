"""SYN cookies in the programs: those that the Python plane makes, and those that it takes."""

import random
from collections.abc import Iterator

import pytest

from common.bpf import keys
from common.wire import syncookie
from common.wire.syncookie import StampedOptions
from tests.root.bpf.hashes import FlowKeyRow, Given, Hashes, option_bits
from tests.unit.wire.packets import siphash

pytestmark = pytest.mark.root

SECRET = bytes(range(100, 116))
KEY = bytes.fromhex("cb007107 c0a8210a c000 0050")
KEY_ROW = FlowKeyRow(KEY[:4], KEY[4:8], KEY[8:10], KEY[10:])
NO_SCALE = 15


def mac(message: bytes) -> bytes:
    return siphash(SECRET, message)


@pytest.fixture(scope="module")
def programs() -> Iterator[Hashes]:
    low, high = keys.halves(SECRET)
    with Hashes(cookie_key_low=low, cookie_key_high=high) as programs:
        yield programs


def made(programs: Hashes, client_isn: int, mss: int, period: int, key: FlowKeyRow = KEY_ROW) -> int:
    programs.give(Given(key=key, client_isn=client_isn, mss=mss, period=period))
    return programs.number("make_cookie")


def checked(programs: Hashes, client_isn: int, isn: int, period: int) -> int | None:
    programs.give(Given(key=KEY_ROW, client_isn=client_isn, isn=isn, period=period))
    verdict = programs.run("check_cookie").verdict
    return None if verdict == -1 else verdict


def test_isn_is_the_python_planes(programs: Hashes) -> None:
    source = random.Random(1)
    for _ in range(2000):
        key = source.randbytes(12)
        client_isn, period = source.getrandbits(32), source.getrandbits(source.choice([6, 26, 32]))
        mss = source.choice([source.getrandbits(16), *syncookie.MSS_CLASSES])
        row = FlowKeyRow(key[:4], key[4:8], key[8:10], key[10:])
        assert made(programs, client_isn, mss, period, row) == syncookie.make(
            mac, key, client_isn, mss, period
        )


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_mss_comes_back_rounded_down_to_its_class(programs: Hashes, at: int, over: int) -> None:
    classes = [48, 536, 1024, 1220, 1360, 1400, 1440, 1460]
    mss = classes[at] + over
    expected = max((size for size in classes if size <= mss), default=48)
    assert checked(programs, 5, made(programs, 5, mss, 1000), 1000) == expected


@pytest.mark.parametrize("period", [0, 29, 31, 1000, 2**32 - 1])
@pytest.mark.parametrize(
    ("age", "is_good"), [(0, True), (1, True), (2, False), (3, False), (31, False), (32, False)]
)
def test_cookie_is_good_in_its_own_period_and_in_the_next_one(
    programs: Hashes, period: int, age: int, is_good: bool
) -> None:
    isn = made(programs, 0x01020304, 1460, period)
    assert checked(programs, 0x01020304, isn, (period + age) % 2**32) == (1460 if is_good else None)


def test_guessed_cookies_are_taken_where_the_python_plane_takes_them(programs: Hashes) -> None:
    source = random.Random(2)
    taken = 0
    for _ in range(2000):
        client_isn, period = source.getrandbits(32), source.getrandbits(20)
        isn = syncookie.make(mac, KEY, client_isn, source.getrandbits(11), period)
        isn ^= source.choice([0, 0, 1 << source.randrange(32)])
        now = period + source.choice([0, 0, 1, 2, -1 % 2**32])
        expected = syncookie.check(mac, KEY, client_isn, isn, now)
        assert checked(programs, client_isn, isn, now % 2**32) == expected
        taken += expected is not None
    assert 500 < taken < 1500


def test_stamp_is_the_python_planes_and_says_what_the_syn_offered(programs: Hashes) -> None:
    source = random.Random(3)
    for _ in range(2000):
        ticks = source.choice([source.getrandbits(32), source.getrandbits(6), 2**32 - 1])
        scale, sack = source.choice([None, *range(15)]), bool(source.getrandbits(1))
        wanted = StampedOptions(scale, sack)
        bits = option_bits(sack=sack, timestamps=True)
        done = programs.run("make_stamp", cb=(ticks, NO_SCALE if scale is None else scale, bits))
        stamp, read_scale, read_options = done.context.cb[:3]
        assert stamp == syncookie.stamp(ticks, wanted)
        assert syncookie.read_stamp(stamp) == wanted
        assert read_scale == (NO_SCALE if scale is None else scale)
        assert read_options == option_bits(sack=sack, timestamps=False)


def test_another_secret_makes_another_cookie(programs: Hashes) -> None:
    with Hashes(cookie_key_low=1, cookie_key_high=2) as others:
        foreign = made(others, 7, 1460, 10)
    assert checked(programs, 7, foreign, 10) is None
