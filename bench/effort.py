"""How long everything is measured: bounded in count and in time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScaleEffort:
    """For what is measured beyond the comparison with others: bench.scale."""

    rounds: int
    packets: int
    """For one reading of what a packet takes."""
    flood_seconds: float


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int
    mtu_rounds: int
    """With MTU-sized packets."""
    download_seconds: float
    """For one reading of downloads."""
    load_seconds: int
    """For one reading of a request rate."""
    requests: int
    """One after the other, for one reading of their time."""
    idle_flows: int
    starts: int
    scale: ScaleEffort | None
    """None: it is left out."""


FULL = Effort(
    rounds=5,
    mtu_rounds=3,
    download_seconds=2,
    load_seconds=3,
    requests=500,
    idle_flows=100_000,
    starts=5,
    scale=ScaleEffort(rounds=5, packets=200_000, flood_seconds=10),
)
QUICK = Effort(
    rounds=1,
    mtu_rounds=1,
    download_seconds=0.5,
    load_seconds=1,
    requests=100,
    idle_flows=10_000,
    starts=1,
    scale=None,
)
