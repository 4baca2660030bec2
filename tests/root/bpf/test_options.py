"""bpf/include/tcp_options.h against common/wire/tcp_options.py, and emitting against scapy's bytes."""

import random
from collections.abc import Iterator

import pytest

from common.bpf import abi
from common.wire import tcp_options
from common.wire.errors import WireError
from common.wire.tcp_options import SynOptions, Timestamps
from tests.root.bpf import arbitrary
from tests.root.bpf.topics import DONE, Question, Said, Topics, topics
from tests.unit.wire.packets import ACK, SYN, Described, ScapyOption, built, with_field

pytestmark = pytest.mark.root

CASES = 10_000
BOTH = abi.OPTION_SACK | abi.OPTION_TIMESTAMPS


@pytest.fixture(scope="module")
def bpf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topics]:
    with topics(tmp_path_factory.mktemp("bpf")) as loaded:
        yield loaded


def area_of(packet: bytes) -> bytes:
    return packet[40 : 20 + (packet[32] >> 4) * 4]


def as_said(options: SynOptions) -> Said:
    stamps = options.timestamps or Timestamps(0, 0)
    return Said(
        value=stamps.value,
        echo=stamps.echo,
        mss=options.mss or 0,
        window_scale=abi.NO_SCALE if options.window_scale is None else options.window_scale,
        options=abi.OPTION_SACK * options.sack_permitted
        | abi.OPTION_TIMESTAMPS * (options.timestamps is not None),
    )


def test_any_syns_options_say_what_the_raw_data_plane_reads(bpf: Topics) -> None:
    chance = random.Random(1)
    malformed = 0
    for _ in range(CASES):
        packet = arbitrary.packet(chance, flags=SYN)
        assert bpf.run("read_syn", packet).verdict == DONE
        said = bpf.said
        try:
            options = tcp_options.parse_untrusted(area_of(packet))
        except WireError:
            malformed += 1
            assert said.malformed, packet.hex()
            continue
        expected = as_said(tcp_options.syn_options(options))
        assert said._replace(stamps_at=0) == expected, packet.hex()
        assert bool(said.stamps_at) == bool(said.options & abi.OPTION_TIMESTAMPS)
    assert CASES // 20 < malformed < CASES // 2


def test_any_segments_timestamps_are_those_that_the_raw_data_plane_reads(bpf: Topics) -> None:
    chance = random.Random(2)
    found = 0
    for _ in range(CASES):
        packet = arbitrary.packet(chance, flags=ACK)
        assert bpf.run("read_stamps", packet).verdict == DONE
        area = area_of(packet)
        stamps = tcp_options.timestamps_untrusted(area) or Timestamps(0, 0)
        assert bpf.answer()[:3] == (tcp_options.timestamps_at(area) or 0, *stamps), packet.hex()
        found += stamps != (0, 0)
    assert CASES // 10 < found < CASES


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), Said()),
        ((("MSS", 1460),), Said(mss=1460)),
        (
            (("MSS", 1400), ("SAckOK", b""), ("Timestamp", (7, 0xFFFFFFFF)), ("NOP", None), ("WScale", 14)),
            Said(value=7, echo=0xFFFFFFFF, mss=1400, window_scale=14, options=BOTH),
        ),
        (
            (("MSS", 536), ("NOP", None), ("NOP", None), ("Timestamp", (1, 2))),
            Said(value=1, echo=2, mss=536, options=abi.OPTION_TIMESTAMPS),
        ),
        (
            (("MSS", 536), ("NOP", None), ("NOP", None), ("SAckOK", b""), ("NOP", None), ("WScale", 0)),
            Said(mss=536, window_scale=0, options=abi.OPTION_SACK),
        ),
    ],
    ids=["none", "mss", "all", "no sack", "no timestamps"],
)
@pytest.mark.parametrize("payload", [b"", b"odd", bytes(range(200))], ids=len)
def test_packet_of_our_own_has_the_options_that_it_is_to_have(
    bpf: Topics, payload: bytes, options: tuple[ScapyOption, ...], said: Said
) -> None:
    received = Described(flags=ACK, tos=0xB9, ttl=9, identification=77, payload=payload)
    bpf.said = said
    done = bpf.run("emit_syn", built(received))
    assert done.verdict == DONE
    assert done.packet == built(Described(flags=SYN, options=options))


def test_packet_of_our_own_has_the_checksum_error_of_the_received_one(bpf: Topics) -> None:
    received = built(Described(flags=ACK, payload=b"odd"))
    damaged = with_field(received, 36, int.from_bytes(received[36:38], "big") - 3)
    bpf.said = Said(mss=1460)
    expected = built(Described(flags=SYN, options=(("MSS", 1460),)))
    assert bpf.run("emit_syn", damaged).packet == with_field(
        expected, 36, int.from_bytes(expected[36:38], "big") - 3
    )


def test_segment_that_grows_has_timestamps_and_the_new_payload(bpf: Topics) -> None:
    asked = Question(value_delta=5, echo_delta=0xFFFFFFFE, number=int.from_bytes(b"GET ", "little"))
    done = bpf.run("extend", built(Described(options=(("MSS", 9),), ttl=3)), asked)
    stamps: tuple[ScapyOption, ...] = (("NOP", None), ("NOP", None), ("Timestamp", (5, 0xFFFFFFFE)))
    assert done.verdict == DONE
    assert done.packet == built(Described(options=stamps, payload=b"GET ", ttl=3))
