"""A lab whose daemons serve three services from files, without health checks: nothing but the tests' own
connections pass. Node1's listener adopts none, so that its flows have a seq delta; the others' may.
"""

from typing import Any

import msgspec

from common.control_client import ask
from common.reports import BalancerReport, FlowReport, FlowSide, PacketbridgeReport
from lab import Host, Lab, Process
from lab.nginx import OTHER_PORT
from tests.lab.configured import bridge, pool, service, vip
from tests.lab.sockets import await_that

MAIN, SECOND = "192.168.33.10", "192.168.33.11"
WWW, ALTERNATIVE, SECOND_WWW = f"{MAIN}:80", f"{MAIN}:8080", f"{SECOND}:80"
DSCPS = {WWW: 1, ALTERNATIVE: 33, SECOND_WWW: 63}
NAMES = {WWW: "www", ALTERNATIVE: "alternative", SECOND_WWW: "second"}
SPLICED = "node1"
"""Whose backend legs have handshakes of their own on each engine."""
NODES = ("node1", "node2", "node3")


def start_packetbridge(lab: Lab, name: str) -> Process:
    node = lab.topology.node(name)
    text = bridge(
        lab,
        name,
        vip(WWW, DSCPS[WWW], f"{node.backend}:80"),
        vip(ALTERNATIVE, DSCPS[ALTERNATIVE], f"{node.second_backend}:80"),
        vip(SECOND_WWW, DSCPS[SECOND_WWW], f"{node.backend}:{OTHER_PORT}"),
    )
    if name == SPLICED:
        text = 'adopt = "off"\n' + text
    return lab.start_configured(lab.hosts[name], "packetbridge", text)


def start(lab: Lab) -> None:
    """All daemons, and the channels between them are there."""
    for name in NODES:
        start_packetbridge(lab, name)
    text = (
        pool(lab, dict.fromkeys(NODES, 1), name="all")
        + pool(lab, {"node1": 3, "node2": 1}, name="unequal")
        + service(WWW, DSCPS[WWW], name=NAMES[WWW], pool="all")
        + service(ALTERNATIVE, DSCPS[ALTERNATIVE], name=NAMES[ALTERNATIVE], pool="unequal", hash_key="uri")
        + service(
            SECOND_WWW,
            DSCPS[SECOND_WWW],
            name=NAMES[SECOND_WWW],
            pool="all",
            hash_key="segments:1",
            hash_seed=7,
        )
    )
    lab.start_configured(lab.balancer, "balancer", text)
    await_channels(lab)


def await_channels(lab: Lab) -> None:
    await_that(
        lambda: all(node.channel == "ok" for each in balancer(lab).services for node in each.nodes), 20
    )


def balancer(lab: Lab) -> BalancerReport:
    found: list[BalancerReport] = asked(lab.balancer, "balancer", "status", BalancerReport)
    return found[0]


def packetbridge(lab: Lab, node: str) -> PacketbridgeReport:
    found: list[PacketbridgeReport] = asked(lab.hosts[node], "packetbridge", "status", PacketbridgeReport)
    return found[0]


def asked(host: Host, daemon: str, command: str, kind: Any, **arguments: Any) -> list[Any]:
    """What a daemon answers at its control socket, as values of ``kind``."""
    values = ask(host.state_directory / f"{daemon}.sock", command, **arguments)
    return [msgspec.convert(value, kind, str_keys=True) for value in values]


def lines_of(said: str, kind: Any) -> list[Any]:
    """The tool's output with --json."""
    return [msgspec.json.decode(line, type=kind) for line in said.splitlines()]


def flow_on(sides: list[FlowSide], side: str) -> FlowReport:
    (found,) = [each.flow for each in sides if each.side == side]
    assert found is not None
    return found
