"""Rates of counters that are looked at now and then."""

from collections.abc import Hashable, Mapping

WINDOW_SECONDS = 5.0


class Rates:
    """Increase by second, over about the last `WINDOW_SECONDS`."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, list[tuple[float, int]]] = {}

    def note(self, values: Mapping[Hashable, int], now: float) -> None:
        """All counters that there are: others are forgotten. They never fall, but with another run of what
        is counted.
        """
        self._seen = {key: self._seen.get(key, []) for key in values}
        for key, value in values.items():
            seen = self._seen[key]
            if seen and value < seen[-1][1]:
                seen.clear()
            seen.append((now, value))
            while len(seen) > 2 and seen[1][0] <= now - WINDOW_SECONDS:
                del seen[0]

    def of(self, key: Hashable) -> float:
        """0 while it was looked at less than twice."""
        seen = self._seen.get(key, [])
        if len(seen) < 2 or seen[-1][0] == seen[0][0]:
            return 0.0
        return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
