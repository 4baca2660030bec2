from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as internet_checksum

from common.wire import checksum
from tests.unit.wire.packets import quickly, u16

RFC_1071_EXAMPLE = bytes.fromhex("0001f203f4f5f6f7")


def test_the_example_of_rfc_1071_sums_to_ddf2() -> None:
    assert checksum.word_sum(RFC_1071_EXAMPLE) == 0xDDF2
    assert checksum.compute(RFC_1071_EXAMPLE) == 0x220D


def test_an_odd_last_byte_is_the_upper_half_of_a_word() -> None:
    assert checksum.word_sum(b"\x12\x34\x56") == 0x1234 + 0x5600


def test_the_corner_case_of_rfc_1624_gives_0_and_not_ffff() -> None:
    assert checksum.update(0xDD2F, 0x3285 - 0x5555) == 0x0000


@quickly
@given(st.binary(min_size=1, max_size=200).filter(any))
def test_any_bytes_get_the_checksum_that_scapy_gives(data: bytes) -> None:
    assert checksum.compute(data) == internet_checksum(data)
    assert checksum.compute(memoryview(bytearray(data))) == internet_checksum(data)


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@quickly
@given(st.binary(min_size=40, max_size=60).filter(any), st.integers(0, 30), st.binary(min_size=1, max_size=8))
def test_an_incremental_update_gives_what_computing_anew_gives(data: bytes, at: int, new: bytes) -> None:
    after = replaced(data, at, new)
    weight = 256 if at % 2 else 1
    delta = weight * (checksum.word_sum(new) - checksum.word_sum(data[at : at + len(new)]))
    # Bytes that are all zero have no checksum: the header of a packet is never that.
    if any(after):
        assert checksum.update(internet_checksum(data), delta) == internet_checksum(after)


@quickly
@given(u16, u16, u16)
def test_a_wrong_checksum_stays_wrong_by_the_same_amount(wrong: int, old: int, new: int) -> None:
    rest = b"\x45\x00"
    before = (wrong - internet_checksum(rest + old.to_bytes(2, "big"))) % 0xFFFF
    after = (checksum.update(wrong, new - old) - internet_checksum(rest + new.to_bytes(2, "big"))) % 0xFFFF
    assert after == before


def test_an_intact_message_sums_to_zero_whichever_zero_its_checksum_field_holds() -> None:
    assert checksum.is_whole(checksum.word_sum(RFC_1071_EXAMPLE + b"\x22\x0d"))
    assert not checksum.is_whole(checksum.word_sum(RFC_1071_EXAMPLE + b"\x22\x0e"))
    # The words sum to 0xffff, so the checksum is 0; Linux writes 0xffff, which verifies as well.
    assert checksum.is_whole(checksum.word_sum(b"\xf0\xf0\x0f\x0f\x00\x00"))
    assert checksum.is_whole(checksum.word_sum(b"\xf0\xf0\x0f\x0f\xff\xff"))


def test_a_partial_checksum_is_a_sum_that_is_not_complemented_and_never_zero() -> None:
    assert checksum.update_partial(0x1234, 0x1111) == 0x2345
    assert checksum.update_partial(0xFFFE, 3) == 0x0002
    assert checksum.update_partial(0x0005, -5) == 0xFFFF
    assert checksum.update_partial(0x0005, -6) == 0xFFFE
