"""Flows that a packetbridge carries over to the next one, whichever data planes they have.

As long as programs are at work, or left for the next start, the maps hold the flows. When they are taken
away, the flows are written to the journal. A start on this plane puts those that it finds there into its
maps.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import takewhile
from pathlib import Path

import trio

from common.bpf import residence as residences
from common.bpf.abi import FLOW_ID, SHARED, PhaseNumber
from common.bpf.activity import cell_of
from common.bpf.maps import ArrayMap, HashMap, MapType, shape_of
from common.bpf.residence import Residence, identity
from common.counters import Counters
from common.wire.offload import Packet
from common.wire.rewrite import Splice
from packetbridge.core.flow import Flow, Origin
from packetbridge.core.machine import State
from packetbridge.core.record import FlowRecord, Opened
from packetbridge.core.restoration import Restoration, Table
from packetbridge.core.service import Service
from packetbridge.core.strangers import Strangers
from packetbridge.ebpf import abi
from packetbridge.ebpf.abi import FLOW, SERVICE, SPLICED, FlowRow, StateNumber
from packetbridge.ebpf.flows import MapFlows, backend_key, index_of, is_closed, key_of_backend
from packetbridge.ebpf.served import services_in
from packetbridge.journal import Existing, Journal, restore_all

PATIENCE_SECONDS = 5.0
"""Enough for some 100,000 flows."""
LAYOUT = identity(layouts=(*SHARED, *abi.STRUCTS), numbers=(PhaseNumber, StateNumber))
"""Of maps whose flows can be read."""
_MAPS = {
    "flows": (MapType.HASH, FLOW_ID.size, FLOW.size),
    "services": (MapType.ARRAY, 4, SERVICE.size),
}
"""Type, and sizes of key and value."""


def row_of(flow: Flow) -> FlowRow:
    """Of a spliced flow."""
    origin, spliced = flow.origin, flow.splice
    return FlowRow(
        client=cell_of(flow.client),
        backend=cell_of(flow.backend),
        client_isn=origin.client_isn,
        balancer_isn=origin.balancer_isn,
        time=origin.time,
        seq_delta=spliced.seq_delta,
        value_delta=spliced.value_delta,
        floor=flow.echoing.floor if flow.state is State.ECHOING else 0,
        backend_shift=spliced.server_window_shift,
        client_shift=spliced.client_window_shift,
        state=StateNumber[flow.state.name],
    )


def record_of(service: Service, key: bytes, row: FlowRow) -> FlowRecord:
    """For a key of the map of flows, and a flow that is spliced or adopted."""
    return FlowRecord(
        *service[:3],
        key=backend_key(service, key),
        origin=Origin(row.client_isn, row.balancer_isn, row.time),
        splice=Splice(row.seq_delta, row.value_delta, row.backend_shift, row.client_shift),
        floor=row.floor if row.state == StateNumber.ECHOING else None,
    )


def records_in(flows: HashMap, services: ArrayMap) -> Iterator[FlowRecord]:
    """Those whose both sides have finished come last: there is the least to lose."""
    served = {each.vip_index: each for each in services_in(services)}
    closed = []
    for key, data in flows.items():
        row = FLOW.unpack(data)
        if row.state not in SPLICED or index_of(key) not in served:
            continue
        if is_closed(row):
            closed.append((key, row))
        else:
            yield record_of(served[index_of(key)], key, row)
    for key, row in closed:
        yield record_of(served[index_of(key)], key, row)


class FlowMaps:
    """The maps of programs that may be at work no more."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        """Takes over the descriptors; none where the maps cannot be read."""
        self._maps = maps

    def close(self) -> None:
        for descriptor in self._maps.values():
            os.close(descriptor)

    @property
    def are_readable(self) -> bool:
        return bool(self._maps)

    def write_to(self, journal: Journal) -> None:
        """As many flows as it can in `PATIENCE_SECONDS`: a stop must not take for ever."""
        if not self._maps:
            return
        end = time.monotonic() + PATIENCE_SECONDS
        records = records_in(HashMap(self._maps["flows"]), ArrayMap(self._maps["services"]))
        journal.note(map(Opened, takewhile(lambda _: time.monotonic() < end, records)))


def maps_left(pins: Path) -> FlowMaps:
    """By an earlier run. They can be read after their pins are removed."""
    found = residences.maps_left(pins, LAYOUT, _MAPS)
    maps = FlowMaps(found)
    if any(shape_of(descriptor)[:3] != _MAPS[name] for name, descriptor in found.items()):
        maps.close()
        return FlowMaps({})
    return maps


def remove(residence: Residence, journal: Journal) -> None:
    """Take the programs away; their flows are the next packetbridge's."""
    with closing(FlowMaps({name: os.dup(residence.map(name)) for name in _MAPS})) as maps:
        residence.remove()
        maps.write_to(journal)


class CarriedOver:
    """The flows of the last packetbridge in the maps of this one."""

    def __init__(
        self,
        journal: Journal,
        services: Mapping[int, Service],
        flows: MapFlows,
        strangers: Strangers,
        existing: Existing,
        counters: Counters[str],
    ) -> None:
        """``services`` by their VIP's index, which may change."""
        self._journal = journal
        self._services = services
        self._flows = flows
        self._existing = existing
        table = Table(self._knows, self._take_up, self._end, self._bury, journal.erase)
        self._restoration = Restoration(services, table, strangers, counters)
        self.next_deadline = self._restoration.next_deadline

    def restore(self, now: float, logger: logging.Logger) -> list[Packet]:
        """Put what flows are in the journal into the map, as far as their sockets live.

        Returns what is to be sent when the programs are at work.
        """
        restore = self._restoration.restore
        return restore_all(
            self._journal, self._existing, lambda saved, exists: restore(saved, now, exists), logger
        )

    def leave_to_maps(self) -> None:
        """Maps outlive a kill: the journal is emptied but for flows whose clients are still to be reset."""
        self._journal.clear()
        self._journal.note(map(Opened, self._restoration.lost()))

    async def run(self, send: Callable[[list[Packet]], None]) -> None:
        """Until all have been visited again."""
        while (deadline := self.next_deadline()) is not None:
            await trio.sleep(max(0.0, deadline - time.monotonic()))
            send(self.on_timeout(time.monotonic()))

    def on_timeout(self, now: float) -> list[Packet]:
        """What to send."""
        packets: list[Packet] = []
        due = self._restoration.due(now)
        existing = self._existing(due)
        for key in due:
            packets += self._restoration.visit(key, key in existing, now) or []
        return packets

    def _key_of(self, saved: FlowRecord) -> bytes:
        return key_of_backend(self._services[saved.vip_index], saved.key)

    def _knows(self, saved: FlowRecord) -> bool:
        return self._flows.row(self._key_of(saved)) is not None

    def _take_up(self, flow: Flow, _now: float) -> bool:
        return self._flows.add(key_of_backend(flow.service, flow.key), row_of(flow))

    def _end(self, saved: FlowRecord, now: float) -> bool:
        key = self._key_of(saved)
        row = self._flows.row(key)
        if row is None or row.state not in SPLICED or (row.client_isn, row.balancer_isn) != saved.origin[:2]:
            return False
        self._flows.bury(key, now)
        return True

    def _bury(self, saved: FlowRecord, now: float) -> None:
        self._flows.leave_tombstone(self._key_of(saved), *saved.origin[:2], now)
