"""Configuration files for a lab's daemons, reloads, and which node answers a URL of which VIP."""

import json
import signal
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from common.control_client import ask, ask_once
from lab import Host, Lab, Process
from tests.lab.fetch import curl
from tests.lab.sockets import await_that

RELOADED = "reloaded: "
REFUSED = "not reloaded, all stays as it was: "
_SAID = "%{http_code} %header{X-Node} %header{X-Backend}\\n"


class Answered(NamedTuple):
    status: int
    node: str
    backend: str
    """The address at which NGINX was asked."""


def table(name: str, /, **keys: object) -> str:
    """One of an array of tables in TOML, underscores of the keys being hyphens."""
    lines = [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join([f"[[{name}]]", *lines, "", ""])


def pool(lab: Lab, weights: Mapping[str, int], **keys: object) -> str:
    """Of these nodes of the topology; without health checks unless ``keys`` say otherwise."""
    nodes = [
        table("pool.node", name=name, address=str(lab.topology.node(name).bridge), weight=weight)
        for name, weight in weights.items()
    ]
    return table("pool", **{"health": "off", **keys}) + "".join(nodes)


def service(listen: str, dscp: int | str, **keys: object) -> str:
    return table("service", listen=listen, dscp=dscp, **keys)


def bridge(lab: Lab, node: str, *vips: str) -> str:
    """A packetbridge's whole file, for `vip` tables."""
    return f'listen = "{lab.topology.node(node).bridge}"\n' + "".join(vips)


def vip(address: str, dscp: int | str, backend: str) -> str:
    return table("vip", vip=address, dscp=dscp, backend=backend)


def answers(lab: Lab, urls: Iterable[str], *options: str) -> list[Answered]:
    """By a connection each; ``options`` are curl's."""
    urls = list(urls)
    each = [argument for url in urls for argument in ("-o", "/dev/null", url)]
    said = curl(lab.client, *options, "-H", "Connection: close", "-w", _SAID, *each).splitlines()
    found = [line.split(" ") for line in said]
    return [Answered(int(status), node, backend) for status, node, backend in found]


def nodes_of(lab: Lab, urls: Iterable[str]) -> list[str]:
    """Names of the nodes that answer, in the order of the URLs. All answers are 200."""
    found = answers(lab, urls)
    assert {answer.status for answer in found} == {200}
    return [answer.node for answer in found]


def reload(host: Host, daemon: str) -> list[str]:
    """What has changed. Raises ControlError where the daemon refuses."""
    return list(ask(host.state_directory / f"{daemon}.sock", "reload"))


def reload_by_signal(daemon: Process) -> str:
    """SIGHUP, and what the log says of it."""
    before = outcomes(daemon)
    daemon.send_signal(signal.SIGHUP)
    await_that(lambda: len(outcomes(daemon)) > len(before))
    return outcomes(daemon)[-1]


def outcomes(daemon: Process) -> list[str]:
    """What its log says of reloads, from `RELOADED` or `REFUSED` on."""
    return [
        mark + line.partition(mark)[2]
        for line in daemon.read_log().splitlines()
        for mark in (REFUSED, RELOADED)
        if f": {mark}" in line
    ]


def generation(host: Host, daemon: str) -> int:
    """How many configurations the daemon has taken."""
    return int(ask_once(host.state_directory / f"{daemon}.sock", "status")["generation"])
