"""The core's tables in BPF maps, where the programs see them too.

Numbers of seconds are whole there. An entry that the programs change meanwhile is written as a whole all the
same: what is lost is a moment of its activity.
"""

import math
from collections.abc import Iterator
from typing import Generic, TypeVar

from balancer.core.connection import Flow, Handshake, Hello
from balancer.core.service import Node, Service, Services, make_node
from balancer.ebpf.abi import FLOW, HELLO, VERIFIED, FlowRow, HelloRow, VerifiedRow
from common.bpf.abi import FLOW_ID, NO_SCALE, OPTION_SACK, OPTION_TIMESTAMPS, FlowId
from common.bpf.activity import cell_of, from_cell
from common.bpf.maps import HashMap, Update
from common.tables import TableFullError
from common.wire.segment import FlowKey, flow_key
from common.wire.tcp_options import SynOptions, Timestamps

Value = TypeVar("Value")
_INDEX_AT = FLOW_ID.at("vip_index")
_NODE_AT = FLOW.at("node")


class Keys:
    """`FlowKey`, client to VIP, as the maps have it."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def pack(self, key: FlowKey) -> bytes | None:
        """None where there is no such service."""
        service = self._services.of_client(key)
        return None if service is None else map_key(key[:4], key[8:10], service.vip_index)

    def unpack(self, data: bytes) -> FlowKey | None:
        packed = FLOW_ID.unpack(data)
        service = self._services.of_index(packed.vip_index)
        if service is None:
            return None
        port = int.from_bytes(packed.client_port, "big")
        return flow_key(packed.client, port, service.vip, service.port)


def map_key(client: bytes, client_port: bytes, vip_index: int) -> bytes:
    return FLOW_ID.pack(FlowId(client, client_port, vip_index))


def _keys_in(entries: HashMap, keys: Keys) -> Iterator[FlowKey]:
    """Those of services that there are."""
    unpacked = (keys.unpack(packed) for packed, _ in entries.items())
    return (key for key in unpacked if key is not None)


class MapFlowTable:
    """`balancer.core.flow_table.FlowTable`. The sweeping program forgets idle flows."""

    def __init__(self, flows: HashMap, services: Services) -> None:
        self._map = flows
        self._keys = Keys(services)
        self._services = services
        self._nodes: dict[int, _NodesOf] = {}

    def get(self, key: FlowKey) -> Flow | None:
        packed = self._keys.pack(key)
        data = None if packed is None else self._map.lookup(packed)
        return None if data is None else self._flow(key, FLOW.unpack(data))

    def put_if_absent(self, key: FlowKey, value: Flow) -> Flow:
        packed, row = self._demand(key), FLOW.pack(row_of(value))
        while not self._map.update(packed, row, Update.NOEXIST):
            if (first := self.get(key)) is not None:
                return first
        return value

    def replace(self, key: FlowKey, value: Flow) -> None:
        """A flow that the sweeping program has forgotten since it was looked up stays forgotten."""
        self._map.update(self._demand(key), FLOW.pack(row_of(value)), Update.EXIST)

    def delete(self, key: FlowKey) -> None:
        packed = self._keys.pack(key)
        if packed is not None:
            self._map.delete(packed)

    def attend(self, key: FlowKey, flow: Flow) -> None:
        """Activity is a copy here, so it is written back, unless the flow has gone meanwhile."""
        self.replace(key, flow)

    def expire(self, now: float) -> None:
        """The sweeping program does it."""

    def next_deadline(self) -> float | None:
        return None

    def items(self) -> Iterator[tuple[FlowKey, Flow]]:
        for packed, data in self._map.items():
            key = self._keys.unpack(packed)
            if key is not None:
                yield key, self._flow(key, FLOW.unpack(data))

    def keys(self) -> Iterator[FlowKey]:
        return _keys_in(self._map, self._keys)

    def take_of_node(self, vip_index: int, node: bytes) -> Iterator[tuple[FlowKey, Flow]]:
        """Forget the flows of one service at one node."""
        for packed, data in self._map.items():
            if packed[_INDEX_AT] != vip_index or data[_NODE_AT : _NODE_AT + 4] != node:
                continue
            key = self._keys.unpack(packed)
            if key is not None and self._map.delete(packed):
                yield key, self._flow(key, FLOW.unpack(data))

    def __len__(self) -> int:
        """Walks through the whole map."""
        return self._map.count()

    def _demand(self, key: FlowKey) -> bytes:
        packed = self._keys.pack(key)
        if packed is None:
            raise KeyError(key)
        return packed

    def _flow(self, key: FlowKey, row: FlowRow) -> Flow:
        node = self._node(key, row.node)
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

    def _node(self, key: FlowKey, address: bytes) -> Node:
        service = self._services.of_client(key)
        if service is None:
            raise KeyError(key)
        nodes = self._nodes.get(service.vip_index)
        if nodes is None or nodes.service is not service:
            nodes = self._nodes[service.vip_index] = _NodesOf(service)
        return nodes.at(address)


class _NodesOf:
    """A service's nodes by bridge address."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._nodes = {node.address: node for node in service.nodes.values()}

    def at(self, address: bytes) -> Node:
        """A node that is not configured any more keeps its flows."""
        node = self._nodes.get(address)
        if node is None:
            name = ".".join(map(str, address))
            vip, port, index = self.service[:3]
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

    def __init__(self, entries: HashMap, services: Services, lifetime: float) -> None:
        """``lifetime`` is in seconds."""
        self.lifetime = lifetime
        self._map = entries
        self._keys = Keys(services)
        self._now = 0.0

    def get(self, key: FlowKey) -> Value | None:
        packed = self._keys.pack(key)
        data = None if packed is None else self._map.lookup(packed)
        if data is None:
            return None
        value, since = self.unpack(data)
        return value if self._now < since + self.lifetime else None

    def put(self, key: FlowKey, value: Value, now: float) -> bool:
        self._now = now
        packed = self._keys.pack(key)
        if packed is None:
            return False
        known = self._map.lookup(packed)
        since = now if known is None else self.unpack(known)[1]
        if now >= since + self.lifetime:
            since = now
        try:
            return self._map.update(packed, self.pack(value, int(since)))
        except TableFullError:
            return False

    def delete(self, key: FlowKey) -> None:
        packed = self._keys.pack(key)
        if packed is not None:
            self._map.delete(packed)

    def keys(self) -> Iterator[FlowKey]:
        return _keys_in(self._map, self._keys)

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
