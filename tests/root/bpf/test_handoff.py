"""Handoffs in the programs: the bytes that they make, and which they take."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.bpf import keys
from common.bpf.abi import HANDOFF_KEYS, HandoffKeys
from common.keyring import Keyring, make_mac
from common.wire import handoff, segment
from common.wire.errors import WireError
from common.wire.handoff import Handoff
from common.wire.offload import Packet
from common.wire.tcp_options import Timestamps
from tests.root.bpf.hashes import LINK, Given, HandoffRow, Hashes, option_bits
from tests.unit.wire.handoffs import EXAMPLE, KEY, handoffs, scapy_packet
from tests.unit.wire.packets import Described, built, quickly, with_ip_checksum

pytestmark = pytest.mark.root

EVEN_KEY = bytes(range(32, 16, -1))[:-1] + b"\x10"
ODD_KEY = bytes(range(200, 216))
NO_SCALE = 15
RIGHT, WRONG_TAG = 1, 0
REASONS = {
    -1: "not_a_handoff",
    -2: "bad_handoff_payload",
    -3: "bad_handoff_options",
    -4: "unknown_handoff_version",
}


@pytest.fixture(scope="module")
def programs() -> Iterator[Hashes]:
    with Hashes() as programs:
        yield programs


@pytest.fixture(autouse=True)
def example_key(programs: Hashes) -> None:
    keys.write(programs.keys, Keyring((KEY,)))


def row_of(made: Handoff) -> HandoffRow:
    stamps = made.timestamps or Timestamps(0, 0)
    return HandoffRow(
        seq=made.seq,
        ack=made.ack,
        value=stamps.value,
        echo=stamps.echo,
        window=made.window,
        mss=made.mss,
        time=made.time,
        window_scale=NO_SCALE if made.window_scale is None else made.window_scale,
        options=option_bits(sack=made.sack_permitted, timestamps=made.timestamps is not None),
        promised_scale=made.promised_scale,
        fin=made.fin,
        key_id=made.key_id,
    )


def carrier_of(made: Handoff) -> bytes:
    """A packet that is addressed as the handoff is, with the payload and a header of the same size."""
    described = Described(
        client=".".join(map(str, made.client)),
        server=".".join(map(str, made.node)),
        client_port=made.client_port,
        server_port=made.service_port,
        raw_options=b"\x01" * 36,
        payload=made.payload,
        urgent=7,
        tos=made.vip_index << 2 | made.ecn,
    )
    return built(described)


def emitted(programs: Hashes, made: Handoff) -> bytes:
    programs.give(Given(handoff=row_of(made)))
    done = programs.run("make_handoff", carrier_of(made))
    assert done.verdict == 0
    return done.packet[len(LINK) :]


def verdict_on(programs: Hashes, packet: bytes, wall_seconds: int = 0) -> int:
    return programs.run("read_handoff", packet, (wall_seconds,)).verdict


def test_example_of_the_document_is_made_as_scapy_makes_it(programs: Hashes) -> None:
    assert emitted(programs, EXAMPLE) == scapy_packet(EXAMPLE)


def test_every_handoff_is_made_and_signed_as_the_python_plane_does(programs: Hashes) -> None:
    @quickly
    @given(handoffs, st.sampled_from([KEY, EVEN_KEY, ODD_KEY]))
    def check(made: Handoff, key: bytes) -> None:
        ring = Keyring((key,))
        keys.write(programs.keys, ring)
        signed = ring.sign(made)
        packet = emitted(programs, made)
        assert packet == scapy_packet(signed)
        assert verdict_on(programs, packet) == RIGHT
        assert programs.given().handoff == row_of(signed)

    check()


def test_nothing_is_signed_or_taken_without_a_key(programs: Hashes) -> None:
    programs.keys.delete(bytes(4))
    programs.give(Given(handoff=row_of(EXAMPLE)))
    assert programs.run("make_handoff", carrier_of(EXAMPLE)).verdict != 0
    assert verdict_on(programs, scapy_packet(EXAMPLE)) == WRONG_TAG


@pytest.mark.parametrize(
    "ring",
    [
        (EVEN_KEY,),
        (ODD_KEY,),
        (KEY,),
        (KEY, ODD_KEY),
        (ODD_KEY, KEY),
        (ODD_KEY, EVEN_KEY),
        (EVEN_KEY, KEY),
        (EVEN_KEY, ODD_KEY),
    ],
    ids=lambda ring: "-".join(key.hex()[:4] for key in ring),
)
def test_tags_of_current_and_previous_key_are_right_under_their_key_id(
    programs: Hashes, ring: tuple[bytes, ...]
) -> None:
    receiver = Keyring(ring)
    keys.write(programs.keys, receiver)
    for signer in (KEY, EVEN_KEY, ODD_KEY):
        signed = Keyring((signer,)).sign(EXAMPLE)
        misnamed = handoff.sign(EXAMPLE._replace(key_id=1 - signed.key_id), make_mac(signer))
        for message in (signed, misnamed):
            assert verdict_on(programs, scapy_packet(message)) == receiver.verify(message)
        assert receiver.verify(signed) == (signer in ring)
        assert not receiver.verify(misnamed)


def test_previous_key_counts_only_where_there_is_one(programs: Hashes) -> None:
    signed = scapy_packet(EXAMPLE)
    alone = HandoffKeys(*keys.halves(EVEN_KEY), *keys.halves(KEY), 0, EXAMPLE.key_id, has_previous=0)
    for row, verdict in ((alone, WRONG_TAG), (alone._replace(has_previous=1), RIGHT)):
        programs.keys.update(bytes(4), HANDOFF_KEYS.pack(row))
        assert verdict_on(programs, signed) == verdict


def test_a_flipped_bit_anywhere_in_the_headers_is_judged_as_by_the_python_plane(programs: Hashes) -> None:
    ring = Keyring((KEY,))
    packet = scapy_packet(EXAMPLE)
    for bit in range(96, 76 * 8):
        flipped = bytearray(packet)
        flipped[bit // 8] ^= 0x80 >> bit % 8
        whole = with_ip_checksum(bytes(flipped))
        if whole[32] >> 4 != 14:
            continue
        assert judged(programs, whole) == judged_by_python(ring, whole), f"bit {bit}"


def test_random_damage_is_judged_as_by_the_python_plane(programs: Hashes) -> None:
    source = random.Random(253)
    ring = Keyring((KEY,))
    seen = set()
    for _ in range(10_000):
        packet = bytearray(scapy_packet_of(source))
        for _ in range(source.choice([0, 1, 1, 2, 3])):
            at = source.randrange(40, 76)
            packet[at] = source.choice([0, 1, 2, 3, 4, 8, 10, 14, 15, 16, 253, source.getrandbits(8)])
        verdict = judged(programs, bytes(packet))
        assert verdict == judged_by_python(ring, bytes(packet))
        seen.add(verdict[0])
    assert seen == {"right", "wrong_tag", *REASONS.values()} - {"bad_handoff_payload"}


@pytest.mark.parametrize("size", [0, 1, 1423, 1424, 1425, 2000])
def test_payload_has_1_to_1424_bytes(programs: Hashes, size: int) -> None:
    packet = scapy_packet(EXAMPLE._replace(payload=bytes(size)))
    assert verdict_on(programs, packet) == (RIGHT if 1 <= size <= 1424 else -2)


@pytest.mark.parametrize("size", [20, 24, 52, 60])
def test_header_of_another_size_is_no_handoff(programs: Hashes, size: int) -> None:
    area = scapy_packet(EXAMPLE)[40:76].ljust(40, b"\x01")[: size - 20]
    packet = built(Described(flags=2, raw_options=area, payload=b"GET"))
    assert verdict_on(programs, packet) == -1


@pytest.mark.parametrize(
    ("wall_seconds", "made", "age"),
    [
        (0x6B49, 0x6B49, 0),
        (0x76543210, 0x3200, 0x10),
        (0x76543210, 0x3220, -0x10),
        (0x10000, 0xFFFF, 1),
        (0xFFFFFFFF, 0, -1),
        (0x8000, 0, -0x8000),
        (0x7FFF, 0, 0x7FFF),
    ],
)
def test_age_is_in_seconds_and_negative_for_a_clock_that_is_ahead(
    programs: Hashes, wall_seconds: int, made: int, age: int
) -> None:
    packet = scapy_packet(EXAMPLE._replace(time=made))
    done = programs.run("read_handoff", packet, (wall_seconds,))
    assert done.verdict == WRONG_TAG or made == EXAMPLE.time
    assert done.context.cb[0] == age % 2**32
    assert handoff.age(EXAMPLE._replace(time=made), wall_seconds) == age


Judgement = tuple[str, HandoffRow | None]


def judged(programs: Hashes, packet: bytes) -> Judgement:
    verdict = verdict_on(programs, packet)
    if verdict < 0:
        return REASONS[verdict], None
    return ("right" if verdict == RIGHT else "wrong_tag"), programs.given().handoff


def judged_by_python(ring: Keyring, packet: bytes) -> Judgement:
    try:
        message = handoff.parse_untrusted(segment.parse_untrusted(Packet(packet)))
    except WireError as error:
        return error.reason, None
    return ("right" if ring.verify(message) else "wrong_tag"), row_of(message)


def scapy_packet_of(source: random.Random) -> bytes:
    """One of the example's variants, signed."""
    changed = EXAMPLE._replace(
        window_scale=source.choice([None, 0, 7, 14]),
        sack_permitted=source.choice([False, True]),
        timestamps=source.choice([None, EXAMPLE.timestamps]),
        fin=source.choice([False, True]),
    )
    return scapy_packet(Keyring((KEY,)).sign(changed))
