"""How often something may happen."""


class TokenBucket:
    """At most ``burst`` times at once and ``rate`` times a second in the long run."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled = float("-inf")

    def take(self, now: float) -> bool:
        """Whether it may happen ``now``; if so, it counts as done."""
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
