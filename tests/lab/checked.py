"""Balancers that check their nodes, as a configuration file has them, and what they say of the nodes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import msgspec

from common.control_client import ask
from common.reports import BalancerReport, ChannelReport, CheckReport, NodeReport, PacketbridgeReport
from lab import Host, Lab, Process
from tests.lab.sockets import await_that

ALL = ("node1", "node2", "node3")
BALANCER = "balancer"
CHECK_SOURCE = "10.33.0.2"
"""The balancer's address on its way to the nodes."""
PATIENCE_SECONDS = 30.0
NOTHING: Mapping[str, Any] = MappingProxyType({})
QUICK = MappingProxyType({"interval": 0.5, "timeout": 0.5, "rise": 1, "fall": 2})
"""And such that no node fails on account of a busy machine."""


def configuration(
    lab: Lab,
    *,
    pool: Mapping[str, Any] = NOTHING,
    health: Mapping[str, Any] | None = NOTHING,
) -> str:
    """The topology's service, with these keys in the tables besides. Checks are in quick succession, or off
    where ``health`` is None.
    """
    service = lab.topology.service
    switch = {"health": "off"} if health is None else {}
    tables = [
        _keys({"name": "nodes", **pool, **switch}, "[[pool]]"),
        "" if health is None else _keys({**QUICK, **health}, "[pool.health]"),
        *(_keys({"name": n.name, "address": str(n.bridge)}, "[[pool.node]]") for n in lab.topology.nodes),
        _keys(
            {"name": "www", "listen": f"{service.vip}:{service.port}", "dscp": service.dscp}, "[[service]]"
        ),
    ]
    return "\n".join(tables)


def start(lab: Lab, **tables: Any) -> Process:
    """The balancer, with the `configuration` of these tables."""
    return lab.start_configured(lab.balancer, BALANCER, configuration(lab, **tables))


def reconfigure(lab: Lab, **tables: Any) -> None:
    lab.configuration_file(lab.balancer, BALANCER).write_text(configuration(lab, **tables))
    lab.tool(lab.balancer, "reload")


@contextmanager
def configured(lab: Lab, **tables: Any) -> Iterator[None]:
    """Meanwhile; afterwards it is as `configuration` says by itself."""
    reconfigure(lab, **tables)
    try:
        yield
    finally:
        reconfigure(lab)
        await_all_up(lab)


def report(lab: Lab) -> BalancerReport:
    (said,) = _ask(lab.balancer, "status", BalancerReport)
    assert isinstance(said, BalancerReport)
    return said


def nodes(lab: Lab) -> dict[str, NodeReport]:
    (service,) = report(lab).services
    return {node.name: node for node in service.nodes}


def checks(lab: Lab) -> dict[str, CheckReport]:
    """The last one of each node that was checked."""
    return {check.node: check for check in _ask(lab.balancer, "checks", CheckReport)}


def channels(lab: Lab) -> dict[str, ChannelReport]:
    return {channel.node: channel for channel in _ask(lab.balancer, "channels", ChannelReport)}


def await_state(lab: Lab, node: str, state: str) -> None:
    await_that(lambda: nodes(lab)[node].state == state, PATIENCE_SECONDS)


def await_all_up(lab: Lab, names: Sequence[str] = ALL, *, channel: str = "ok") -> None:
    """Each with a check that has passed, where it is checked, and a channel in this state."""

    def is_so() -> bool:
        failed = {check.node for check in checks(lab).values() if not check.ok}
        found, told = nodes(lab), channels(lab)
        return all(found[n].state == "up" and told[n].state == channel and n not in failed for n in names)

    await_that(is_so, PATIENCE_SECONDS)


@contextmanager
def ruled(host: Host, hook: str, *rules: str, kind: str = "filter") -> Iterator[None]:
    """With nftables rules of family ip in a chain of this hook: `forward`, `postrouting`, `input`."""
    host.run(["nft", "add", "table", "ip", "breakage"])
    chain = f"{{ type {kind} hook {hook} priority -150; }}"
    host.run(["nft", "add", "chain", "ip", "breakage", hook, chain])
    try:
        for rule in rules:
            host.run(["nft", "add", "rule", "ip", "breakage", hook, *rule.split()])
        yield
    finally:
        host.run(["nft", "delete", "table", "ip", "breakage"])


@contextmanager
def checks_dropped(lab: Lab, *names: str) -> Iterator[None]:
    """In the router, on the way to these nodes; what clients say still passes."""
    bridges = ", ".join(str(lab.topology.node(name).bridge) for name in names)
    with ruled(
        lab.router, "forward", f"ip saddr {CHECK_SOURCE} ip daddr {{ {bridges} }} meta l4proto tcp drop"
    ):
        yield


@contextmanager
def operated(lab: Lab, command: str, node: str, undoing: str) -> Iterator[None]:
    """The operator has said so of the node, meanwhile."""
    lab.tool(lab.balancer, command, node)
    try:
        yield
    finally:
        lab.tool(lab.balancer, undoing, node)


def node_flows(host: Host) -> int:
    """By its packetbridge's own report, of all VIPs."""
    (said,) = _ask(host, "status", PacketbridgeReport, "packetbridge")
    return sum(vip.flows for vip in said.vips)


def _ask(host: Host, command: str, kind: Any, daemon: str = BALANCER) -> list[Any]:
    answers = ask(host.state_directory / f"{daemon}.sock", command)
    return [msgspec.convert(answer, kind, strict=False) for answer in answers]


def _keys(values: Mapping[str, Any], header: str = "") -> str:
    return "\n".join([header, *(f"{key} = {_written(value)}" for key, value in values.items()), ""])


def _written(value: Any) -> str:
    """As TOML has it."""
    return msgspec.json.encode(value).decode()
