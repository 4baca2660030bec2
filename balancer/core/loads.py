"""How many flows each node has, and whether it takes one more (bounded loads: Mirrokni, Thorup and
Zadimoghaddam, SODA 2018).

With a load factor c, a node of weight w among nodes of weights W in all takes a new flow as long as it then
has at most ceil(c * (m + 1) * w / W) of the m + 1 flows. What it has is what it last said itself, and what it
has been handed since. A node that says nothing is not bounded, since nobody knows its load, and counts
neither in m nor in W.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

FACTOR_ONE = 256
"""Load factors are numbers of 1/256, so that programs in the kernel can reckon with them."""


class NodeLoad(NamedTuple):
    flows: int | None
    """None where the node does not say."""
    handed: int
    """New flows handed to it since the start."""


class Loads(Protocol):
    """Of all services, by VIP index and the nodes' bridge addresses (4 bytes)."""

    def configure(self, vip_index: int, weights: Mapping[bytes, int], factor: int) -> None:
        """The weights of a service's nodes, 0 where closed to new flows, and the load factor in 1/256;
        0: loads are not bounded.

        Numbers of nodes that stay are kept, those of others forgotten.
        """
        ...

    def forget(self, vip_index: int) -> None:
        """The service is gone."""
        ...

    def correct(self, vip_index: int, node: bytes, flows: int | None) -> None:
        """What the node says of itself now; None: it says nothing any more."""
        ...

    def of(self, vip_index: int, node: bytes) -> NodeLoad: ...

    def admits(self, vip_index: int, node: bytes) -> bool:
        """Whether it may be given one more flow."""
        ...

    def count(self, vip_index: int, node: bytes) -> None:
        """It has been handed a new flow."""
        ...


def has_room(load: int, total: int, *, weight: int, weights: int, factor: int) -> bool:
    """Whether a node with ``load`` of the ``total`` flows may have one more.

    ``load`` + 1 is at most the bound rounded up where ``load`` is below the exact one.
    """
    return load * weights * FACTOR_ONE < factor * (total + 1) * weight


class CountedLoads:
    """`Loads` in this process."""

    def __init__(self) -> None:
        self._pools: dict[int, _Pool] = {}

    def configure(self, vip_index: int, weights: Mapping[bytes, int], factor: int) -> None:
        pool = self._pools.setdefault(vip_index, _Pool())
        pool.factor = factor
        known = pool.nodes
        pool.nodes = {node: known.get(node) or _Numbers() for node in weights}
        for node, numbers in pool.nodes.items():
            numbers.weight = weights[node]
        pool.add_up()

    def forget(self, vip_index: int) -> None:
        self._pools.pop(vip_index, None)

    def correct(self, vip_index: int, node: bytes, flows: int | None) -> None:
        pool, numbers = self._find(vip_index, node)
        numbers.flows = flows
        pool.add_up()

    def of(self, vip_index: int, node: bytes) -> NodeLoad:
        _, numbers = self._find(vip_index, node)
        return NodeLoad(numbers.flows, numbers.handed)

    def admits(self, vip_index: int, node: bytes) -> bool:
        pool, numbers = self._find(vip_index, node)
        if not pool.factor or numbers.flows is None:
            return True
        return has_room(
            numbers.flows, pool.total, weight=numbers.weight, weights=pool.weights, factor=pool.factor
        )

    def count(self, vip_index: int, node: bytes) -> None:
        pool, numbers = self._find(vip_index, node)
        numbers.handed += 1
        if numbers.flows is not None:
            numbers.flows += 1
            pool.total += numbers.weight > 0

    def _find(self, vip_index: int, node: bytes) -> "tuple[_Pool, _Numbers]":
        """Blank ones, which nobody keeps, for what is not configured."""
        pool = self._pools.get(vip_index) or _Pool()
        return pool, pool.nodes.get(node) or _Numbers()


class _Numbers:
    """Of one node. It is open to new flows where its weight is above 0."""

    def __init__(self) -> None:
        self.weight = 0
        self.flows: int | None = None
        self.handed = 0


class _Pool:
    """The nodes of one service. ``total`` and ``weights`` are of those that are open and say their load."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, _Numbers] = {}
        self.factor = 0
        self.total = 0
        self.weights = 0

    def add_up(self) -> None:
        counted = [(numbers.flows, numbers.weight) for numbers in self._open() if numbers.flows is not None]
        self.total = sum(flows for flows, _ in counted)
        self.weights = sum(weight for _, weight in counted)

    def _open(self) -> Iterator[_Numbers]:
        return (numbers for numbers in self.nodes.values() if numbers.weight)
