"""What the programs leave to Python: the core, and which connections are Python's no longer after it."""

from collections.abc import Callable

import trio

from balancer.core.engine import BalancerCore
from balancer.core.flow_table import Tables
from balancer.ebpf.tables import Keys
from common.bpf.maps import HashMap
from common.wire.ipv4 import PROTOCOL_TCP, carries
from common.wire.offload import Packet
from common.wire.segment import FLOW_KEY_AT, FLOW_KEY_END, FlowKey

_PATROL_SECONDS = 1.0


class PassedUp:
    def __init__(self, core: BalancerCore, tables: Tables, claims: HashMap) -> None:
        self.next_deadline: Callable[[], float | None] = core.next_deadline
        self._core = core
        self._tables = tables
        self._claims = claims
        self._keys = Keys(core.services)

    def receive(self, packet: Packet, now: float) -> list[Packet]:
        self._tables.verified.expire(now)
        self._tables.half_open.expire(now)
        packets = self._core.receive(packet, now)
        if carries(packet.data, PROTOCOL_TCP):
            self._release(packet.data[FLOW_KEY_AT:FLOW_KEY_END])
        return packets

    def on_timeout(self, now: float) -> list[Packet]:
        return self._core.on_timeout(now)

    async def patrol(self) -> None:
        """For ever: claims of connections that Python has forgotten, or never knew, are taken back."""
        before: set[tuple[bytes, bytes]] = set()
        while True:
            await trio.sleep(_PATROL_SECONDS)
            claimed = set(self._claims.items())
            for packed, _ in claimed & before:
                key = self._keys.unpack(packed)
                if key is None:  # its service is gone
                    self._claims.delete(packed)
                else:
                    self._release(key)
            before = claimed

    def _release(self, key: FlowKey) -> None:
        packed = self._keys.pack(key)
        if packed is not None and not self._core.owns(key):
            self._claims.delete(packed)
