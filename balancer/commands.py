"""What the balancer answers at its control socket."""

from collections.abc import AsyncGenerator, Callable, Sequence
from ipaddress import IPv4Address
from urllib.parse import urlsplit

import msgspec
import trio

from balancer.channel import Channels
from balancer.checking import Verdicts
from balancer.core.channel import State as ChannelState
from balancer.core.explain import departures, explain
from balancer.core.machine import State
from balancer.core.roster import Admin
from balancer.director import Director, Served
from balancer.report import Reporter
from common.commands import Arguments, Explain, Flow, OfNode, Weight
from common.config import ConfigError, Endpoint, parse_endpoint
from common.console import Desk, common_commands, find_flows
from common.control import Command, CommandError
from common.reports import ChannelReport, CheckReport, Explanation, FlowReport, FlowSide, NodeReport
from common.threads import in_thread

_HTTPS_PORT = 443
_UNKNOWN = "knows no such flow"
_NO_NODE = {
    State.VERIFIED.value: "the handshake is complete, and the client has said nothing yet: it has no node",
    State.COLLECTING.value: "what the client has said does not tell the hash key yet: it has no node",
    State.ANSWERED.value: "the balancer has answered and closed it: it has no node",
}
"""What the states mean in which a connection has none."""


class BalancerCommands:
    def __init__(
        self,
        desk: Desk,
        director: Director,
        reporter: Reporter,
        channels: Channels,
        verdicts: Verdicts,
        has_directed: Callable[[], None],
    ) -> None:
        """``has_directed`` is called when the operator's word on a node was taken."""
        self._desk = desk
        self._director = director
        self._reporter = reporter
        self._channels = channels
        self._verdicts = verdicts
        self._has_directed = has_directed

    def all(self) -> dict[str, Command]:
        return {
            **common_commands(self._desk),
            "flow": Command(Flow, self._flow),
            "explain": Command(Explain, self._explain),
            "drain": Command(OfNode, self._setting(Admin.DRAIN)),
            "undrain": Command(OfNode, self._setting(Admin.READY)),
            "disable": Command(OfNode, self._setting(Admin.MAINTENANCE)),
            "enable": Command(OfNode, self._setting(Admin.READY)),
            "weight": Command(Weight, self._weight),
            "channels": Command(Arguments, self._list_channels),
            "checks": Command(Arguments, self._list_checks),
        }

    async def _flow(self, wanted: Flow) -> AsyncGenerator[FlowSide, None]:
        """Both sides of each flow that there is, and what a node knows of one that has no node here."""
        here = list(find_flows(self._desk, wanted))
        for flow in here:
            name = self._name_of(flow)
            yield FlowSide("balancer", name, flow, _NO_NODE.get(flow.state, ""))
            if flow.node:
                yield await self._side_of_node(name, flow.vip_index, wanted)
        if not any(flow.node for flow in here):
            there = await self._sides_of_nodes(wanted)
            if there and not here:
                yield FlowSide("balancer", "", None, _UNKNOWN)
            for side in there:
                yield side

    async def _sides_of_nodes(self, wanted: Flow) -> list[FlowSide]:
        """Of those that know such a flow. All are asked at once: many of them may be silent."""
        knowing: list[FlowSide] = []

        async def ask(name: str, vip_index: int) -> None:
            side = await self._side_of_node(name, vip_index, wanted)
            if side.flow is not None:
                knowing.append(side)

        async with trio.open_nursery() as nursery:
            for index in self._desk.indexes_of(wanted.vip):
                for node in self._director.served[index].config.pool.nodes:
                    nursery.start_soon(ask, node.name, index)
        return knowing

    async def _side_of_node(self, name: str, vip_index: int, wanted: Flow) -> FlowSide:
        client = IPv4Address(wanted.client).packed
        word = None
        try:
            if self._channels.word(name).state in (ChannelState.OK, ChannelState.UNKNOWN):
                word = await self._channels.ask_flow(name, vip_index, client, wanted.port)
            channel = self._channels.word(name)
        except KeyError:
            return FlowSide("packetbridge", name, None, "is not configured any more")
        if word is None:
            why = "nothing came in time" if channel.state is ChannelState.OK else channel.text
            return FlowSide("packetbridge", name, None, f"does not answer: {why}")
        return FlowSide("packetbridge", name, word.report, "" if word.report else _UNKNOWN)

    async def _explain(self, wanted: Explain) -> Explanation:
        try:
            served = self._meant(wanted)
            service = served.service
            found = explain(service, self._director.loads, served.config.name, wanted.url)
        except ValueError as error:
            raise CommandError(str(error)) from None
        leaving = await in_thread(lambda: departures(service, wanted.url))
        return msgspec.structs.replace(found, departures=leaving)

    def _setting(self, wish: Admin) -> Callable[[OfNode], AsyncGenerator[NodeReport, None]]:
        async def answer(wanted: OfNode) -> AsyncGenerator[NodeReport, None]:
            self._director.set_admin(wanted.node, wish)
            self._has_directed()
            for report in self._reporter.node(wanted.node):
                yield report

        return answer

    async def _weight(self, wanted: Weight) -> AsyncGenerator[NodeReport, None]:
        self._director.set_weight(wanted.node, wanted.weight)
        for report in self._reporter.node(wanted.node):
            yield report

    async def _list_channels(self, _: Arguments) -> AsyncGenerator[ChannelReport, None]:
        for report in self._reporter.channels():
            yield report

    async def _list_checks(self, _: Arguments) -> AsyncGenerator[CheckReport, None]:
        for report in self._verdicts.reports():
            yield report

    def _meant(self, wanted: Explain) -> Served:
        """The service that is named, or that the URL names, or the only one. `ValueError`: it is no URL."""
        served = list(self._director.served.values())
        if wanted.service is not None:
            return _only([each for each in served if each.config.name == wanted.service], served)
        named = _vip_in(wanted.url)
        if named is None:
            return _only(served, served)
        found = [each for each in served if each.config.vip == named]
        if not found:
            there = ", ".join(f"{each.config.name} at {each.config.vip}" for each in served)
            raise CommandError(f"no service listens on {named}: there are {there}; --service names one")
        return _only(found, served)

    def _name_of(self, flow: FlowReport) -> str:
        served = self._director.served.get(flow.vip_index)
        if served is not None:
            for node in served.config.pool.nodes:
                if str(node.address) == flow.node:
                    return node.name
        return flow.node


def _vip_in(url: str) -> Endpoint | None:
    """None where a URL says nothing of it, or has a name, which any service may have. `ValueError`."""
    try:
        scheme, authority, *_ = urlsplit(url)
    except ValueError:
        raise ValueError(f"{url!r} is no URL such as http://192.168.33.10/film/1.ts") from None
    try:
        named = parse_endpoint(authority)
    except ConfigError:
        return None
    return Endpoint(named.address, _HTTPS_PORT) if scheme == "https" and ":" not in authority else named


def _only(found: Sequence[Served], among: Sequence[Served]) -> Served:
    if len(found) != 1:
        names = ", ".join(each.config.name for each in among)
        raise CommandError(f"which service is meant? there are {names}")
    return found[0]
