"""What the balancer is configured to do, as the core sees it."""

from collections.abc import Iterable, Iterator
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from common.hashing.maglev import DEFAULT_SIZE, LookupTable, build
from common.hashing.request_key import DEFAULT_KEY_SPEC, DEFAULT_TARGET_LIMIT, KeySpec
from common.wire import handoff, rewrite
from common.wire.rewrite import Rewrite
from common.wire.segment import FlowKey, key_ports

_KEPT_TABLES = 64
"""Of 128 KiB each."""
Endpoint = tuple[bytes, int]
"""VIP, 4 bytes, and port."""


class NonHttp(Enum):
    """What becomes of a connection whose first bytes are not HTTP."""

    RESET = "reset"
    HASH = "hash"
    """It goes to the node of its 4-tuple."""


class Node(NamedTuple):
    """A node and how its flows' packets are rewritten: one value, shared by all of them."""

    name: str
    address: bytes
    """Bridge address, 4 bytes."""
    plan: Rewrite


class Service(NamedTuple):
    """One VIP and port with the nodes behind it."""

    vip: bytes
    port: int
    vip_index: int
    """1 to 63, travels as the DSCP."""
    nodes: dict[str, Node]
    table: LookupTable | None
    """None where no node can take a connection."""
    key: KeySpec = DEFAULT_KEY_SPEC
    hash_seed: int = 0
    non_http: NonHttp = NonHttp.RESET
    promised_scale: int = 7
    max_payload: int = handoff.MAX_PAYLOAD
    """Payload bytes of a handoff that fit into the smallest path MTU to any node."""
    target_limit: int = DEFAULT_TARGET_LIMIT
    weights: dict[bytes, int] = {}  # noqa: RUF012 - never changed
    """What `table` is made with, by bridge address. A node that is not in it, or has 0, gets no new flows."""
    load_factor: int = 0
    """How much more than its share a node may have, in 1/256 (`loads.FACTOR_ONE`); 0: as much as comes."""

    @property
    def endpoint(self) -> Endpoint:
        return self.vip, self.port

    def has(self, key: FlowKey) -> bool:
        """Whether a connection is one of its; ``key`` is client to VIP."""
        return key[4:8] == self.vip and key_ports(key)[1] == self.port

    @property
    def preamble_window(self) -> int:
        """Bytes that a client may send before a node answers: ten segments."""
        return 10 * self.max_payload


def keys_among(keys: Iterable[FlowKey], services: Iterable[Service]) -> list[FlowKey]:
    """Those of the connections of ``services``."""
    endpoints = {service.endpoint for service in services}
    return [key for key in keys if (key[4:8], key_ports(key)[1]) in endpoints]


class Services:
    """All services, by what a packet says of them. Whoever holds it sees the newest ones."""

    def __init__(self, services: Iterable[Service] = ()) -> None:
        self.replace(services)

    def replace(self, services: Iterable[Service]) -> None:
        self._by_index = {service.vip_index: service for service in services}
        self._by_endpoint = {service.endpoint: service for service in self}

    def of_client(self, key: FlowKey) -> Service | None:
        """``key`` is client to VIP."""
        return self._by_endpoint.get((key[4:8], key_ports(key)[1]))

    def of_index(self, vip_index: int) -> Service | None:
        return self._by_index.get(vip_index)

    def __iter__(self) -> Iterator[Service]:
        return iter(self._by_index.values())


class Limits(NamedTuple):
    """Bounds on memory and on answers to strangers. Sizes are entries, unless they say bytes."""

    half_open: int = 65_536
    verified: int = 65_536
    collecting: int = 16_384
    collecting_bytes: int = 64 << 20
    answered: int = 16_384
    flows: int = 1_000_000
    resets_per_second: float = 1000.0


class Timeouts(NamedTuple):
    """In seconds."""

    idle: float = 7500.0
    """Of a flow that has not ended (RFC 5382 section 5: at least 2 hours 4 minutes)."""
    verified: float = 300.0
    """Of a connection whose client has said nothing yet."""
    preamble: float = 0.05
    """How long a connection's first bytes are waited for until they tell its hash key."""


DEFAULT_TIMEOUTS = Timeouts()


def make_nodes(
    vip: bytes, port: int, vip_index: int, nodes: dict[str, tuple[bytes, int]]
) -> tuple[dict[str, Node], LookupTable | None]:
    """Nodes and lookup table for name -> (bridge address, weight); a node of weight 0 gets no connections."""
    made = {name: make_node(vip, port, vip_index, name, address) for name, (address, _) in nodes.items()}
    return made, _table(frozenset((name, weight) for name, (_, weight) in nodes.items() if weight))


@lru_cache(maxsize=_KEPT_TABLES)
def _table(weights: frozenset[tuple[str, int]]) -> LookupTable | None:
    """Services of one pool have one table, and nodes that return the one that they had."""
    return build(dict(weights), DEFAULT_SIZE) if weights else None


def make_node(vip: bytes, port: int, vip_index: int, name: str, address: bytes) -> Node:
    """``address`` is the bridge address."""
    return Node(name, address, Rewrite(rewrite.to_destination((vip, port), (address, port), index=vip_index)))
