"""All flows, found from either side.

Packets from the balancer are looked up in their service's table, since one client port may talk to two
VIPs of one bridge address. Packets from the backends share one table: no two services have the same backend.
"""

from collections import OrderedDict

from common.tables import DictTable
from common.wire import dscp
from common.wire.segment import FlowKey
from packetbridge.core.flow import Flow


class Flows:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._by_client: list[DictTable[FlowKey, Flow]] = [
            DictTable(capacity) for _ in range(dscp.MAX_INDEX + 1)
        ]
        self._by_backend: DictTable[FlowKey, Flow] = DictTable(capacity)
        self._closed: OrderedDict[FlowKey, None] = OrderedDict()
        self._over: set[FlowKey] = set()
        self.open_of_vips = [0] * (dscp.MAX_INDEX + 1)
        """By VIP index, how many flows there are that are not over."""
        self.waiting_bytes = 0
        self.of_client = [table.get for table in self._by_client]
        """For each DSCP: the flow of a key, client to bridge, or None."""
        self.of_backend = self._by_backend.get
        """The flow of a key, backend to client, or None."""

    def put(self, flow: Flow, replaced: Flow | None) -> None:
        """Add a flow, or put it in the place of ``replaced``, which has the same keys.

        Raises `TableFullError`.
        """
        by_client = self._by_client[flow.service.vip_index]
        client_key = flow.service.client_key(flow.key)
        if replaced:
            self._by_backend.replace(flow.key, flow)
            by_client.replace(client_key, flow)
            self.waiting_bytes -= replaced.waiting_bytes
        else:
            self._by_backend.put_if_absent(flow.key, flow)
            by_client.put_if_absent(client_key, flow)
            self.open_of_vips[flow.service.vip_index] += 1
        self.waiting_bytes += flow.waiting_bytes

    def remove(self, flow: Flow) -> None:
        self._by_backend.delete(flow.key)
        self._by_client[flow.service.vip_index].delete(flow.service.client_key(flow.key))
        self._closed.pop(flow.key, None)
        if flow.key in self._over:
            self._over.remove(flow.key)
        else:
            self.open_of_vips[flow.service.vip_index] -= 1
        self.waiting_bytes -= flow.waiting_bytes

    def note_phases(self, flow: Flow) -> None:
        """Call after the flow's activity has changed."""
        if flow.is_closed:
            self._closed.setdefault(flow.key)
        else:
            self._closed.pop(flow.key, None)
        if flow.is_over == (flow.key in self._over):
            return
        if flow.is_over:
            self._over.add(flow.key)
            self.open_of_vips[flow.service.vip_index] -= 1
        else:
            self._over.remove(flow.key)
            self.open_of_vips[flow.service.vip_index] += 1

    def longest_closed(self) -> Flow | None:
        """The flow whose both sides finished first: the one to go where room is needed."""
        key = next(iter(self._closed), None)
        return None if key is None else self._by_backend.get(key)

    def all(self) -> list[Flow]:
        return [flow for _, flow in self._by_backend.items()]

    def __len__(self) -> int:
        return len(self._by_backend)
