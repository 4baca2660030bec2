"""The fake clock: things happen in the order of their times, then in that in which they were asked for."""

import heapq
from collections.abc import Callable


class Timeline:
    """``now`` is in seconds and moves only in `run`."""

    def __init__(self, start: float) -> None:
        self.now = start
        self._count = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []

    def call(self, at: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (max(at, self.now), self._count, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.call(self.now + seconds, action)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let at most ``seconds`` pass, fewer where ``until`` comes true. Returns whether it did."""
        end = self.now + seconds
        while not until():
            if not self._queue or self._queue[0][0] > end:
                self.now = end
                return until()
            self.now, _, action = heapq.heappop(self._queue)
            action()
        return True


class Alarm:
    """One action at a time that may be moved or cancelled."""

    def __init__(self, timeline: Timeline, action: Callable[[], None]) -> None:
        self._timeline = timeline
        self._action = action
        self._queued: float | None = None
        self.at: float | None = None

    def set(self, at: float | None) -> None:
        """None cancels."""
        self.at = at
        if at is not None and (self._queued is None or at < self._queued):
            self._queue(at)

    def _queue(self, at: float) -> None:
        self._queued = at
        self._timeline.call(at, lambda: self._ring(at))

    def _ring(self, queued: float) -> None:
        if queued != self._queued:
            return
        self._queued = None
        if self.at is None:
            return
        if self.at > self._timeline.now:
            self._queue(self.at)
            return
        self.at = None
        self._action()
