import pytest

from common.tcp import reset
from common.wire import segment
from common.wire.offload import Packet
from tests.unit.wire.packets import ACK, FIN, PSH, RST, SYN, Described, built


def answer_to(described: Described) -> bytes | None:
    made = reset.answer(segment.parse_untrusted(Packet(built(described))))
    return None if made is None else segment.emit(made).data


@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | FIN, SYN | ACK])
def test_segment_with_an_ack_is_reset_with_that_number_and_no_ack(flags: int) -> None:
    received = Described(
        seq=5, ack=0xFFFF_FFFF, flags=flags, payload=b"abc", tos=0xFF, ttl=3, identification=9
    )
    assert answer_to(received) == built(
        Described(from_client=False, seq=0xFFFF_FFFF, ack=0, flags=RST, window=0)
    )


@pytest.mark.parametrize(
    ("flags", "payload", "acknowledged"),
    [(SYN, b"", 4), (SYN, b"abc", 7), (SYN | FIN, b"abc", 8), (0, b"abcd", 7)],
)
def test_segment_without_an_ack_is_reset_from_zero_and_all_of_it_acknowledged(
    flags: int, payload: bytes, acknowledged: int
) -> None:
    assert answer_to(Described(seq=3, ack=77, flags=flags, payload=payload)) == built(
        Described(from_client=False, seq=0, ack=acknowledged, flags=RST | ACK, window=0)
    )


@pytest.mark.parametrize("flags", [RST, RST | ACK, RST | SYN])
def test_rst_is_never_answered(flags: int) -> None:
    assert answer_to(Described(flags=flags)) is None
