"""The planes. Programs are loaded once for all vectors that have the same limits."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Generic, Protocol, TypeVar

import pytest

from balancer.core.service import Limits as BalancerLimits
from packetbridge.core.service import Limits as BridgeLimits
from tests.conformance.balancer import planes as balancer_planes
from tests.conformance.loaded import own_namespace
from tests.conformance.packetbridge import planes as bridge_planes


class Closes(Protocol):
    def close(self) -> None: ...


Limits = TypeVar("Limits")
Programs = TypeVar("Programs", bound=Closes)


class Loaded(Generic[Limits, Programs]):
    def __init__(self, load: Callable[[Limits], Programs], usual: Limits) -> None:
        self._load = load
        self._usual = usual
        self._programs: dict[Limits, Programs] = {}

    def within(self, limits: Limits | None) -> Programs:
        wanted = limits or self._usual
        if wanted not in self._programs:
            self._programs[wanted] = self._load(wanted)
        return self._programs[wanted]

    def close(self) -> None:
        for each in self._programs.values():
            each.close()


LoadedBalancers = Loaded[BalancerLimits, balancer_planes.Programs]
LoadedBridges = Loaded[BridgeLimits, bridge_planes.Programs]


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.fixture(scope="module")
def balancers(namespace: None) -> Iterator[LoadedBalancers]:  # noqa: ARG001 - it is to be there
    with closing(LoadedBalancers(balancer_planes.Programs, balancer_planes.LIMITS)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def bridges(namespace: None) -> Iterator[LoadedBridges]:  # noqa: ARG001 - it is to be there
    with closing(LoadedBridges(bridge_planes.Programs, bridge_planes.LIMITS)) as loaded:
        yield loaded
