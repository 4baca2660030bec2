"""A packetbridge that was killed in the middle of a transfer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire.errors import WireError
from packetbridge.core import record
from packetbridge.core.record import Ended, FlowRecord, Opened
from packetbridge.core.service import Limits
from tests.unit.packetbridge.scene import (
    BACKEND_KEY,
    CI,
    LI,
    OTHER_SERVICE,
    SERVICE,
    SI,
    TS,
    WALL,
    B,
    Scene,
    X,
    add,
    at_backend,
    at_client,
    from_backend,
    from_client,
    handoff,
    stamps,
    syn_ack,
)
from tests.unit.wire.packets import ACK, FIN, RST, Described, built, quickly

PACKED = bytes.fromhex(
    "01 01 c0a8210a 0050"
    "c0a8211e cb007107 1f90 c000"
    "000f4240 b2d05e00 6b49d200"
    "9502f900 b8e443c1"
    "02 00 01 47868c00"
)
"""Flow of the test below, echoing: seq delta 2,500,000,000, value delta 7,000,001 - 1,200,000,000."""


def opened(scene: Scene) -> FlowRecord:
    (event,) = scene.core.journal
    assert isinstance(event, Opened)
    return event.record


def test_journal_says_when_a_flow_is_spliced_and_when_it_ends() -> None:
    scene = Scene()
    scene.balancer(handoff())
    assert scene.core.journal == []
    scene.backend(syn_ack(scale=9))
    assert record.pack(opened(scene)) == PACKED
    scene.core.journal.clear()
    scene.balancer(from_client())
    scene.backend(from_backend(flags=RST))
    assert scene.core.journal == [Ended(BACKEND_KEY)]


def test_journal_says_that_a_replaced_flow_has_ended() -> None:
    scene = Scene()
    scene.settle()
    scene.core.journal.clear()
    scene.balancer(handoff(client_isn=CI + 5, time=WALL + 1))
    assert scene.core.journal == [Ended(BACKEND_KEY)]


def test_flow_that_was_never_spliced_is_not_in_the_journal() -> None:
    scene = Scene()
    scene.balancer(handoff())
    scene.pass_time(100)
    assert scene.core.journal == []
    assert scene.spliced() == []


def test_record_reads_back_from_its_bytes() -> None:
    saved = record.parse_untrusted(PACKED)
    assert saved.key == BACKEND_KEY
    assert saved.origin == (CI, LI, WALL)
    assert saved.splice == (LI - SI, (X + 1 - B) % 2**32, 2, 0)
    assert saved.floor == B
    assert record.pack(saved) == PACKED


@pytest.mark.parametrize("at", [0, 1, 40, 41, 42])
def test_record_that_makes_no_sense_is_refused(at: int) -> None:
    with pytest.raises(WireError):
        record.parse_untrusted(PACKED[:at] + b"\x70" + PACKED[at + 1 :])


def visited(scene: Scene, *, exists: bool) -> list[bytes]:
    """What is sent once the kernel has been asked again for a restored flow's socket."""
    sent, questions = scene.pass_time(2.5)
    assert (sent, questions) == ([], [BACKEND_KEY])
    packets = scene.core.socket_exists(BACKEND_KEY, exists, scene.now)
    return [packet.data for packet in packets]


@quickly
@given(data=st.binary(min_size=record.SIZE, max_size=record.SIZE) | st.binary())
def test_hostile_record_is_refused_or_means_its_bytes(data: bytes) -> None:
    try:
        saved = record.parse_untrusted(data)
    except WireError:
        return
    assert record.pack(saved) == data


def test_restored_flow_goes_on_where_it_was() -> None:
    killed = Scene()
    killed.settle()
    (saved,) = killed.spliced()
    scene = Scene()
    assert scene.core.restore(saved, scene.now, socket_exists=True) == []
    segment, reply = from_client(b"more", got=9_000_000), from_backend(b"more", sent=9_000_000)
    assert scene.fast_balancer(segment) == built(at_backend(segment))
    assert scene.fast_backend(reply) == built(at_client(reply))
    assert scene.spliced() == [saved]
    assert visited(scene, exists=True) == visited(scene, exists=True) == []
    assert scene.spliced() == [saved]
    assert scene.pass_time(7490) == ([], [])
    assert scene.pass_time(12) == ([], [BACKEND_KEY])


def test_restored_flow_ends_when_both_sides_finish() -> None:
    killed = Scene()
    killed.settle()
    (saved,) = killed.spliced()
    scene = Scene()
    scene.core.restore(saved, scene.now, socket_exists=True)
    scene.balancer(from_client(sent=0, flags=ACK | FIN))
    scene.backend(from_backend(flags=ACK | FIN))
    visited(scene, exists=True)
    visited(scene, exists=True)
    assert scene.pass_time(61) == ([], [])
    assert scene.core.sizes["flows"] == 0


def test_restored_flow_still_raises_the_balancers_echo() -> None:
    killed = Scene()
    killed.open()
    scene = Scene()
    scene.core.restore(opened(killed), scene.now, socket_exists=True)
    segment = from_client(b"more", options=stamps(TS + 1, X))
    assert scene.fast_balancer(segment) is None
    assert scene.balancer(segment) == [built(at_backend(segment, stamps(TS + 1, B)))]
    assert scene.fast_backend(from_backend()) == built(at_client(from_backend()))


def test_flow_whose_socket_is_gone_is_probed_and_its_client_reset_when_it_answers() -> None:
    killed = Scene()
    killed.settle()
    (saved,) = killed.spliced()
    scene = Scene()
    probe = Described(from_client=False, seq=LI, ack=CI + 1, flags=ACK, window=0)
    sent = scene.core.restore(saved, scene.now, socket_exists=False)
    assert [packet.data for packet in sent] == [built(probe)]
    reset = Described(from_client=False, seq=add(LI, 123_457), ack=0, flags=RST, window=0)
    assert visited(scene, exists=False) == visited(scene, exists=False) == [built(probe)]
    assert scene.balancer(from_client(got=123_456)) == [built(reset)]
    assert scene.pass_time(5) == ([], [])
    reset_of_replay = reset._replace(seq=add(LI, 1))
    assert scene.balancer(handoff()) == [built(reset_of_replay)]
    assert scene.counters["replayed_handoff"] == 1


def test_flow_whose_socket_is_gone_stays_in_the_journal_until_the_last_probe() -> None:
    killed = Scene()
    killed.settle()
    (saved,) = killed.spliced()
    scene = Scene()
    scene.core.restore(saved, scene.now, socket_exists=False)
    visited(scene, exists=False)
    assert scene.core.journal == []
    visited(scene, exists=False)
    assert scene.core.journal == [Ended(BACKEND_KEY)]


def test_restored_flow_whose_socket_dies_soon_after_is_lost_too() -> None:
    """The client's RST to the backend's own address was on its way while the kernel was asked."""
    killed = Scene()
    killed.settle()
    (saved,) = killed.spliced()
    scene = Scene()
    scene.core.restore(saved, scene.now, socket_exists=True)
    probe = Described(from_client=False, seq=LI, ack=CI + 1, flags=ACK, window=0)
    assert visited(scene, exists=False) == [built(probe)]
    assert scene.core.sizes["flows"] == 0
    assert scene.core.journal == [Ended(BACKEND_KEY)]
    assert visited(scene, exists=False) == [built(probe)]
    reset = Described(from_client=False, seq=add(LI, 501), ack=0, flags=RST, window=0)
    assert scene.balancer(from_client(got=500)) == [built(reset)]


def test_flow_that_took_a_restored_ones_place_is_left_alone() -> None:
    killed = Scene()
    killed.settle()
    (saved,) = killed.spliced()
    scene = Scene()
    scene.core.restore(saved, scene.now, socket_exists=True)
    scene.balancer(handoff(client_isn=CI + 900_000, balancer_isn=LI + 5))
    assert visited(scene, exists=False) == []
    assert scene.core.sizes["flows"] == 1


def test_record_of_a_service_that_has_changed_is_left_out() -> None:
    killed = Scene()
    killed.settle()
    (saved,) = killed.spliced()
    for changed in (
        saved._replace(vip_index=2),
        saved._replace(vip=OTHER_SERVICE.vip),
        saved._replace(key=b"\x01" + saved.key[1:]),
    ):
        scene = Scene()
        assert scene.core.restore(changed, scene.now, socket_exists=True) == []
        assert scene.counters == {"restored_of_unknown_service": 1}
        assert scene.core.sizes["flows"] == 0


def test_flow_that_was_lost_is_probed_no_more_when_its_service_has_gone() -> None:
    killed = Scene(SERVICE, OTHER_SERVICE)
    killed.settle()
    (saved,) = killed.spliced()
    scene = Scene(SERVICE, OTHER_SERVICE)
    assert len(scene.core.restore(saved, scene.now, socket_exists=False)) == 1
    scene.core.journal.clear()
    scene.core.serve([OTHER_SERVICE], scene.now)
    assert visited(scene, exists=False) == []
    assert scene.core.journal == [Ended(saved.key)]


def test_more_flows_than_there_is_room_for_are_not_restored() -> None:
    killed = Scene()
    killed.settle()
    (saved,) = killed.spliced()
    other = saved._replace(key=saved.key[:11] + b"\x01")
    scene = Scene(limits=Limits(flows=1))
    scene.core.restore(saved, scene.now, socket_exists=True)
    scene.core.restore(other, scene.now, socket_exists=True)
    assert scene.core.sizes["flows"] == 1
    assert scene.counters["restored_in_vain"] == 1
