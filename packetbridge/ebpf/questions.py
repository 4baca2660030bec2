"""Idle flows, about which the kernel is asked: has the backend still a socket? (map `questions`)"""

import time
from collections.abc import Mapping, Sequence

import trio

from common.bpf.maps import HashMap
from common.counters import Counters
from common.net.errors import HostError
from common.net.sock_diag import SocketQuery
from common.wire.segment import FlowKey
from packetbridge.core.service import Service
from packetbridge.ebpf.flows import MapFlows, backend_key, index_of

_PAUSE_SECONDS = 1.0


class Questions:
    def __init__(
        self,
        questions: HashMap,
        query: SocketQuery,
        services: Mapping[int, Service],
        flows: MapFlows,
        counters: Counters[str],
    ) -> None:
        self._questions = questions
        self._query = query
        self._services = services
        self._flows = flows
        self._counters = counters

    async def run(self) -> None:
        """For ever."""
        while True:
            self.answer_all(time.monotonic())
            await trio.sleep(_PAUSE_SECONDS)

    def answer_all(self, now: float) -> None:
        """``now`` is seconds of the monotonic clock."""
        asked: dict[bytes, FlowKey | None] = {}
        for key, _ in list(self._questions.items()):
            self._questions.delete(key)
            service = self._services.get(index_of(key))
            asked[key] = backend_key(service, key) if service else None
        existing = self.existing([flow for flow in asked.values() if flow])
        for key, flow in asked.items():
            if flow not in existing:
                self._counters["socket_gone"] += 1
                self._flows.bury(key, now)
            else:
                self._counters["socket_exists"] += 1
                self._flows.revive(key, now)

    def existing(self, keys: Sequence[FlowKey]) -> set[FlowKey]:
        """Idle flows of which the kernel says nothing are kept: it is asked again later."""
        try:
            return self._query.existing(keys)
        except HostError:
            self._counters["socket_query_failed"] += 1
            return set(keys)
