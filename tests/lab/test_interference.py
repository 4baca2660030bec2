"""Somebody else takes away or changes what the daemons have set up on their hosts: it is noticed, said and
put back, while traffic goes on.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

from lab import Host, Lab, Process
from lab.state_directory import PINS
from tests.lab.footprint import footprint, pins
from tests.lab.observed import daemon_of, tun_of
from tests.lab.sockets import await_that
from tests.lab.traffic import traffic
from tests.lab.wellbeing import assert_all_is_well

pytestmark = pytest.mark.root

SOON_SECONDS = 20.0
ROLES = ("balancer", "node1")
each_role = pytest.mark.parametrize("role", ROLES)


def said(daemon: Process, text: str) -> int:
    return daemon.read_log().count(text)


def assert_is_put_back(lab: Lab, host: Host, take: Callable[[], None], text: str) -> None:
    """What ``take`` does to the host is undone soon, and ``text`` is in the log then; nobody has noticed."""
    daemon, before = daemon_of(host), footprint(host)
    known = said(daemon, text)
    with traffic(lab) as going:
        take()
        await_that(lambda: said(daemon, text) > known, SOON_SECONDS)
        await_that(lambda: footprint(host) == before, SOON_SECONDS)
        going.must_go_on()
    assert going.failures() == []


# --- rules and routes


class Rule(NamedTuple):
    priority: str
    table: str
    """Empty of the one that drops."""


def reply_rules(host: Host) -> list[Rule]:
    shown = host.run(["ip", "rule"]).stdout
    found = re.findall(r"^(\d+):.* (?:lookup (\d+)|blackhole) proto 76", shown, re.MULTILINE)
    return [Rule(*each) for each in found]


@pytest.mark.engine("raw", reason="on eBPF there are no rules")
@pytest.mark.parametrize("which", [[0], [1], [0, 1]], ids=["sending", "dropping", "all"])
def test_routing_rules_are_put_back(running_lab: Lab, which: list[int]) -> None:
    host = running_lab.nodes[0]

    def take() -> None:
        present = reply_rules(host)
        for number in which:
            host.run(["ip", "rule", "delete", "priority", present[number].priority])

    assert_is_put_back(running_lab, host, take, "a routing rule of the backends' replies had gone")


@pytest.mark.engine("raw", reason="on eBPF there is no routing table")
def test_the_route_of_replies_is_put_back(running_lab: Lab) -> None:
    host = running_lab.nodes[0]

    def take() -> None:
        host.run(["ip", "route", "flush", "table", reply_rules(host)[0].table])

    assert_is_put_back(running_lab, host, take, "the route of the backends' replies had gone")


# --- the TUN


@each_role
@pytest.mark.parametrize(
    "change",
    [
        "ip link set {tun} down",
        "ip link set {tun} mtu 1400",
        "sysctl -qw net.ipv4.conf.{tun}.forwarding=0",
        "sysctl -qw net.ipv4.conf.{tun}.rp_filter=1",
        "sysctl -qw net.ipv4.conf.{tun}.accept_local=0",
    ],
    ids=["down", "mtu", "forwarding", "rp_filter", "accept_local"],
)
def test_the_tun_is_as_it_was_again(running_lab: Lab, role: str, change: str) -> None:
    host = running_lab.hosts[role]
    tun = tun_of(host)

    def take() -> None:
        host.run(change.format(tun=tun).split())

    assert_is_put_back(running_lab, host, take, f"device {tun}")


# --- what is not the daemons' to put back


@each_role
def test_strict_reverse_path_filters_are_said_when_they_come_and_when_they_go(
    running_lab: Lab, role: str
) -> None:
    host = running_lab.hosts[role]
    daemon, text = daemon_of(host), "strict reverse path filtering (net.ipv4.conf.all.rp_filter = 1)"
    before = host.run(["sysctl", "-n", "net.ipv4.conf.all.rp_filter"]).stdout.strip()
    host.sysctl("net.ipv4.conf.all.rp_filter", 1)
    try:
        await_that(lambda: said(daemon, f"WARNING: {text}") == 1, SOON_SECONDS)
    finally:
        host.sysctl("net.ipv4.conf.all.rp_filter", int(before))
    await_that(lambda: said(daemon, f"INFO: no longer: {text}") == 1, SOON_SECONDS)
    assert_all_is_well(running_lab)


# --- programs and pins


def detach(host: Host, direction: str) -> None:
    links = [path for path in pins(host) if path.name.startswith(f"link_{direction}_")]
    assert links
    for path in links:
        host.run(["bpftool", "link", "detach", "pinned", str(path)])


@pytest.mark.engine("ebpf", reason="raw has no programs")
@each_role
def test_programs_that_receive_are_attached_again(running_lab: Lab, role: str) -> None:
    """Until then the kernel does not answer in their place."""
    host = running_lab.hosts[role]
    text = "somebody has removed our program at"
    assert_is_put_back(running_lab, host, lambda: detach(host, "ingress"), text)


@pytest.mark.engine("ebpf", reason="raw has no programs")
def test_programs_that_send_are_attached_again(running_lab: Lab) -> None:
    """What the backend sends meanwhile goes out in its own name, so busy flows end; new ones do not."""
    host = running_lab.nodes[0]
    before = footprint(host)
    detach(host, "egress")
    await_that(lambda: footprint(host) == before, SOON_SECONDS)
    assert_all_is_well(running_lab)


@pytest.mark.engine("ebpf", reason="raw has no pins")
@each_role
def test_removed_pins_are_back(running_lab: Lab, role: str) -> None:
    host = running_lab.hosts[role]

    def take() -> None:
        for path in pins(host):
            if not path.is_dir():
                path.unlink()

    assert_is_put_back(running_lab, host, take, "somebody has removed pins")


@pytest.mark.engine("ebpf", reason="raw has no pins")
@each_role
def test_an_unmounted_bpf_file_system_is_back(running_lab: Lab, role: str) -> None:
    """As the daemon sees it: its mounts are its own."""
    host = running_lab.hosts[role]
    daemon, known = daemon_of(host), said(daemon_of(host), "somebody has removed pins")
    with traffic(running_lab) as going:
        mounts = ["nsenter", "--mount", "--root", f"--target={daemon.pid}"]
        host.run([*mounts, "umount", "--lazy", str(host.state_directory / PINS)])
        await_that(lambda: said(daemon, "somebody has removed pins") > known, SOON_SECONDS)
        going.must_go_on()
    assert going.failures() == []


# --- nftables


def test_nobody_else_can_remove_or_change_the_nftables_tables(running_lab: Lab, engine: str) -> None:
    """The kernel refuses: they have an owner."""
    for role in ROLES:
        host = running_lab.hosts[role]
        tables = [line.split() for line in host.run(["nft", "list", "tables"]).stdout.splitlines()]
        assert tables or (engine, role) == ("ebpf", "balancer")
        before = footprint(host)
        with traffic(running_lab) as going:
            host.run(["nft", "flush", "ruleset"], check=False)
            for _, family, name in tables:
                for action in ("delete", "flush"):
                    refused = host.run(["nft", action, "table", family, name], check=False)
                    assert refused.returncode == 1
                    assert "Operation not permitted" in refused.stderr
            going.must_go_on()
        assert going.failures() == []
        assert footprint(host) == before
