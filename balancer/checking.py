"""Health checks as the configuration wants them: targets for the prober, and the last verdicts."""

import time
from collections.abc import Iterator
from typing import NamedTuple

from balancer.core.probe import Check, CheckResult, make_request
from balancer.director import Director, Served
from balancer.document import NodeConfig
from balancer.prober import Target
from common.release import RELEASE
from common.reports import CheckReport


class Verdict(NamedTuple):
    result: CheckResult
    at: float
    """Monotonic seconds."""


class Verdicts:
    """The last one of each node, by VIP index and bridge address."""

    def __init__(self, director: Director) -> None:
        self._director = director
        self._latest: dict[tuple[int, bytes], Verdict] = {}

    def take(self, vip_index: int, address: bytes, result: CheckResult) -> None:
        self._latest[vip_index, address] = Verdict(result, time.monotonic())
        self._director.check_result(vip_index, address, result)

    def forget_strangers(self) -> None:
        """Those of nodes that are not configured any more."""
        served = self._director.served.items()
        present = {(index, node.address.packed) for index, each in served for node in each.config.pool.nodes}
        self._latest = {key: verdict for key, verdict in self._latest.items() if key in present}

    def reports(self) -> Iterator[CheckReport]:
        now = time.monotonic()
        for index, served in self._director.served.items():
            for node in served.config.pool.nodes:
                verdict = self._latest.get((index, node.address.packed))
                if verdict is not None:
                    yield _report(served.config.name, node.name, verdict, now)


def targets(director: Director) -> list[Target]:
    """All nodes that are to be checked now, by each of their services."""
    return [
        _target(served, node)
        for index, served in director.served.items()
        for node in served.config.pool.nodes
        if director.is_to_be_checked(index, node.name)
    ]


def _target(served: Served, node: NodeConfig) -> Target:
    vip, health = served.config.vip, served.config.pool.health
    assert health is not None
    host = health.host or (str(vip.address) if vip.port == 80 else str(vip))
    check = Check(
        vip=vip.address.packed,
        vip_port=vip.port,
        vip_index=served.config.index,
        node=node.address.packed,
        request=make_request(health.path, host, RELEASE),
        expect=health.expect,
        timeout=health.timeout,
    )
    return Target(node.name, check, health.interval, health.source)


def _report(service: str, node: str, verdict: Verdict, now: float) -> CheckReport:
    result = verdict.result
    failure = "" if result.failure is None else result.failure.name.lower()
    return CheckReport(service, node, result.ok, failure, result.text, result.seconds, now - verdict.at)
