"""What an operator may ask and tell either daemon while it runs (docs/control.md)."""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import trio

from common.commands import Arguments, Flow, Flows
from common.config import ConfigError, Endpoint, parse_address, parse_endpoint
from common.control import Command
from common.engine import Counts, Engine
from common.reports import FlowReport, Report

_BATCH = 256
"""Flows looked through before packets have their turn."""


class Desk(NamedTuple):
    """What the daemon contributes to its commands."""

    engine: Engine[Any]
    report: Callable[[], Report]
    reload: Callable[[], Iterable[str]]
    """Says what has changed; `ConfigError` or `HostError`, and nothing has."""
    nodes_called: Callable[[str], set[str]]
    """Bridge addresses, in dotted decimals, of a node's name; `ConfigError` where nobody has it."""
    indexes_of: Callable[[str | None], list[int]]
    """VIP indexes of ADDR:PORT, or all; `ConfigError` where there is no such VIP."""


def common_commands(desk: Desk) -> dict[str, Command]:
    """All but `flow`, which each daemon answers in its own way."""

    async def status(_: Arguments) -> Report:
        return desk.report()

    async def counters(_: Arguments) -> Counts:
        return {**desk.engine.sizes(), **desk.engine.counters()}

    async def reload(_: Arguments) -> AsyncGenerator[str, None]:
        for line in desk.reload():
            yield line

    def flows(wanted: Flows) -> AsyncGenerator[FlowReport, None]:
        return matching_flows(desk, wanted)

    return {
        "status": Command(Arguments, status),
        "counters": Command(Arguments, counters),
        "reload": Command(Arguments, reload),
        "flows": Command(Flows, flows),
    }


async def matching_flows(desk: Desk, wanted: Flows) -> AsyncGenerator[FlowReport, None]:
    client = None if wanted.client is None else str(parse_address(wanted.client))
    nodes = None if wanted.node is None else _addresses(desk, wanted.node)
    found = 0
    for number, flow in enumerate(desk.engine.flows()):
        if number % _BATCH == 0:
            await trio.lowlevel.checkpoint()
        if client not in (None, flow.client) or (nodes is not None and flow.node not in nodes):
            continue
        yield flow
        found += 1
        if found == wanted.limit:
            return


def _addresses(desk: Desk, node: str) -> set[str]:
    """Of a node, by its name or one of them itself: a node that is not configured any more may have flows."""
    try:
        return {str(parse_address(node))}
    except ConfigError:
        return desk.nodes_called(node)


def find_flows(desk: Desk, wanted: Flow) -> Iterator[FlowReport]:
    """Of the client's address and port, to each VIP that is meant."""
    client = parse_address(wanted.client).packed
    for index in desk.indexes_of(wanted.vip):
        flow = desk.engine.find(client, wanted.port, index)
        if flow is not None:
            yield flow


def indexes_of(vip: str | None, served: Mapping[Endpoint, int]) -> list[int]:
    """For `Desk.indexes_of`; ``served`` are VIP indexes by VIP."""
    if vip is None:
        return list(served.values())
    wanted = parse_endpoint(vip)
    if wanted not in served:
        raise ConfigError(f"there is no VIP {wanted}; there are {', '.join(map(str, served))}")
    return [served[wanted]]
