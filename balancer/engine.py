"""What the balancer's data planes have beyond those of any daemon."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from balancer.core.loads import Loads
from balancer.core.service import Service
from common.engine import Engine
from common.wire.offload import Packet


class BalancerEngine(NamedTuple):
    engine: Engine[Service]
    loads: Loads
    forget_node: Callable[[int, bytes], Iterator[Packet]]
    """Forget all flows of a VIP index at a node (4 bytes), at once. The packets, to be sent, have each client
    speak up, and what a client of an unknown flow says is answered with a reset."""
