"""bpf/include/activity.h against common/tcp/activity.py, segment by segment."""

import random
from collections.abc import Iterator

import pytest

from common.bpf.abi import ActivityCell, PhaseNumber
from common.tcp.activity import IDLE_SECONDS, REACH, Activity, Phase
from common.wire import segment, seq
from common.wire.offload import Packet
from tests.root.bpf.topics import Question, Topics, topics
from tests.unit.wire.packets import ACK, FIN, RST, Described, built

pytestmark = pytest.mark.root

FLOWS, SEGMENTS = 500, 20
STEPS = (0, 0, 0, 1, 3, -1, -3, 10, 200, -200, REACH - 1, REACH, REACH + 1, -REACH, 1 << 31, (1 << 31) - 1)
STARTS = (0, 1, 1000, 0xFFFFFFFE, 0x7FFFFFFF, 0x80000000)


@pytest.fixture(scope="module")
def bpf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topics]:
    with topics(tmp_path_factory.mktemp("bpf")) as loaded:
        yield loaded


def templates() -> dict[tuple[int, int], bytes]:
    """Packets by flags and payload size, their sequence number 0."""
    return {
        (flags, size): built(Described(seq=0, flags=flags, payload=bytes(size)))
        for flags in (ACK, ACK | FIN, RST, RST | ACK)
        for size in (0, 1, 3, 10)
    }


def as_cell(activity: Activity) -> ActivityCell:
    fin = activity.fin
    return ActivityCell(
        next=activity.next,
        fin=fin or 0,
        seen=int(activity.seen),
        phase=PhaseNumber[activity.phase.name],
        has_fin=fin is not None,
    )


def comparable(cell: ActivityCell) -> ActivityCell:
    return cell if cell.has_fin else cell._replace(fin=0)


def test_any_sequence_of_segments_leaves_what_the_raw_data_plane_knows(bpf: Topics) -> None:
    chance = random.Random(1)
    made = templates()
    seen: set[PhaseNumber] = set()
    for _ in range(FLOWS):
        start = chance.choice(STARTS)
        activity = Activity(start, 5.0)
        bpf.cell = ActivityCell(start, 0, 5, PhaseNumber.OPEN, 0)
        for now in range(6, 6 + SEGMENTS):
            flags, size = chance.choice([*made, (ACK, 0), (ACK, 10), (ACK | FIN, 3)])
            origin = activity.next if activity.fin is None or chance.random() < 0.5 else activity.fin
            number = seq.add(origin, chance.choice((*STEPS, -size)))
            template = made[flags, size]
            packet = template[:24] + number.to_bytes(4, "big") + template[28:]
            read = segment.parse_untrusted(Packet(packet))
            activity.observe(read, float(now))
            done = bpf.run("observe", packet, Question(number=now))
            expected = as_cell(activity)
            assert comparable(bpf.cell) == expected, (read, expected)
            assert done.verdict == expected.phase
            seen.add(PhaseNumber(expected.phase))
    assert seen == set(PhaseNumber)


def test_plain_segments_of_an_open_flow_may_take_the_shorter_way(bpf: Topics) -> None:
    chance = random.Random(2)
    made = templates()
    for _ in range(FLOWS):
        start = chance.choice(STARTS)
        activity = Activity(start, 5.0)
        bpf.cell = ActivityCell(start, 0, 5, PhaseNumber.OPEN, 0)
        for now in range(6, 10):
            size = chance.choice((0, 1, 3, 10))
            number = seq.add(activity.next, chance.choice((*STEPS, -size)))
            template = made[ACK, size]
            packet = template[:24] + number.to_bytes(4, "big") + template[28:]
            activity.observe(segment.parse_untrusted(Packet(packet)), float(now))
            bpf.run("advance", packet, Question(number=now))
            assert bpf.cell == as_cell(activity)


@pytest.mark.parametrize("phase", PhaseNumber)
def test_end_is_idle_after_the_time_of_its_phase(bpf: Topics, phase: PhaseNumber) -> None:
    limit = int(IDLE_SECONDS[Phase[phase.name]])
    packet = built(Described(seq=1000))
    for now in (100, 0xFFFFFFFF):
        for later, is_idle in ((0, 0), (limit - 1, 0), (limit, 1), (limit + 1, 1)):
            bpf.cell = ActivityCell(1000, 0, 5, phase, 0)
            assert bpf.run("advance", packet, Question(number=now, seq_delta=later)).verdict == is_idle
