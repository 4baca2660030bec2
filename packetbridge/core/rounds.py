"""Which flows to look at now and then, where most do nothing for hours.

`common.deadlines` is exact, at some 130 bytes a key. Of the very many flows that have hours to go it is
enough to see each once a round, which costs 8. Keys are spread over the round's turns by their hash, so that
a key that is added again falls into the same turn.
"""

import math
import zlib

from common.wire.segment import FlowKey

ROUND_SECONDS = 64
"""One turn a second."""


class Rounds:
    def __init__(self) -> None:
        self._turns: list[list[FlowKey]] = [[] for _ in range(ROUND_SECONDS)]
        self._count = 0
        self._next_turn: int | None = None
        """In seconds. None while there are no keys."""

    def add(self, key: FlowKey, now: float) -> None:
        """The key comes up once within the next round."""
        if self._next_turn is None:
            self._next_turn = math.floor(now) + 1
        self._turns[zlib.crc32(key) % ROUND_SECONDS].append(key)
        self._count += 1

    def due(self, now: float) -> list[FlowKey]:
        """Remove and return the keys whose turn it is, each once."""
        if self._next_turn is None or self._next_turn > now:
            return []
        keys: dict[FlowKey, None] = {}
        last = math.floor(now)
        for second in range(max(self._next_turn, last - ROUND_SECONDS + 1), last + 1):
            turn = second % ROUND_SECONDS
            keys.update(dict.fromkeys(self._turns[turn]))
            self._count -= len(self._turns[turn])
            self._turns[turn] = []
        self._next_turn = last + 1 if self._count else None
        return list(keys)

    def next_deadline(self) -> float | None:
        return self._next_turn
