"""`balancer.core.loads.Loads` in maps, where the programs choose by them.

What a node has is the sum of two numbers with one writer each: a base, which Python sets by what the node
says and by the flows that the core establishes, and what the programs have handed to it. The sum over all
nodes of a service is kept in the same way; each time that a node speaks, it is made right again.
"""

import struct
import sys
from collections.abc import Iterator, Mapping

from balancer.core.loads import NodeLoad, has_room
from balancer.ebpf.abi import NODE, NODE_ID, SERVICE_LOAD, NodeId, NodeRow, ServiceLoad
from common.bpf.maps import ArrayMap, HashMap, Update

_NUMBER = struct.Struct("=Q")
_NO_LOAD = ServiceLoad(base=0, factor=0, weights=0)
_NEW_NODE = NodeRow(base=0, weight=0, is_bounded=0)


class MapLoads:
    def __init__(self, nodes: HashMap, handed: HashMap, loads: ArrayMap, handed_total: ArrayMap) -> None:
        """Forgets what an earlier run has left in the maps."""
        self._nodes = nodes
        self._handed = handed
        self._loads = loads
        self._handed_total = handed_total
        self._rows: dict[NodeId, NodeRow] = {}
        self._sums: dict[int, ServiceLoad] = {}
        self._own: dict[NodeId, int] = {}
        """New flows that the core has established."""
        for index in range(loads.info.max_entries):
            self._write_sum(index, _NO_LOAD)
        for entries in (nodes, handed):
            for key in [key for key, _ in entries.items()]:
                entries.delete(key)

    def configure(self, vip_index: int, weights: Mapping[bytes, int], factor: int) -> None:
        for identity in [each for each in self._of_index(vip_index) if each.node not in weights]:
            self._forget_node(identity)
        for node, weight in weights.items():
            identity = NodeId(node, vip_index)
            self._handed.update(NODE_ID.pack(identity), bytes(_NUMBER.size), Update.NOEXIST)
            self._write(identity, self._rows.get(identity, _NEW_NODE)._replace(weight=weight))
        self._sums[vip_index] = _NO_LOAD._replace(factor=factor)
        self._add_up(vip_index)

    def forget(self, vip_index: int) -> None:
        self._sums.pop(vip_index, None)
        self._write_sum(vip_index, _NO_LOAD)
        for identity in list(self._of_index(vip_index)):
            self._forget_node(identity)

    def correct(self, vip_index: int, node: bytes, flows: int | None) -> None:
        identity = NodeId(node, vip_index)
        row = self._rows.get(identity)
        if row is None:
            return
        base = 0 if flows is None else flows - self._handed_to(identity)
        self._write(identity, row._replace(base=base, is_bounded=flows is not None))
        self._add_up(vip_index)

    def of(self, vip_index: int, node: bytes) -> NodeLoad:
        identity = NodeId(node, vip_index)
        row = self._rows.get(identity)
        if row is None:
            return NodeLoad(None, 0)
        handed = self._handed_to(identity)
        return NodeLoad(
            max(0, row.base + handed) if row.is_bounded else None, handed + self._own.get(identity, 0)
        )

    def admits(self, vip_index: int, node: bytes) -> bool:
        flows = self.of(vip_index, node).flows
        sums = self._sums.get(vip_index, _NO_LOAD)
        if not sums.factor or flows is None:
            return True
        return has_room(
            flows,
            max(0, sums.base + self._handed_in_all(vip_index)),
            weight=self._rows[NodeId(node, vip_index)].weight,
            weights=sums.weights,
            factor=sums.factor,
        )

    def count(self, vip_index: int, node: bytes) -> None:
        """By the core; the programs count what they do themselves."""
        identity = NodeId(node, vip_index)
        row = self._rows.get(identity)
        if row is None:
            return
        self._own[identity] = self._own.get(identity, 0) + 1
        if row.is_bounded:
            self._write(identity, row._replace(base=row.base + 1))
        if row.is_bounded and row.weight:
            sums = self._sums[vip_index]
            self._write_sum(vip_index, sums._replace(base=sums.base + 1))

    def _add_up(self, vip_index: int) -> None:
        """What programs hand out meanwhile is missing in the sum until the next time."""
        counted = {
            identity: row
            for identity in self._of_index(vip_index)
            if (row := self._rows[identity]).is_bounded and row.weight
        }
        total = sum(row.base + self._handed_to(identity) for identity, row in counted.items())
        sums = ServiceLoad(
            base=total - self._handed_in_all(vip_index),
            factor=self._sums.get(vip_index, _NO_LOAD).factor,
            weights=sum(row.weight for row in counted.values()),
        )
        self._write_sum(vip_index, sums)

    def _of_index(self, vip_index: int) -> Iterator[NodeId]:
        return (identity for identity in self._rows if identity.vip_index == vip_index)

    def _handed_to(self, identity: NodeId) -> int:
        """By programs."""
        data = self._handed.lookup(NODE_ID.pack(identity))
        return 0 if data is None else int.from_bytes(data, sys.byteorder)

    def _handed_in_all(self, vip_index: int) -> int:
        return int.from_bytes(self._handed_total.lookup(vip_index), sys.byteorder)

    def _write(self, identity: NodeId, row: NodeRow) -> None:
        self._rows[identity] = row
        self._nodes.update(NODE_ID.pack(identity), NODE.pack(row))

    def _write_sum(self, vip_index: int, sums: ServiceLoad) -> None:
        if vip_index in self._sums:
            self._sums[vip_index] = sums
        self._loads.update(vip_index, SERVICE_LOAD.pack(sums))

    def _forget_node(self, identity: NodeId) -> None:
        self._rows.pop(identity)
        self._own.pop(identity, None)
        self._nodes.delete(NODE_ID.pack(identity))
        self._handed.delete(NODE_ID.pack(identity))
