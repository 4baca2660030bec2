"""`balancer.core.loads.Loads` in maps, where the programs choose by them.

What a node has is the sum of two numbers with one writer each: a base, which Python sets by what the node
says and by the flows that the core establishes, and what the programs have handed to it. The sum over all
nodes of a service is kept in the same way. What a program counts while a node is only just bounded may be
missing in it; so, once for as many words of nodes as there are nodes, it is added up anew.
"""

import struct
import sys
from collections.abc import Mapping

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
        self._rows: dict[int, dict[bytes, NodeRow]] = {}
        """By VIP index and node."""
        self._sums: dict[int, ServiceLoad] = {}
        self._own: dict[NodeId, int] = {}
        """New flows that the core has established."""
        self._corrected: dict[int, int] = {}
        """By VIP index, how many nodes have spoken since the sum was added up."""
        for index in range(loads.info.max_entries):
            self._write_sum(index, _NO_LOAD)
        for entries in (nodes, handed):
            for key in [key for key, _ in entries.items()]:
                entries.delete(key)

    def configure(self, vip_index: int, weights: Mapping[bytes, int], factor: int) -> None:
        rows = self._rows.setdefault(vip_index, {})
        for node in rows.keys() - weights.keys():
            self._forget_node(NodeId(node, vip_index))
        for node, weight in weights.items():
            identity = NodeId(node, vip_index)
            self._handed.update(NODE_ID.pack(identity), bytes(_NUMBER.size), Update.NOEXIST)
            self._write(identity, rows.get(node, _NEW_NODE)._replace(weight=weight))
        self._sums[vip_index] = _NO_LOAD._replace(factor=factor)
        self._add_up(vip_index)

    def forget(self, vip_index: int) -> None:
        self._sums.pop(vip_index, None)
        self._write_sum(vip_index, _NO_LOAD)
        for node in list(self._rows.get(vip_index, ())):
            self._forget_node(NodeId(node, vip_index))
        self._rows.pop(vip_index, None)

    def correct(self, vip_index: int, node: bytes, flows: int | None) -> None:
        identity = NodeId(node, vip_index)
        before = self._row(identity)
        if before is None:
            return
        handed = self._handed_to(identity)
        row = before._replace(base=0 if flows is None else flows - handed, is_bounded=int(flows is not None))
        self._write(identity, row)
        self._corrected[vip_index] += 1
        if self._corrected[vip_index] >= len(self._rows[vip_index]):
            self._add_up(vip_index)
            return
        (was_flows, was_weight), (is_flows, is_weight) = _counted(before, handed), _counted(row, handed)
        sums = self._sums[vip_index]
        base, weights = sums.base + is_flows - was_flows, sums.weights + is_weight - was_weight
        self._write_sum(vip_index, sums._replace(base=base, weights=weights))

    def of(self, vip_index: int, node: bytes) -> NodeLoad:
        identity = NodeId(node, vip_index)
        row = self._row(identity)
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
            weight=self._rows[vip_index][node].weight,
            weights=sums.weights,
            factor=sums.factor,
        )

    def count(self, vip_index: int, node: bytes) -> None:
        """By the core; the programs count what they do themselves."""
        identity = NodeId(node, vip_index)
        row = self._row(identity)
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
        rows = self._rows[vip_index].items()
        counted = [_counted(row, self._handed_to(NodeId(node, vip_index))) for node, row in rows]
        sums = ServiceLoad(
            base=sum(flows for flows, _ in counted) - self._handed_in_all(vip_index),
            factor=self._sums.get(vip_index, _NO_LOAD).factor,
            weights=sum(weight for _, weight in counted),
        )
        self._write_sum(vip_index, sums)
        self._corrected[vip_index] = 0

    def _row(self, identity: NodeId) -> NodeRow | None:
        return self._rows.get(identity.vip_index, {}).get(identity.node)

    def _handed_to(self, identity: NodeId) -> int:
        """By programs."""
        data = self._handed.lookup(NODE_ID.pack(identity))
        return 0 if data is None else int.from_bytes(data, sys.byteorder)

    def _handed_in_all(self, vip_index: int) -> int:
        return int.from_bytes(self._handed_total.lookup(vip_index), sys.byteorder)

    def _write(self, identity: NodeId, row: NodeRow) -> None:
        self._rows[identity.vip_index][identity.node] = row
        self._nodes.update(NODE_ID.pack(identity), NODE.pack(row))

    def _write_sum(self, vip_index: int, sums: ServiceLoad) -> None:
        if vip_index in self._sums:
            self._sums[vip_index] = sums
        self._loads.update(vip_index, SERVICE_LOAD.pack(sums))

    def _forget_node(self, identity: NodeId) -> None:
        self._rows[identity.vip_index].pop(identity.node)
        self._own.pop(identity, None)
        self._nodes.delete(NODE_ID.pack(identity))
        self._handed.delete(NODE_ID.pack(identity))


def _counted(row: NodeRow, handed: int) -> tuple[int, int]:
    """Flows and weight of a node in the sums over its service's."""
    return (row.base + handed, row.weight) if row.is_bounded and row.weight else (0, 0)
