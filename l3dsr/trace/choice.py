"""Which connections to show: a filter's words, and what has been seen of connections that they choose."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import NamedTuple

from common.config import ConfigError, parse_number
from common.wire import dscp
from common.wire.segment import Segment
from l3dsr.trace.scope import Connection, Leg, Scope, connection_of

GRAMMAR = "client ADDR[:PORT], node NODE, vip ADDR[:PORT], dscp N, handoffs"
MAX_CONNECTIONS = 4096
"""How many chosen connections are remembered; the one that was silent longest is forgotten first."""


class Filter(NamedTuple):
    """All that is not None must be so."""

    client: bytes | None = None
    client_port: int | None = None
    node: bytes | None = None
    vip: bytes | None = None
    vip_port: int | None = None
    indices: frozenset[int] | None = None
    """VIP indices: of the VIP, where that is known, or the one that was named."""
    handoffs: bool = False


def parse(words: Sequence[str], scope: Scope) -> Filter:
    """`ConfigError` for what `GRAMMAR` does not know, and for a node's name that nobody knows here."""
    chosen = Filter()
    rest = iter(words)
    for word in rest:
        match word:
            case "handoffs":
                chosen = chosen._replace(handoffs=True)
            case "client":
                address, port = _address_and_port(_argument(rest, word), word)
                chosen = chosen._replace(client=address, client_port=port)
            case "vip":
                address, port = _address_and_port(_argument(rest, word), word)
                found = {
                    index for (at, on), index in scope.vips.items() if at == address and port in (None, on)
                }
                indices = frozenset(index for index in found if index is not None)
                chosen = chosen._replace(vip=address, vip_port=port, indices=indices or chosen.indices)
            case "node":
                chosen = chosen._replace(node=_node(_argument(rest, word), scope))
            case "dscp":
                index = parse_number(_argument(rest, word), dscp.MIN_INDEX, dscp.MAX_INDEX, word)
                chosen = chosen._replace(indices=frozenset((index,)))
            case _:
                raise ConfigError(f"filter word {word!r} is none of: {GRAMMAR}")
    return chosen


def widened(scope: Scope, chosen: Filter) -> Scope:
    """With what the filter names, which no daemon of this host need know."""
    if chosen.vip is not None and not any(address == chosen.vip for address, _ in scope.vips):
        ports = [chosen.vip_port] if chosen.vip_port else [80, 443]
        scope = scope._replace(vips=scope.vips | {(chosen.vip, port): None for port in ports})
    if chosen.node is not None and scope.bridges:
        scope = scope._replace(bridges=scope.bridges | {chosen.node})
    return scope


class Chooser:
    def __init__(self, chosen: Filter) -> None:
        self._filter = chosen
        self._connections: OrderedDict[Connection, None] = OrderedDict()

    def takes(self, segment: Segment, leg: Leg, *, is_handoff: bool) -> bool:
        wanted = self._filter
        connection = connection_of(segment, leg)
        if wanted.handoffs and not is_handoff:
            return False
        if wanted.client not in (None, connection[0]) or wanted.client_port not in (None, connection[1]):
            return False
        if leg is Leg.TO_NODE:
            return self._takes_tagged(segment, connection)
        if wanted == Filter(handoffs=wanted.handoffs):
            return False
        if connection in self._connections:
            self._connections.move_to_end(connection)
            return True
        if wanted.vip is not None:
            return self._is_at_vip(segment, leg)
        return wanted.client is not None and wanted.node is None and wanted.indices is None

    def _takes_tagged(self, segment: Segment, connection: Connection) -> bool:
        wanted = self._filter
        if wanted.node not in (None, segment.destination):
            return False
        if wanted.indices is not None and dscp.index_of(segment.tos) not in wanted.indices:
            return False
        if wanted.vip is not None and wanted.indices is None:  # which DSCP stands for it is not known
            return connection in self._connections
        self._remember(connection)
        return True

    def _is_at_vip(self, segment: Segment, leg: Leg) -> bool:
        address, port = segment.destination, segment.destination_port
        if leg is Leg.FROM_VIP:
            address, port = segment.source, segment.source_port
        wanted = self._filter
        if leg.is_backend_leg or address != wanted.vip or wanted.vip_port not in (None, port):
            return False
        if wanted.node is None:
            self._remember(connection_of(segment, leg))
            return True
        return False

    def _remember(self, connection: Connection) -> None:
        self._connections[connection] = None
        self._connections.move_to_end(connection)
        if len(self._connections) > MAX_CONNECTIONS:
            self._connections.popitem(last=False)


def _argument(rest: Iterator[str], word: str) -> str:
    try:
        return next(rest)
    except StopIteration:
        raise ConfigError(f"filter word {word!r} needs something behind it: {GRAMMAR}") from None


def _address_and_port(said: str, word: str) -> tuple[bytes, int | None]:
    address, colon, port = said.partition(":")
    try:
        return IPv4Address(address).packed, parse_number(port, 1, 65535, "port") if colon else None
    except AddressValueError:
        raise ConfigError(f"{word} {said!r} is not ADDR[:PORT], such as 192.168.33.10:80") from None


def _node(said: str, scope: Scope) -> bytes:
    if said in scope.node_names:
        return scope.node_names[said]
    try:
        return IPv4Address(said).packed
    except AddressValueError:
        known = ", ".join(sorted(scope.node_names)) or "no node's name is known here: give its bridge address"
        raise ConfigError(f"node {said!r} is neither an IPv4 address nor one of: {known}") from None
