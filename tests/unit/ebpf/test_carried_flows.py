"""A flow in the map of the programs, and the record by which it is carried over."""

from hypothesis import given
from hypothesis import strategies as st

from common.bpf.abi import ActivityCell
from common.wire.rewrite import Splice
from packetbridge.core import restoration
from packetbridge.core.flow import Origin
from packetbridge.core.record import FlowRecord
from packetbridge.ebpf.abi import FlowRow, StateNumber
from packetbridge.ebpf.carried_over import record_of, row_of
from tests.unit.packetbridge.scene import BACKEND_KEY, CI, LI, SERVICE, SI, WALL, B, X
from tests.unit.wire.packets import quickly

KEY = bytes([203, 0, 113, 7, 0xC0, 0x00, 1, 0])
SEQ_DELTA, VALUE_DELTA = LI - SI, (X + 1 - B) % 2**32
ECHOING = FlowRecord(
    vip_index=1,
    vip=bytes([192, 168, 33, 10]),
    vip_port=80,
    key=BACKEND_KEY,
    origin=Origin(CI, LI, WALL),
    splice=Splice(SEQ_DELTA, VALUE_DELTA, 2, -3),
    floor=B,
)
ECHOING_ROW = FlowRow(
    client=ActivityCell(next=CI + 1, fin=0, seen=1000, phase=0, has_fin=0),
    backend=ActivityCell(next=SI + 1, fin=0, seen=1000, phase=0, has_fin=0),
    client_isn=CI,
    balancer_isn=LI,
    time=WALL,
    seq_delta=SEQ_DELTA,
    value_delta=VALUE_DELTA,
    floor=B,
    backend_shift=2,
    client_shift=-3,
    state=StateNumber.ECHOING,
)
U32 = st.integers(0, 2**32 - 1)
SHIFT = st.integers(-14, 14)
RECORDS = st.builds(
    FlowRecord,
    vip_index=st.just(1),
    vip=st.just(ECHOING.vip),
    vip_port=st.just(80),
    key=st.just(BACKEND_KEY),
    origin=st.builds(Origin, U32, U32, U32),
    splice=st.builds(Splice, U32, U32, SHIFT, SHIFT),
    floor=st.none() | U32,
)


def restored(saved: FlowRecord) -> FlowRow:
    return row_of(restoration.flow_of(SERVICE, saved, 1000.5))


def test_echoing_flow_is_in_the_map_as_the_programs_would_have_it() -> None:
    assert restored(ECHOING) == ECHOING_ROW
    assert record_of(SERVICE, KEY, ECHOING_ROW) == ECHOING


def test_established_flow_has_no_floor_in_its_record() -> None:
    established = ECHOING_ROW._replace(state=StateNumber.ESTABLISHED)
    saved = record_of(SERVICE, KEY, established)
    assert saved == ECHOING._replace(floor=None)
    assert restored(saved) == established._replace(floor=0)


def test_adopted_flow_goes_on_as_a_splice_that_changes_no_number() -> None:
    adopted = ECHOING_ROW._replace(
        seq_delta=0, value_delta=0, floor=0, backend_shift=0, client_shift=0, state=StateNumber.ADOPTED
    )
    saved = record_of(SERVICE, KEY, adopted)
    assert saved == ECHOING._replace(splice=Splice(0, 0, 0, 0), floor=None)
    row = restored(saved)
    assert row.state == StateNumber.ESTABLISHED
    assert row.backend.next == LI + 1
    assert (row.seq_delta, row.value_delta, row.backend_shift, row.client_shift) == (0, 0, 0, 0)


@quickly
@given(saved=RECORDS)
def test_record_reads_back_from_the_map(saved: FlowRecord) -> None:
    assert record_of(SERVICE, KEY, restored(saved)) == saved
