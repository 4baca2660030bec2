"""The core's tables in BPF maps, where the programs see them too.

Numbers of seconds are whole there. An entry that the programs change meanwhile is written as a whole all the
same: what is lost is a moment of its activity.
"""

import math
from typing import Generic, TypeVar

from balancer.core.connection import Flow, Handshake, Hello
from balancer.core.flow_table import HALF_OPEN_SECONDS, VERIFIED_SECONDS
from balancer.core.service import Node, Service, make_node
from balancer.ebpf.abi import FLOW, HELLO, VERIFIED, FlowRow, HelloRow, VerifiedRow
from common.bpf.abi import FLOW_ID, NO_SCALE, OPTION_SACK, OPTION_TIMESTAMPS, FlowId
from common.bpf.activity import cell_of, from_cell
from common.bpf.maps import HashMap, Update
from common.tables import TableFullError
from common.wire.segment import FlowKey, flow_key
from common.wire.tcp_options import SynOptions, Timestamps

Value = TypeVar("Value")


class Keys:
    """`FlowKey`, client to VIP, as the maps have it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def pack(self, key: FlowKey) -> bytes:
        return FLOW_ID.pack(FlowId(key[:4], key[8:10], self._service.vip_index))

    def unpack(self, data: bytes) -> FlowKey:
        packed = FLOW_ID.unpack(data)
        port = int.from_bytes(packed.client_port, "big")
        return flow_key(packed.client, port, self._service.vip, self._service.port)


class MapFlowTable:
    """`balancer.core.flow_table.FlowTable`. The sweeping program forgets idle flows."""

    def __init__(self, flows: HashMap, service: Service) -> None:
        self._map = flows
        self._keys = Keys(service)
        self._service = service
        self._nodes = {node.address: node for node in service.nodes.values()}

    def get(self, key: FlowKey) -> Flow | None:
        data = self._map.lookup(self._keys.pack(key))
        return None if data is None else self._flow(FLOW.unpack(data))

    def put_if_absent(self, key: FlowKey, value: Flow) -> Flow:
        packed, row = self._keys.pack(key), FLOW.pack(row_of(value))
        while not self._map.update(packed, row, Update.NOEXIST):
            if (first := self.get(key)) is not None:
                return first
        return value

    def replace(self, key: FlowKey, value: Flow) -> None:
        if not self._map.update(self._keys.pack(key), FLOW.pack(row_of(value)), Update.EXIST):
            raise KeyError(key)

    def delete(self, key: FlowKey) -> None:
        self._map.delete(self._keys.pack(key))

    def attend(self, key: FlowKey, flow: Flow) -> None:
        """Activity is a copy here, so it is written back, unless the flow has gone meanwhile."""
        self._map.update(self._keys.pack(key), FLOW.pack(row_of(flow)), Update.EXIST)

    def expire(self, now: float) -> None:
        """The sweeping program does it."""

    def next_deadline(self) -> float | None:
        return None

    def __len__(self) -> int:
        """Walks through the whole map."""
        return self._map.count()

    def _flow(self, row: FlowRow) -> Flow:
        node = self._node(row.node)
        is_contested = bool(row.contested_until)
        scale = None if row.window_scale == NO_SCALE else row.window_scale
        sack, stamps = bool(row.options & OPTION_SACK), bool(row.options & OPTION_TIMESTAMPS)
        return Flow(
            Handshake(row.client_isn, row.isn, row.mss, scale, sack, stamps),
            node,
            from_cell(row.client),
            float(row.begun),
            None if is_contested else node.plan,
            float(row.contested_until),
        )

    def _node(self, address: bytes) -> Node:
        """A node that is not configured any more keeps its flows."""
        node = self._nodes.get(address)
        if node is None:
            name = ".".join(map(str, address))
            vip, port, index = self._service[:3]
            node = self._nodes[address] = make_node(vip, port, index, name, address)
        return node


def row_of(flow: Flow) -> FlowRow:
    handshake = flow.handshake
    return FlowRow(
        client=cell_of(flow.activity),
        client_isn=handshake.client_isn,
        isn=handshake.isn,
        node=flow.node.address,
        begun=int(flow.begun),
        contested_until=0 if flow.plan is not None else math.ceil(flow.contested_until),
        mss=handshake.mss,
        window_scale=_scale(handshake.window_scale),
        options=_options(handshake.sack_permitted, stamped=handshake.timestamps),
    )


class _MapAgingTable(Generic[Value]):
    """`common.tables.Aging` on a map. The sweeping program removes what is too old."""

    lifetime: float

    def __init__(self, entries: HashMap, service: Service) -> None:
        self._map = entries
        self._keys = Keys(service)
        self._now = 0.0

    def get(self, key: FlowKey) -> Value | None:
        data = self._map.lookup(self._keys.pack(key))
        if data is None:
            return None
        value, since = self.unpack(data)
        return value if self._now < since + self.lifetime else None

    def put(self, key: FlowKey, value: Value, now: float) -> bool:
        self._now = now
        packed = self._keys.pack(key)
        known = self._map.lookup(packed)
        since = now if known is None else self.unpack(known)[1]
        if now >= since + self.lifetime:
            since = now
        try:
            return self._map.update(packed, self.pack(value, int(since)))
        except TableFullError:
            return False

    def delete(self, key: FlowKey) -> None:
        self._map.delete(self._keys.pack(key))

    def expire(self, now: float) -> None:
        """What is too old is not seen from now on."""
        self._now = now

    def next_deadline(self) -> float | None:
        return None

    def __len__(self) -> int:
        """Walks through the whole map, and counts what is too old as well."""
        return self._map.count()

    def pack(self, value: Value, since: int) -> bytes:
        raise NotImplementedError

    def unpack(self, data: bytes) -> tuple[Value, float]:
        """And when it was put there."""
        raise NotImplementedError


class MapVerifiedTable(_MapAgingTable[Handshake]):
    lifetime = VERIFIED_SECONDS

    def pack(self, value: Handshake, since: int) -> bytes:
        scale = _scale(value.window_scale)
        options = _options(value.sack_permitted, stamped=value.timestamps)
        return VERIFIED.pack(VerifiedRow(value.client_isn, value.isn, since, value.mss, scale, options))

    def unpack(self, data: bytes) -> tuple[Handshake, float]:
        row = VERIFIED.unpack(data)
        scale = None if row.window_scale == NO_SCALE else row.window_scale
        sack, stamps = bool(row.options & OPTION_SACK), bool(row.options & OPTION_TIMESTAMPS)
        return Handshake(row.client_isn, row.isn, row.mss, scale, sack, stamps), row.since


class MapHalfOpenTable(_MapAgingTable[Hello]):
    lifetime = HALF_OPEN_SECONDS

    def pack(self, value: Hello, since: int) -> bytes:
        said = value.options
        options = _options(said.sack_permitted, stamped=said.timestamps is not None)
        return HELLO.pack(
            HelloRow(value.client_isn, since, said.mss or 0, _scale(said.window_scale), options)
        )

    def unpack(self, data: bytes) -> tuple[Hello, float]:
        """Which TSval and TSecr the SYN had is not kept."""
        row = HELLO.unpack(data)
        said = SynOptions(
            mss=row.mss or None,
            window_scale=None if row.window_scale == NO_SCALE else row.window_scale,
            sack_permitted=bool(row.options & OPTION_SACK),
            timestamps=Timestamps(0, 0) if row.options & OPTION_TIMESTAMPS else None,
        )
        return Hello(row.client_isn, said), row.since


def _scale(scale: int | None) -> int:
    return NO_SCALE if scale is None else scale


def _options(sack_permitted: bool, *, stamped: bool) -> int:
    return (OPTION_SACK if sack_permitted else 0) | (OPTION_TIMESTAMPS if stamped else 0)
