"""bpf/include/frame.h, checksum.h and link.h: what is taken out of a packet, and what is refused."""

import random
from collections.abc import Iterator

import pytest

from common.wire import ipv4, segment
from common.wire.errors import WireError
from common.wire.offload import Packet
from common.wire.segment import Segment
from tests.root.bpf import arbitrary
from tests.root.bpf.topics import DONE, ETHERNET, REFUSED, Topics, topics
from tests.unit.wire.packets import ACK, FIN, Described, ScapyOption, built, with_field

pytestmark = pytest.mark.root

CASES = 10_000
ERRORS = {
    "truncated": -1,
    "not_ipv4": -2,
    "not_tcp": -3,
    "bad_ip_checksum": -4,
    "fragment": -5,
    "ip_options": -6,
    "bad_data_offset": -7,
}
STAMPS: tuple[ScapyOption, ...] = (("NOP", None), ("NOP", None), ("Timestamp", (1, 2)))


@pytest.fixture(scope="module")
def bpf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topics]:
    with topics(tmp_path_factory.mktemp("bpf")) as loaded:
        yield loaded


def checksum_at(packet: bytes) -> int:
    return int.from_bytes(packet[36:38], "big")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 6, 460, 492, 493, 512, 1004, 1460, 3000])
@pytest.mark.parametrize(("options", "tcp_size"), [((), 20), (STAMPS, 32)], ids=["bare", "timestamps"])
def test_headers_are_loaded_and_both_checksums_verified(
    bpf: Topics, options: tuple[ScapyOption, ...], tcp_size: int, size: int
) -> None:
    payload = random.Random(size).randbytes(size)
    packet = built(Described(flags=ACK | FIN, options=options, payload=payload))
    assert bpf.run("load", packet).verdict == DONE
    assert bpf.answer() == (tcp_size, size, 1, 1)
    for at in (12, 24, len(packet) - 1):
        damaged = packet[:at] + bytes([packet[at] ^ 0x10]) + packet[at + 1 :]
        assert bpf.run("load", damaged).verdict == DONE
        assert bpf.answer() == (tcp_size, size, at != 12, 0)


def test_bytes_behind_the_ip_packet_are_no_payload(bpf: Topics) -> None:
    packet = built(Described(payload=b"abc"))
    assert bpf.run("load", packet + b"\xff" * 6).verdict == DONE
    assert bpf.answer() == (20, 3, 1, 1)


def test_checksum_that_is_still_to_be_computed_holds(bpf: Topics) -> None:
    """The field holds the sum of the pseudo-header, here 203.0.113.7, 192.168.33.10, protocol and length."""
    words = (0xCB00, 0x7107, 0xC0A8, 0x210A, 6, 24)
    total = sum(words)
    packet = built(Described(payload=b"abcd"))
    partial = with_field(packet, 36, (total & 0xFFFF) + (total >> 16))
    assert bpf.run("load", partial).verdict == DONE
    assert bpf.answer()[3] == 1
    assert bpf.run("load", with_field(packet, 36, checksum_at(partial) + 1)).verdict == DONE
    assert bpf.answer()[3] == 0


def test_checksum_of_a_superpacket_counts_as_still_to_be_computed(bpf: Topics) -> None:
    packet = with_field(built(Described(payload=bytes(range(256)))), 36, 1)
    assert bpf.run("load", packet, gso_size=100).verdict == DONE
    assert bpf.answer() == (20, 256, 1, 1)


def test_any_packet_is_accepted_or_refused_as_in_the_raw_data_plane(bpf: Topics) -> None:
    chance = random.Random(1)
    reasons = dict.fromkeys(ERRORS, 0)
    for _ in range(CASES):
        packet = mutated(arbitrary.packet(chance), chance)
        done = bpf.run("load", packet)
        expected = in_python(packet)
        if not isinstance(expected, Segment):
            reasons[expected] += 1
            if expected == "bad_ip_checksum" and done.verdict == DONE:
                assert bpf.answer()[2] == 0
            elif expected == "bad_ip_checksum" and done.verdict == ERRORS["not_tcp"]:
                assert not ipv4.carries(packet, ipv4.PROTOCOL_TCP)
            else:
                assert done.verdict == ERRORS[expected], packet.hex()
            continue
        assert done.verdict == DONE, packet.hex()
        told = (20 + len(expected.options), len(expected.payload), 1, segment.checksum_holds(expected))
        assert bpf.answer() == told, packet.hex()
    assert min(reasons.values()) > CASES // 200, reasons


def in_python(packet: bytes) -> Segment | str:
    """Or the reason why it is refused."""
    try:
        return segment.parse_untrusted(Packet(packet))
    except WireError as error:
        return error.reason


def mutated(packet: bytes, chance: random.Random) -> bytes:
    """With one field that decides changed, cut off, or left alone; the IP checksum mostly right."""
    data = bytearray(packet)
    at, value = chance.choice(
        (
            (0, chance.choice((0x44, 0x46, 0x4F, 0x55, 0x65))),
            (2, chance.randrange(2)),
            (3, chance.randrange(256)),
            (6, chance.choice((0x20, 0x60, 0x01))),
            (7, 1),
            (9, chance.choice((1, 17))),
            (32, chance.randrange(256)),
            (1, 0),
            (1, 0),
        )
    )
    data[at] = value
    if chance.random() < 0.2:
        del data[chance.randrange(20, len(data)) :]
    size = (data[0] & 0xF) * 4
    if chance.random() < 0.8 and len(data) >= size >= 20:
        data[10:12] = b"\0\0"
        total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, size, 2)) % 0xFFFF
        data[10:12] = (0xFFFF - total).to_bytes(2, "big")
    if chance.random() < 0.5 and len(data) >= 40:
        data = bytearray(with_right_tcp_checksum(bytes(data)))
    return bytes(data)


def with_right_tcp_checksum(packet: bytes) -> bytes:
    total = int.from_bytes(packet[2:4], "big")
    data = packet[20:total]
    words = packet[12:20] + bytes([0, 6]) + (len(data) & 0xFFFF).to_bytes(2, "big") + data[:16] + b"\0\0"
    words += data[18:] + b"\0" * (len(data) % 2)
    check = 0xFFFF - sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2)) % 0xFFFF
    return packet[:36] + check.to_bytes(2, "big") + packet[38:]


def test_packet_for_this_host_can_go_back_to_its_sender(bpf: Topics) -> None:
    packet = built(Described())
    assert bpf.run_frame("swap", ETHERNET + packet) == (
        DONE,
        bytes.fromhex("020000000001 000000000000 0800") + packet,
    )


@pytest.mark.parametrize(
    "link",
    [
        "020000000009 020000000001 0800",
        "ffffffffffff 020000000001 0800",
        "000000000000 020000000001 86dd",
        "000000000000 020000000001 8100 0007 0800",
    ],
    ids=["another station", "broadcast", "IPv6", "VLAN"],
)
def test_packet_that_is_not_for_this_host_is_told(bpf: Topics, link: str) -> None:
    frame = bytes.fromhex(link) + built(Described())
    assert bpf.run_frame("swap", frame) == (REFUSED, frame)


def test_link_without_header_has_nothing_to_swap(tmp_path_factory: pytest.TempPathFactory) -> None:
    with topics(tmp_path_factory.mktemp("bpf"), link_header_size=0) as bare:
        frame = ETHERNET + built(Described())
        assert bare.run_frame("swap", frame) == (DONE, frame)
