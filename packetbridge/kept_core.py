"""The core with what it asks of the host: a journal of its flows, and the kernel's word on sockets."""

import logging
from collections.abc import Sequence

from common.net.errors import HostError
from common.net.sock_diag import SocketQuery
from common.wire.offload import Packet
from common.wire.segment import FlowKey
from packetbridge.core.engine import PacketbridgeCore
from packetbridge.core.service import Service
from packetbridge.journal import Journal, restore_all


class KeptCore:
    def __init__(self, core: PacketbridgeCore, journal: Journal, query: SocketQuery) -> None:
        self._core = core
        self._journal = journal
        self._query = query
        self.next_deadline = core.next_deadline

    def from_balancer(self, packet: Packet, now: float) -> list[Packet]:
        packets = self._core.from_balancer(packet, now)
        self._write_down()
        return packets

    def from_backend(self, packet: Packet, now: float) -> list[Packet]:
        packets = self._core.from_backend(packet, now)
        self._write_down()
        return packets

    def serve(self, services: Sequence[Service], now: float) -> int:
        """As `PacketbridgeCore.serve`."""
        ended = self._core.serve(services, now)
        self._write_down()
        return ended

    def on_timeout(self, now: float) -> list[Packet]:
        packets, questions = self._core.on_timeout(now)
        existing = self._existing(questions)
        for key in questions:
            packets += self._core.socket_exists(key, key in existing, now)
        self._write_down()
        return packets

    def restore(self, now: float, logger: logging.Logger) -> list[Packet]:
        """Splice what flows the last packetbridge left, as far as their sockets live; probe the others."""
        packets = restore_all(
            self._journal,
            self._query.existing,
            lambda saved, exists: self._core.restore(saved, now, exists),
            logger,
        )
        self._write_down()
        return packets

    def _existing(self, keys: Sequence[FlowKey]) -> set[FlowKey]:
        """Idle flows of which the kernel says nothing are kept: it is asked again later."""
        try:
            return self._query.existing(keys)
        except HostError:
            self._core.counters["socket_query_failed"] += 1
            return set(keys)

    def _write_down(self) -> None:
        if self._core.journal:
            self._journal.note(self._core.journal)
            self._core.journal.clear()
