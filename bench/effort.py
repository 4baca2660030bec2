"""How long everything is measured: bounded in count and in time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int
    downloads: int
    """Of 100 MiB each, for one reading."""
    load_seconds: int
    """For one reading of a request rate."""
    fresh_connections: int
    """One after the other, for one reading of their time."""
    idle_flows: int
    starts: int


FULL = Effort(rounds=5, downloads=5, load_seconds=3, fresh_connections=200, idle_flows=50_000, starts=5)
QUICK = Effort(rounds=2, downloads=3, load_seconds=1, fresh_connections=100, idle_flows=20_000, starts=2)
