import pytest

from common.wire import dscp


@pytest.mark.parametrize("ecn", [0b00, 0b01, 0b10, 0b11])
def test_a_new_index_keeps_the_ecn_bits(ecn: int) -> None:
    assert dscp.with_index(0b101010_00 | ecn, 0b000001) == 0b000001_00 | ecn
    assert dscp.with_index(0b111111_00 | ecn, 0) == ecn


def test_the_index_is_the_upper_six_bits_and_ecn_the_lower_two() -> None:
    assert dscp.index_of(0b101101_10) == 0b101101
    assert dscp.ecn_of(0b101101_10) == 0b10


def test_every_index_fits_its_six_bits() -> None:
    tos_bytes = {dscp.with_index(0, index) for index in range(dscp.MIN_INDEX, dscp.MAX_INDEX + 1)}
    assert tos_bytes == set(range(4, 256, 4))
