"""bpf/include/rewrite.h against common/wire/rewrite.py and, where a person can read it, scapy's bytes."""

import random
from collections.abc import Callable, Iterator

import pytest

from common.wire import checksum, offload, rewrite
from common.wire.offload import Packet
from common.wire.rewrite import Rewrite, Splice
from tests.root.bpf import arbitrary
from tests.root.bpf.topics import DONE, Question, Topics, topics
from tests.unit.wire.packets import ACK, Described, built, with_field

pytestmark = pytest.mark.root

CASES = 10_000
NODE, BACKEND, VIP = bytes([192, 168, 33, 20]), bytes([192, 168, 33, 30]), bytes([192, 168, 33, 10])


@pytest.fixture(scope="module")
def bpf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topics]:
    with topics(tmp_path_factory.mktemp("bpf")) as loaded:
        yield loaded


def in_python(plan: Rewrite, packet: bytes) -> bytes:
    buffer = bytearray(bytes(offload.SIZE) + packet)
    rewrite.apply(plan, buffer, offload.SIZE)
    return bytes(buffer[offload.SIZE :])


def to_backend(packet: bytes, splice: Splice) -> tuple[Rewrite, Question]:
    address, port = packet[16:20], int.from_bytes(packet[22:24], "big")
    plan = Rewrite(rewrite.to_destination((address, port), (BACKEND, 8080)), splice)
    return plan, Question(
        source=packet[12:16],
        destination=BACKEND,
        source_port=packet[20:22],
        destination_port=(8080).to_bytes(2, "big"),
        ack_delta=-splice.seq_delta % 2**32,
        echo_delta=-splice.value_delta % 2**32,
        window_shift=splice.client_window_shift % 2**32,
    )


def to_client(packet: bytes, splice: Splice) -> tuple[Rewrite, Question]:
    address, port = packet[12:16], int.from_bytes(packet[20:22], "big")
    plan = Rewrite(rewrite.to_source((address, port), (VIP, 80)), splice)
    return plan, Question(
        source=VIP,
        destination=packet[16:20],
        source_port=(80).to_bytes(2, "big"),
        destination_port=packet[22:24],
        seq_delta=splice.seq_delta,
        value_delta=splice.value_delta,
        window_shift=splice.server_window_shift % 2**32,
    )


@pytest.mark.parametrize("direction", [to_backend, to_client], ids=["to backend", "to client"])
def test_any_segment_is_rewritten_to_the_bytes_of_the_raw_data_plane(
    bpf: Topics, direction: Callable[[bytes, Splice], tuple[Rewrite, Question]]
) -> None:
    chance = random.Random(1)
    for _ in range(CASES):
        packet = arbitrary.packet(chance)
        splice = Splice(
            chance.choice((0, arbitrary.number(chance))),
            chance.choice((0, arbitrary.number(chance))),
            chance.randrange(-14, 15),
            chance.randrange(-14, 15),
        )
        plan, asked = direction(packet, splice)
        done = bpf.run("rewrite", packet, asked)
        assert done.verdict == DONE
        assert done.packet == in_python(plan, packet), (packet.hex(), splice)


def test_numbers_that_wrap_around_move_with_both_checksums_right(bpf: Topics) -> None:
    sent = Described(
        server="192.168.33.20",
        seq=7,
        ack=5,
        window=0x8000,
        tos=0xB9,
        options=(
            ("NOP", None),
            ("Timestamp", (1, 2)),
            ("NOP", None),
            ("SAck", (0xFFFFFFFF, 3, 10, 20)),
            ("NOP", None),
            ("NOP", None),
        ),
        payload=b"odd",
    )
    expected = sent._replace(
        server="192.168.33.30",
        server_port=8080,
        seq=6,
        ack=0xFFFFFFFE,
        window=0xFFFF,
        tos=0x01,
        options=(
            ("NOP", None),
            ("Timestamp", (0, 1)),
            ("NOP", None),
            ("SAck", (0xFFFFFFF8, 0xFFFFFFFC, 3, 13)),
            ("NOP", None),
            ("NOP", None),
        ),
    )
    asked = Question(
        source=bytes([203, 0, 113, 7]),
        destination=BACKEND,
        source_port=(49152).to_bytes(2, "big"),
        destination_port=(8080).to_bytes(2, "big"),
        seq_delta=0xFFFFFFFF,
        ack_delta=0xFFFFFFF9,
        value_delta=0xFFFFFFFF,
        echo_delta=0xFFFFFFFF,
        window_shift=1,
    )
    assert bpf.run("rewrite", built(sent), asked).packet == built(expected)


def with_lower_ttl(packet: bytes) -> bytes:
    check = checksum.update(int.from_bytes(packet[10:12], "big"), -0x100)
    return packet[:8] + bytes([packet[8] - 1]) + packet[9:10] + check.to_bytes(2, "big") + packet[12:]


def test_forwarded_segment_changes_in_its_ip_header_and_its_checksums_only(bpf: Topics) -> None:
    chance = random.Random(2)
    for _ in range(CASES):
        packet = arbitrary.packet(chance)
        port = int.from_bytes(packet[22:24], "big")
        target = rewrite.to_destination((packet[16:20], port), (NODE, port), index=chance.randrange(64))
        expected = with_lower_ttl(in_python(Rewrite(target), packet))
        done = bpf.run("forward", packet, Question(destination=NODE, dscp=target.dscp >> 2))
        assert done.verdict == DONE
        assert done.packet == expected, packet.hex()


@pytest.mark.parametrize("floor", [0, 5000, 0x80000001])
def test_echo_before_the_floor_is_raised_to_it(bpf: Topics, floor: int) -> None:
    """A checksum of 0xffff is written as 0, which means the same."""
    chance = random.Random(floor)
    for _ in range(CASES // 2):
        packet = arbitrary.packet(chance, flags=ACK)
        done = bpf.run("raise", packet, Question(number=floor))
        assert done.verdict == DONE
        normal = with_field(packet, 36, checksum.update(int.from_bytes(packet[36:38], "big"), 0))
        assert done.packet == rewrite.with_raised_echo(Packet(normal), floor).data, packet.hex()
