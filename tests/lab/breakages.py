"""What may break on the way from the balancer to node1 and back, and what a health check finds then."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from lab import Lab
from tests.lab.checked import configured, ruled
from tests.lab.observed import daemon_of

BRIDGE = "192.168.33.20"


@contextmanager
def link_down(lab: Lab) -> Iterator[None]:
    routes = lab.router.run(["ip", "route", "show", "dev", "node1", "scope", "global"]).stdout.splitlines()
    lab.router.run(["ip", "link", "set", "node1", "down"])
    try:
        yield
    finally:
        lab.router.run(["ip", "link", "set", "node1", "up"])
        for route in routes:
            lab.router.run(["ip", "route", "replace", *route.split(), "dev", "node1"])


@contextmanager
def routed_away(lab: Lab) -> Iterator[None]:
    lab.router.run(["ip", "route", "replace", "unreachable", BRIDGE])
    try:
        yield
    finally:
        lab.router.run(["ip", "route", "replace", BRIDGE, "via", "10.33.1.2", "dev", "node1"])


@contextmanager
def packetbridge_stopped(lab: Lab) -> Iterator[None]:
    daemon_of(lab.hosts["node1"]).stop()
    try:
        yield
    finally:
        lab.start_packetbridge("node1")


@contextmanager
def packetbridge_frozen(lab: Lab) -> Iterator[None]:
    daemon = daemon_of(lab.hosts["node1"])
    daemon.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.send_signal(signal.SIGCONT)


@contextmanager
def other_key(lab: Lab) -> Iterator[None]:
    other = lab.directory / "other.key"
    other.touch(0o600)
    other.write_text("0123456789abcdef0123456789abcdef\n")
    with packetbridge_stopped(lab):
        daemon = lab.start_packetbridge("node1", f"--key-file={other}")
        try:
            yield
        finally:
            daemon.stop()


@contextmanager
def backend_stopped(lab: Lab) -> Iterator[None]:
    lab.nginx["node1"].stop()
    try:
        yield
    finally:
        lab.nginx["node1"].start()


@contextmanager
def backend_frozen(lab: Lab) -> Iterator[None]:
    """Its kernel takes connections and requests all the same."""
    master = lab.nginx["node1"].process.pid
    workers = [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)


@contextmanager
def packetbridge_with(lab: Lab, vips: str) -> Iterator[None]:
    """Another VIP map at node1."""
    with packetbridge_stopped(lab):
        host = lab.hosts["node1"]
        daemon = lab.start_configured(host, "packetbridge", f'listen = "{BRIDGE}"\n{vips}')
        try:
            yield
        finally:
            daemon.stop()


def other_vip(lab: Lab) -> AbstractContextManager[None]:
    """What has the DSCP of our VIP is the second one's there."""
    return packetbridge_with(
        lab,
        '[[vip]]\ndscp = 1\nvip = "192.168.33.11:80"\nbackend = "192.168.33.40:80"\n'
        '[[vip]]\ndscp = 2\nvip = "192.168.33.10:80"\nbackend = "192.168.33.30:80"\n',
    )


def other_dscp(lab: Lab) -> AbstractContextManager[None]:
    return packetbridge_with(
        lab, '[[vip]]\ndscp = 5\nvip = "192.168.33.10:80"\nbackend = "192.168.33.30:80"\n'
    )


def router_rule(hook: str, rule: str) -> Callable[[Lab], AbstractContextManager[None]]:
    return lambda lab: ruled(lab.router, hook, rule)


def other_status(lab: Lab) -> AbstractContextManager[None]:
    return configured(lab, health={"expect": ["404", "500-503"]})


class Breakage(NamedTuple):
    begin: Callable[[Lab], AbstractContextManager[None]]
    failure: str
    """Its name in reports."""
    text: str
    """Part of what is said of it."""


BREAKAGES: dict[str, Breakage] = {
    "link_down": Breakage(link_down, "node_unreachable", "there is no route to its network, says 10.33.0.1"),
    "routed_away": Breakage(routed_away, "node_unreachable", "there is no such host, says 10.33.0.1"),
    "packetbridge_stopped": Breakage(
        packetbridge_stopped,
        "bridge_silent",
        f"the host {BRIDGE}:80 refuses by itself",
    ),
    "other_key": Breakage(other_key, "tag_refused", "is the key file the same on balancer and node?"),
    "backend_stopped": Breakage(backend_stopped, "backend_refused", "the backend refuses connections"),
    "backend_frozen": Breakage(
        backend_frozen, "backend_silent", "the backend took the request and says no more"
    ),
    "backend_filtered": Breakage(
        lambda lab: ruled(lab.hosts["node1"], "input", "ip daddr 192.168.33.30 tcp dport 80 drop"),
        "backend_silent",
        "the backend does not answer the packetbridge's SYN",
    ),
    "other_status": Breakage(other_status, "wrong_status", "answers with status 200, not 404, 500-503"),
    "other_vip": Breakage(
        other_vip,
        "not_from_vip",
        "the answer came from 192.168.33.11:80, not from 192.168.33.10:80",
    ),
    "other_dscp": Breakage(
        other_dscp, "bridge_silent", "maps VIP 192.168.33.10:80 to DSCP 5, here it is DSCP 1"
    ),
    "address_translated": Breakage(
        router_rule("postrouting", "iifname node1 ip saddr 192.168.33.10 ip saddr set 203.0.113.9"),
        "not_from_vip",
        "the answer came from 203.0.113.9:80",
    ),
    "vip_filtered": Breakage(
        router_rule("forward", "iifname node1 ip saddr 192.168.33.10 drop"),
        "answer_lost",
        "not one packet came from 192.168.33.10:80: does a filter on the way (uRPF) drop that source?",
    ),
    "dscp_cleared": Breakage(
        router_rule("forward", f"ip daddr {BRIDGE} ip dscp set cs0"),
        "bridge_silent",
        "DSCP 1 arrives at node node1 as DSCP 0: a router on the way remarks it",
    ),
    "dscp_filtered": Breakage(
        router_rule("forward", f"ip daddr {BRIDGE} ip dscp 1 drop"),
        "bridge_silent",
        "what is sent to node node1 with DSCP 1 does not arrive, other packets do",
    ),
}
