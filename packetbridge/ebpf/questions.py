"""Idle flows, about which the kernel is asked: has the backend still a socket? (map `questions`)"""

import threading
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import trio

from common.bpf.maps import HashMap
from common.counters import Counters
from common.net.errors import HostError
from common.net.sock_diag import SocketQuery
from common.threads import in_thread
from common.wire.segment import FlowKey
from packetbridge.core.service import Service
from packetbridge.ebpf.abi import FlowRow
from packetbridge.ebpf.flows import MapFlows, backend_key, index_of

_PAUSE_SECONDS = 1.0


class Question(NamedTuple):
    key: bytes
    """Of the map of flows."""
    row: FlowRow | None
    """As the flow is, idle."""
    flow: FlowKey | None
    """Backend to client; None where its service is gone."""


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
        self._asking = threading.Lock()

    async def run(self) -> None:
        """For ever. The kernel takes its time for many flows, so it is asked beside the packet loop."""
        while True:
            if questions := self.take():
                existing = await in_thread(partial(self.existing, flows_of(questions)))
                self.settle(questions, existing, time.monotonic())
            await trio.sleep(_PAUSE_SECONDS)

    def take(self) -> list[Question]:
        """Those that are in the map, which are then answered by the caller."""
        questions = []
        for key, _ in list(self._questions.items()):
            self._questions.delete(key)
            service = self._services.get(index_of(key))
            flow = backend_key(service, key) if service else None
            questions.append(Question(key, self._flows.row(key), flow))
        return questions

    def settle(self, questions: Sequence[Question], existing: Container[FlowKey], now: float) -> None:
        """``now`` is seconds of the monotonic clock. A flow that has changed since its question was taken, or
        is another by now, is not idle.
        """
        for key, row, flow in questions:
            if flow in existing:
                self._counters["socket_exists"] += 1
                answer = self._flows.revive
            else:
                self._counters["socket_gone"] += 1
                answer = self._flows.bury
            if self._flows.row(key) == row:
                answer(key, now)

    def existing(self, keys: Sequence[FlowKey]) -> set[FlowKey]:
        """Idle flows of which the kernel says nothing are kept: it is asked again later. For any thread."""
        try:
            with self._asking:
                return self._query.existing(keys)
        except HostError:
            self._counters["socket_query_failed"] += 1
            return set(keys)


def flows_of(questions: Iterable[Question]) -> list[FlowKey]:
    return [question.flow for question in questions if question.flow]
