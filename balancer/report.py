"""The balancer's report on itself (`common.reports.BalancerReport`)."""

import time
from collections.abc import Callable

from balancer.channel import Channels
from balancer.core.channel import NodeWord, State
from balancer.core.roster import MemberState
from balancer.director import Director, Served
from balancer.engine import BalancerEngine
from common.engine import Counts
from common.log import lost_lines
from common.release import RELEASE
from common.reports import BalancerReport, ChannelReport, NodeReport, ServiceReport
from common.sparingly import Sparingly

CLOCK_WARNING_SECONDS = 20.0
"""Handoffs that are a minute off are refused."""


class Reporter:
    def __init__(
        self,
        plane: BalancerEngine,
        director: Director,
        channels: Channels,
        counters: Callable[[], Counts],
        problems: Callable[[], list[str]],
    ) -> None:
        """``counters`` are the daemon's beside the data plane's, ``problems`` what concerns no node."""
        self._engine = plane.engine
        self._director = director
        self._channels = channels
        self._counters = counters
        self._problems = problems
        self._sizes = Sparingly(plane.engine.sizes)
        self._began = time.monotonic()

    def report(self) -> BalancerReport:
        served = list(self._director.served.values())
        return BalancerReport(
            version=RELEASE,
            engine=self._engine.name,
            uptime=time.monotonic() - self._began,
            generation=self._director.generation,
            services=[self._service(each) for each in served],
            counters={**self._engine.counters(), **self._counters(), "log_lines_lost": lost_lines()},
            sizes=dict(self._sizes()),
            warnings=self._warnings(served),
        )

    def node(self, name: str) -> list[NodeReport]:
        """Of each service that has it."""
        return [
            self._node(served, state)
            for served in self._director.served.values()
            for state in self._director.states(served)
            if state.name == name
        ]

    def differences(self, name: str) -> list[str]:
        """Where a node's packetbridge and this balancer are not made for each other, by its last report."""
        word = self._channels.word(name)
        return [*word.release_problems(RELEASE), *self._vip_map_problems(word)]

    def channels(self) -> list[ChannelReport]:
        now = time.monotonic()
        reports = []
        for name, address in self._nodes().items():
            word = self._channels.word(name)
            reports.append(
                ChannelReport(
                    node=name,
                    address=address,
                    state=word.state.value,
                    text=word.text,
                    since=now - word.since,
                    version=_version(word),
                    round_trip=word.round_trip,
                    clock_offset=word.clock_offset,
                    vip_map_problems=self._vip_map_problems(word),
                    dscp_seen=dict(word.dscp_seen),
                )
            )
        return reports

    def _service(self, served: Served) -> ServiceReport:
        config = served.config
        return ServiceReport(
            name=config.name,
            vip=str(config.vip),
            vip_index=config.index,
            hash_key=str(config.key),
            load_factor=config.pool.load_factor,
            nodes=[self._node(served, state) for state in self._director.states(served)],
        )

    def _node(self, served: Served, state: MemberState) -> NodeReport:
        index = served.config.index
        word = self._channels.word(state.name)
        facts = word.report.facts if word.report is not None and word.state is State.OK else None
        flows = {vip.vip_index: vip.flows for vip in facts.vips} if facts else {}
        handed, rate = self._director.handed(index, state.address)
        return NodeReport(
            name=state.name,
            address=".".join(map(str, state.address)),
            state=state.state,
            reason=state.reason,
            weight=state.weight,
            effective_weight=state.effective_weight,
            share=served.shares.get(state.name, 0.0),
            flows=flows.get(index),
            bytes_to_clients=facts.bytes_to_clients if facts else None,
            handoffs=handed,
            handoffs_per_second=rate,
            channel=word.text,
            version=_version(word),
            checked=state.checked,
        )

    def _warnings(self, served: list[Served]) -> list[str]:
        warnings = [warning for each in served if (warning := self._need(each))]
        warnings += self._problems()
        for name in self._nodes():
            word = self._channels.word(name)
            if word.state not in (State.OK, State.UNKNOWN):
                warnings.append(f"channel to node {name}: {word.text}")
            warnings += self.differences(name)
            warnings += word.marking_problems()
            ahead = word.clock_offset if word.state is State.OK else None
            if ahead is not None and abs(ahead) > CLOCK_WARNING_SECONDS:
                warnings.append(f"the clock of node {name} is {ahead:+.0f} s off")
        return warnings

    def _need(self, served: Served) -> str:
        """What is wrong with a service of which no node is up; empty where one is."""
        name = served.config.name
        if not any(served.weights.values()):
            return f"service {name}: no node is open to new connections"
        if not any(state.state == "up" for state in self._director.states(served)):
            return f"service {name}: no node is up, new connections go to those that are down"
        return ""

    def _vip_map_problems(self, word: NodeWord) -> list[str]:
        having = (
            served.service for served in self._director.served.values() if word.node in served.service.nodes
        )
        return word.vip_map_problems(having)

    def _nodes(self) -> dict[str, str]:
        """Addresses by name."""
        return {
            node.name: str(node.address)
            for served in self._director.served.values()
            for node in served.config.pool.nodes
        }


def _version(word: NodeWord) -> str:
    return word.report.facts.release if word.report is not None else ""
