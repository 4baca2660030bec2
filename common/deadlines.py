"""Deadlines that move later far more often than they fall due.

Deadlines are kept in buckets of one ``resolution``. A packet that keeps its flow alive touches nothing
here: when the bucket falls due, the owner looks at the flow, and sets a later deadline if it was heard of
since.
"""

import heapq
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


def earliest(*deadlines: float | None) -> float | None:
    """The first of those that are set."""
    return min((deadline for deadline in deadlines if deadline is not None), default=None)


class Deadlines(Generic[Key]):
    """Times and ``resolution`` are seconds of the caller's monotonic clock.

    A deadline is met up to one resolution late.
    """

    def __init__(self, resolution: float) -> None:
        self._resolution = resolution
        self._bucket_of: dict[Key, int] = {}
        self._buckets: dict[int, dict[Key, None]] = {}
        self._order: list[int] = []

    def set(self, key: Key, at: float) -> None:
        """The key falls due at ``at``, whatever was set before."""
        bucket = math.ceil(at / self._resolution)
        if self._bucket_of.get(key) == bucket:
            return
        self.cancel(key)
        self._bucket_of[key] = bucket
        if bucket not in self._buckets:
            self._buckets[bucket] = {}
            heapq.heappush(self._order, bucket)
        self._buckets[bucket][key] = None

    def cancel(self, key: Key) -> None:
        bucket = self._bucket_of.pop(key, None)
        if bucket is not None:
            del self._buckets[bucket][key]

    def due(self, now: float) -> list[Key]:
        """Remove and return the keys whose deadline has come, earliest first."""
        keys: list[Key] = []
        while self._order and self._order[0] * self._resolution <= now:
            keys += self._buckets.pop(heapq.heappop(self._order))
        for key in keys:
            del self._bucket_of[key]
        return keys

    def next(self) -> float | None:
        """When to call `due` next."""
        while self._order and not self._buckets[self._order[0]]:
            del self._buckets[heapq.heappop(self._order)]
        return self._order[0] * self._resolution if self._order else None
