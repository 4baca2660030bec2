"""Flows in a packetbridge's maps, in the states that the programs put them into."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from common.bpf.abi import FLOW_ID, ActivityCell
from common.bpf.maps import HashMap
from packetbridge.ebpf.abi import FLOW, TOMBSTONE, FlowRow, StateNumber
from packetbridge.ebpf.flows import MapFlows
from tests.root.ebpf.hash_maps import hash_map
from tests.unit.packetbridge.scene import CI, LI, PORT, WALL
from tests.unit.wire.packets import CLIENT

SEEN = 900
"""Seconds at which both ends of each flow were heard of last."""
KEY = bytes(map(int, CLIENT.split("."))) + PORT.to_bytes(2, "big") + b"\1\0"
OTHER_KEY = KEY[:6] + b"\2\0"
"""Of the same client port, to the other VIP."""


class BridgeMaps(NamedTuple):
    flows: HashMap
    tombstones: HashMap
    questions: HashMap

    @property
    def table(self) -> MapFlows:
        return MapFlows(self.flows, self.tombstones)

    def put(self, state: StateNumber, key: bytes = KEY) -> None:
        self.flows.update(key, FLOW.pack(row(state)))


@contextmanager
def bridge_maps() -> Iterator[BridgeMaps]:
    with (
        hash_map(FLOW_ID.size, FLOW.size) as flows,
        hash_map(TOMBSTONE.size, 4) as tombstones,
        hash_map(FLOW_ID.size, 4) as questions,
    ):
        yield BridgeMaps(flows, tombstones, questions)


def row(state: StateNumber) -> FlowRow:
    activity = ActivityCell(next=1, fin=2, seen=SEEN, phase=0, has_fin=0)
    return FlowRow(activity, activity, CI, LI, WALL, 3, 4, 5, -6, 7, state)
