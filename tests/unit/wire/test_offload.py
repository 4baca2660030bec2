import sys

from common.wire import offload
from common.wire.offload import NO_OFFLOAD, Offload

GSO_TCP4 = 1
SUPERPACKET = Offload(
    flags=offload.NEEDS_CHECKSUM,
    gso_type=GSO_TCP4,
    header_length=52,
    gso_size=1448,
    checksum_start=20,
    checksum_offset=16,
)
SUPERPACKET_BYTES = {
    "little": bytes.fromhex("0101 3400 a805 1400 1000"),
    "big": bytes.fromhex("0101 0034 05a8 0014 0010"),
}[sys.byteorder]


def test_the_header_has_the_kernel_s_ten_bytes_in_the_host_s_order() -> None:
    assert offload.emit(SUPERPACKET) == SUPERPACKET_BYTES
    assert offload.emit(NO_OFFLOAD) == bytes(10)


def test_what_stands_behind_the_header_is_not_read() -> None:
    assert offload.parse(SUPERPACKET_BYTES + b"\x45\x00") == SUPERPACKET


def test_only_the_lowest_flag_says_that_the_checksum_is_unfinished() -> None:
    assert SUPERPACKET.needs_checksum
    assert not NO_OFFLOAD.needs_checksum
    assert not Offload(flags=2).needs_checksum
