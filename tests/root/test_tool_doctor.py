"""`l3dsr doctor` in a network namespace: faults put there are found, and go when its advice is followed."""

import ctypes
import errno
import json
import shlex
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from common.net.ownership import OwnedTable
from tests.root.namespaces import Hosts, Namespace, three_hosts

pytestmark = pytest.mark.root

CONFIGURATION = """\
listen = "10.98.2.2"
key-file = "{key}"
[[vip]]
dscp = 7
vip = "192.168.33.10:80"
backend = "10.98.2.2:8099"
"""
BALANCER = """\
key-file = "{key}"
[[pool]]
name = "www"
[[pool.node]]
name = "node1"
address = "10.98.2.2"
[[service]]
name = "www"
listen = "10.98.1.2:80"
dscp = 7
pool = "www"
"""
FORWARD_RULES = """
table inet firewall {
    chain forward {
        type filter hook forward priority 0; policy accept;
        ct state vmap { established : accept, invalid : drop }
    }
}
"""

Finding = dict[str, Any]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        yield hosts


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with configurations and a key."""
    key = tmp_path / "handoff.key"
    key.write_text("00" * 15 + "01\n")
    key.chmod(0o600)
    (tmp_path / "packetbridge.toml").write_text(CONFIGURATION.format(key=key))
    (tmp_path / "balancer.toml").write_text(BALANCER.format(key=key))
    return tmp_path


def examined(where: Namespace, files: Path, daemon: str) -> tuple[int, list[Finding]]:
    """Exit code and findings."""
    config = files / f"{daemon}.toml"
    tool = [sys.executable, "-m", "l3dsr", "doctor", daemon, "--config", str(config), "--json"]
    command = ["ip", "netns", "exec", where.name, *tool, "--state-dir", str(files)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.stderr == ""
    return run.returncode, [json.loads(line) for line in run.stdout.splitlines()]


def of(findings: list[Finding], check: str) -> list[tuple[str, str]]:
    """Levels, and what to do."""
    return [(each["level"], each["change"]) for each in findings if each["check"] == check]


def follow(where: Namespace, change: str) -> None:
    """Run what stands between backquotes."""
    where_command = shlex.split(change.split("`")[1])
    subprocess.run(["ip", "netns", "exec", where.name, *where_command], check=True, timeout=20)


def test_a_sound_node_has_no_faults_but_the_backend_that_does_not_listen(hosts: Hosts, files: Path) -> None:
    code, findings = examined(hosts.server, files, "packetbridge")
    assert [each["check"] for each in findings if each["level"] == "fault"] == ["backend"]
    assert code == 1
    server = subprocess.Popen(
        ["ip", "netns", "exec", hosts.server.name, sys.executable, "-m", "http.server", "8099"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=files,
    )
    try:
        for _ in range(20):
            code, findings = examined(hosts.server, files, "packetbridge")
            if code == 0:
                break
        assert of(findings, "backend") == [("ok", "")]
        assert code == 0
        assert of(findings, "path")[0][0] == "warning"
    finally:
        server.kill()
        server.wait(10)


def test_rules_that_drop_invalid_packets_are_found_until_its_advice_is_followed(
    hosts: Hosts, files: Path
) -> None:
    rules = files / "rules.nft"
    rules.write_text(FORWARD_RULES)
    hosts.middle.run(f"nft -f {rules}")
    try:
        _, findings = examined(hosts.middle, files, "balancer")
        ((level, change),) = of(findings, "firewall")
        assert level == "fault"
        follow(hosts.middle, change)
        _, findings = examined(hosts.middle, files, "balancer")
        assert of(findings, "firewall") == [("ok", "")]
    finally:
        hosts.middle.run("nft flush ruleset")


def test_tables_with_an_owner_are_named_and_ours_are_none_of_its_business(hosts: Hosts, files: Path) -> None:
    with (
        hosts.middle.entered(),
        closing(OwnedTable("somebody's", "")),
        closing(OwnedTable("l3dsr itself", "")),
    ):
        holder = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdin is not None
            holder.stdin.write("add table inet other { flags owner; }\n")
            holder.stdin.flush()
            for _ in range(50):
                if "other" in hosts.middle.run("nft list tables"):
                    break
                time.sleep(0.1)
            _, findings = examined(hosts.middle, files, "balancer")
        finally:
            holder.kill()
            holder.communicate(timeout=10)
    found = [each["found"] for each in findings if each["check"] == "firewall"]
    assert found == ["table inet other belongs to a program and is not read here"]


def replace_legacy_filter(forward_verdict: int) -> None:
    """The table of iptables-legacy, without rules: struct ipt_replace of linux/netfilter_ipv4/ip_tables.h."""

    def entry(target: bytes) -> bytes:
        return struct.pack("=88xHH20x", 112, 112 + len(target)) + target

    accept, forward = (struct.pack("=H30xi4x", 40, verdict) for verdict in (-2, forward_verdict))
    error = struct.pack("=H29sx30s2x", 64, b"ERROR", b"ERROR")
    entries = b"".join(map(entry, (accept, forward, accept, error)))
    at = [0, 0, 152, 304, 0]
    counters = ctypes.create_string_buffer(4 * 16)
    head = struct.pack(
        "@32s3I5I5IIP", b"filter", 0b1110, 4, len(entries), *at, *at, 4, ctypes.addressof(counters)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as control:
        control.setsockopt(socket.IPPROTO_IP, 64, head + entries)


def test_a_policy_of_iptables_legacy_is_found(hosts: Hosts, files: Path) -> None:
    drop, accept = -1, -2
    with hosts.middle.entered():
        try:
            replace_legacy_filter(drop)
        except OSError as error:
            if error.errno in (errno.ENOPROTOOPT, errno.ENOENT):
                pytest.skip("this kernel has no tables of iptables-legacy")
            raise
    _, findings = examined(hosts.middle, files, "balancer")
    change = "run `iptables-legacy -t filter -I FORWARD -i l3dsr+ -j ACCEPT`"
    assert of(findings, "firewall") == [("fault", change)]
    with hosts.middle.entered():
        replace_legacy_filter(accept)
    _, findings = examined(hosts.middle, files, "balancer")
    assert of(findings, "firewall") == [("ok", "")]


def test_strict_rp_filter_is_found_until_its_advice_is_followed(hosts: Hosts, files: Path) -> None:
    hosts.server.run("sysctl -q -w net.ipv4.conf.all.rp_filter=1")
    _, findings = examined(hosts.server, files, "packetbridge")
    ((level, change),) = of(findings, "rp_filter")
    assert level == "fault"
    follow(hosts.server, change)
    _, findings = examined(hosts.server, files, "packetbridge")
    assert of(findings, "rp_filter")[0][0] != "fault"


def test_the_mtu_to_a_node_is_tried_with_a_packet_of_that_size(hosts: Hosts, files: Path) -> None:
    _, findings = examined(hosts.client, files, "balancer")
    assert of(findings, "mtu") == [("ok", "")]
    hosts.middle.run("ip link set m1 mtu 1300")
    hosts.middle.run("nft add table ip quiet")
    hosts.middle.run("nft add chain ip quiet output { type filter hook output priority 0 ; }")
    hosts.middle.run("nft add rule ip quiet output icmp type destination-unreachable drop")
    try:
        _, findings = examined(hosts.client, files, "balancer")
        assert [level for level, _ in of(findings, "mtu")] == ["fault"]
    finally:
        hosts.middle.run("nft flush ruleset")
        hosts.middle.run("ip link set m1 mtu 1500")


def test_offloads_of_a_device_are_read(hosts: Hosts, files: Path) -> None:
    hosts.server.run("ethtool -K s0 gro off")
    try:
        _, findings = examined(hosts.server, files, "packetbridge")
        assert of(findings, "offloads") == [("warning", "run `ethtool -K s0 gro on`")]
    finally:
        hosts.server.run("ethtool -K s0 gro on")


def test_a_vip_on_a_node_s_interface_is_a_fault(hosts: Hosts, files: Path) -> None:
    hosts.server.run("ip address add 192.168.33.10/32 dev s0")
    _, findings = examined(hosts.server, files, "packetbridge")
    ((level, change),) = of(findings, "addresses")
    assert level == "fault"
    subprocess.run(
        [
            "ip",
            "netns",
            "exec",
            hosts.server.name,
            *shlex.split(change.split("`")[1].replace("10 dev", "10/32 dev")),
        ],
        check=True,
        timeout=20,
    )
    _, findings = examined(hosts.server, files, "packetbridge")
    assert of(findings, "addresses") == [("ok", "")]
