"""What the packetbridge answers at its control socket."""

from collections.abc import AsyncGenerator

from common.commands import Flow
from common.console import Desk, common_commands, find_flows
from common.control import Command
from common.reports import FlowSide


def packetbridge_commands(desk: Desk) -> dict[str, Command]:
    async def flow(wanted: Flow) -> AsyncGenerator[FlowSide, None]:
        for found in find_flows(desk, wanted):
            yield FlowSide("packetbridge", found.node, found)

    return {**common_commands(desk), "flow": Command(Flow, flow)}
