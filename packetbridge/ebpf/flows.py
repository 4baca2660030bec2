"""The programs' map of flows, as the rest of the packetbridge sees it."""

from collections.abc import Iterator, Mapping

from common.bpf.abi import FLOW_ID, FlowId, PhaseNumber
from common.bpf.activity import from_cell
from common.bpf.maps import HashMap, Update
from common.reports import FlowReport
from common.tables import TableFullError
from common.wire import dscp
from common.wire.rewrite import Splice
from common.wire.segment import FlowKey, Segment
from packetbridge.core import report
from packetbridge.core.flow import Origin
from packetbridge.core.service import Service
from packetbridge.ebpf.abi import FLOW, SPLICED, TOMBSTONE, FlowRow, StateNumber, TombstoneId
from packetbridge.ebpf.waiting_room import Openness

_SINCE_SIZE = 4


class MapFlows:
    def __init__(self, flows: HashMap, tombstones: HashMap) -> None:
        self._flows = flows
        self._tombstones = tombstones

    def openness(self, key: bytes) -> Openness:
        row = self.row(key)
        if row is None:
            return Openness.UNKNOWN
        return Openness.OPENING if row.state == StateNumber.OPENING else Openness.SPLICED

    def add(self, key: bytes, row: FlowRow) -> bool:
        """False where its place is taken, or there is no room."""
        try:
            return self._flows.update(key, FLOW.pack(row), Update.NOEXIST)
        except TableFullError:
            return False

    def revive(self, key: bytes, now: float) -> None:
        """The flow's idle time begins again."""
        row = self.row(key)
        if row is not None:
            made = row._replace(client=row.client._replace(seen=int(now)))
            self._flows.update(key, FLOW.pack(made), Update.EXIST)

    def bury(self, key: bytes, now: float) -> None:
        """Forget the flow, and remember that its handoff has had its day."""
        row = self.row(key)
        if row is None:
            return
        self._flows.delete(key)
        self.leave_tombstone(key, row.client_isn, row.balancer_isn, now)

    def leave_tombstone(self, key: bytes, client_isn: int, balancer_isn: int, now: float) -> None:
        """Handoffs of this connection have had their day."""
        name = TombstoneId(*FLOW_ID.unpack(key)[:3], 0, client_isn, balancer_isn)
        self._tombstones.update(TOMBSTONE.pack(name), int(now).to_bytes(_SINCE_SIZE, "little"))

    def __len__(self) -> int:
        """Walks through the whole map."""
        return self._flows.count()

    def rows(self) -> Iterator[tuple[bytes, FlowRow]]:
        """Those that are there all the while, and some of those that come or go meanwhile."""
        return ((key, FLOW.unpack(data)) for key, data in self._flows.items())

    def row(self, key: bytes) -> FlowRow | None:
        data = self._flows.lookup(key)
        return None if data is None else FLOW.unpack(data)


def is_closed(row: FlowRow) -> bool:
    """Whether both sides have finished."""
    return row.client.phase == row.backend.phase == PhaseNumber.FINISHED


def is_over(row: FlowRow) -> bool:
    """Whether nothing more is to come: both sides have finished, or one has reset the connection."""
    return is_closed(row) or PhaseNumber.RESET in (row.client.phase, row.backend.phase)


def reports(
    flows: MapFlows, services: Mapping[int, Service], now: float, wall_seconds: int
) -> Iterator[FlowReport]:
    """``services`` by their VIP's index."""
    for key, row in flows.rows():
        if served := services.get(index_of(key)):
            yield report_of(served, key, row, now, wall_seconds)


def report_of(service: Service, key: bytes, row: FlowRow, now: float, wall_seconds: int) -> FlowReport:
    splice = Splice(row.seq_delta, row.value_delta, row.backend_shift, row.client_shift)
    made = report.flow_report(
        service,
        backend_key(service, key),
        StateNumber(row.state).name,
        Origin(row.client_isn, row.balancer_isn, row.time),
        splice if row.state in SPLICED else None,
        (from_cell(row.client), from_cell(row.backend)),
        now,
        wall_seconds,
    )
    made.details["adopted"] = row.state in (StateNumber.ADOPTING, StateNumber.ADOPTED)
    return made


def key_of_client(segment: Segment) -> bytes:
    """Of a tagged segment."""
    index = dscp.index_of(segment.tos)
    return FLOW_ID.pack(FlowId(segment.source, segment.source_port.to_bytes(2, "big"), index))


def key_of_backend(service: Service, key: FlowKey) -> bytes:
    """For the key of backend to client."""
    return FLOW_ID.pack(FlowId(key[4:8], key[10:12], service.vip_index))


def backend_key(service: Service, key: bytes) -> FlowKey:
    """Backend to client, for a key of the map."""
    client, port, _, _ = FLOW_ID.unpack(key)
    return service.backend_key(client, int.from_bytes(port, "big"))


def index_of(key: bytes) -> int:
    """The VIP's."""
    return FLOW_ID.unpack(key).vip_index
