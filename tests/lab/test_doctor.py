"""`l3dsr doctor` names what is really wrong, with its cure, and finds nothing in a sound lab."""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from lab import Host, Lab, Process, daemon_program
from tests.lab import checked
from tests.lab.checked import ALL, await_all_up, await_state, ruled
from tests.lab.configured import bridge, vip
from tests.lab.observed import daemon_of, tun_of
from tests.lab.sockets import await_that

pytestmark = pytest.mark.root

VIP_ADDRESS = "192.168.33.10"
SHIFTED = Path(__file__).with_name("shifted.py")
FAULT, WARNING, OK = "fault", "warning", "ok"


class Finding(NamedTuple):
    daemon: str
    check: str
    level: str
    found: str
    change: str


class Examined(NamedTuple):
    code: int
    findings: list[Finding]

    def of(self, check: str, name: str = "") -> list[Finding]:
        """Of one check, and of what is called so."""
        return [each for each in self.findings if each.check == check and name in each.found]

    def bad(self, *levels: str) -> list[Finding]:
        return [each for each in self.findings if each.level in levels]


@pytest.fixture(scope="module")
def sound_lab(lab: Lab) -> Lab:
    """GRO is on, as it is with real network cards; a veth device has it off at first."""
    for host in (lab.balancer, *lab.nodes):
        host.run(["ethtool", "-K", "eth0", "gro", "on"])
    for node in lab.topology.nodes:
        lab.start_packetbridge(node.name)
    checked.start(lab)
    await_sound(lab)
    return lab


def examined(host: Host, *options: str, under: Sequence[str] = ()) -> Examined:
    """``under`` is a command that runs the tool with less."""
    tool = [str(daemon_program("l3dsr")), "doctor", f"--state-dir={host.state_directory}", "--json"]
    run = host.run([*under, *tool, *options], check=False)
    assert run.stderr == ""
    said = [json.loads(line) for line in run.stdout.splitlines()]
    return Examined(run.returncode, [Finding(**each) for each in said])


def await_sound(lab: Lab) -> None:
    await_all_up(lab)
    await_that(lambda: examined(lab.balancer).code == 0, 20)


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


# --- a sound lab


@pytest.mark.parametrize("name", ["balancer", *ALL])
def test_in_a_sound_lab_there_is_nothing_to_change(sound_lab: Lab, name: str) -> None:
    found = examined(sound_lab.hosts[name])
    assert (found.code, found.bad(WARNING, FAULT)) == (0, [])
    everywhere = {"privileges", "kernel", "offloads", "rp_filter", "addresses", "key", "firewall"}
    there = {each.check for each in found.findings}
    if name == "balancer":
        assert there == everywhere | {
            *("forwarding", "mtu", "channel", "clock", "dscp", "health", "daemon"),
        }
        for check in ("mtu", "channel", "clock", "dscp", "health"):
            assert [only(found.of(check, node)).level for node in ALL] == [OK] * 3
    else:
        assert there == everywhere | {"forwarding", "tcp_rfc1337", "backend", "daemon"}


def test_people_read_the_same_as_a_page(sound_lab: Lab) -> None:
    shown = sound_lab.tool(sound_lab.balancer, "doctor").stdout
    found = examined(sound_lab.balancer)
    assert shown.splitlines()[0] == "balancer:"
    assert shown.splitlines()[-1] == f"{len(found.findings)} ok, 0 warnings, 0 faults"


# --- the host


@contextmanager
def sysctl(host: Host, name: str, value: int) -> Iterator[None]:
    path = "/proc/sys/" + name.replace(".", "/")
    before = host.run(["cat", path]).stdout.strip()
    host.sysctl(name, value)
    try:
        yield
    finally:
        host.sysctl(name, before)


@contextmanager
def without_address(host: Host, address: str) -> Iterator[None]:
    host.run(["ip", "address", "delete", f"{address}/32", "dev", "eth0"])
    try:
        yield
    finally:
        host.run(["ip", "address", "add", f"{address}/32", "dev", "eth0"])


@contextmanager
def with_address(host: Host, address: str) -> Iterator[None]:
    host.run(["ip", "address", "add", f"{address}/32", "dev", "eth0"])
    try:
        yield
    finally:
        host.run(["ip", "address", "delete", f"{address}/32", "dev", "eth0"])


@contextmanager
def segmentation_off(host: Host) -> Iterator[None]:
    host.run(["ethtool", "-K", "eth0", "tso", "off"])
    try:
        yield
    finally:
        host.run(["ethtool", "-K", "eth0", "tso", "on"])


class OnHost(NamedTuple):
    """What is done to a host, and what is to be found there."""

    name: str
    do: Callable[[Host], AbstractContextManager[None]]
    check: str
    found: str
    change: str
    level: str = FAULT


INVALID = ("forward", "ct state invalid drop")
ON_HOSTS = {
    "strict_rp_filter_balancer": OnHost(
        "balancer",
        lambda host: sysctl(host, "net.ipv4.conf.all.rp_filter", 1),
        "rp_filter",
        "strict reverse path filtering for all interfaces",
        "sysctl -w net.ipv4.conf.all.rp_filter=2",
    ),
    "strict_rp_filter_node": OnHost(
        "node1",
        lambda host: sysctl(host, "net.ipv4.conf.all.rp_filter", 1),
        "rp_filter",
        "strict reverse path filtering for all interfaces",
        "sysctl -w net.ipv4.conf.all.rp_filter=2",
    ),
    "strict_rp_filter_device": OnHost(
        "node1",
        lambda host: sysctl(host, "net.ipv4.conf.eth0.rp_filter", 1),
        "rp_filter",
        "strict on eth0",
        "sysctl -w net.ipv4.conf.eth0.rp_filter=2",
        WARNING,
    ),
    "no_bridge_address": OnHost(
        "node1",
        lambda host: without_address(host, "192.168.33.20"),
        "addresses",
        "no interface has the bridge address 192.168.33.20",
        "ip address add 192.168.33.20/32 dev",
    ),
    "no_backend_address": OnHost(
        "node1",
        lambda host: without_address(host, "192.168.33.30"),
        "addresses",
        "no interface has the address of the backend 192.168.33.30:80",
        "ip address add 192.168.33.30/32 dev",
    ),
    "vip_on_node": OnHost(
        "node1",
        lambda host: with_address(host, VIP_ADDRESS),
        "addresses",
        f"eth0 has the VIP {VIP_ADDRESS}",
        f"ip address delete {VIP_ADDRESS}",
    ),
    "rfc1337": OnHost(
        "node1",
        lambda host: sysctl(host, "net.ipv4.tcp_rfc1337", 1),
        "tcp_rfc1337",
        "sockets in TIME-WAIT ignore RST",
        "sysctl -w net.ipv4.tcp_rfc1337=0",
        WARNING,
    ),
    "no_syn_cookies": OnHost(
        "node1",
        lambda host: sysctl(host, "net.ipv4.tcp_syncookies", 0),
        "tcp_syncookies",
        "listeners do not adopt connections",
        "sysctl -w net.ipv4.tcp_syncookies=1",
        WARNING,
    ),
    "segmentation_offload_off": OnHost(
        "balancer", segmentation_off, "offloads", "eth0: tso off", "ethtool -K eth0 tso on", WARNING
    ),
    "new_without_syn_dropped": OnHost(
        "node1",
        lambda host: ruled(host, "input", "tcp flags & (fin|syn|rst|ack) != syn ct state new drop"),
        "firewall",
        "drops new connections without SYN: adopted ones have none",
        "start packetbridge with --adopt=off",
    ),
}


TOGETHER = (
    ("strict_rp_filter_balancer", "segmentation_offload_off"),
    ("strict_rp_filter_node", "no_bridge_address", "rfc1337", "vip_on_node"),
    ("strict_rp_filter_device", "no_backend_address", "no_syn_cookies", "new_without_syn_dropped"),
)


@pytest.mark.parametrize("names", TOGETHER, ids="-".join)
def test_what_is_wrong_with_a_host_is_named_with_its_cure(sound_lab: Lab, names: tuple[str, ...]) -> None:
    cases = [ON_HOSTS[name] for name in names]
    (host,) = {sound_lab.hosts[case.name] for case in cases}
    with ExitStack() as broken:
        for case in cases:
            broken.enter_context(case.do(host))
        found = examined(host)
    for case in cases:
        wrong = only([each for each in found.of(case.check) if case.found in each.found])
        assert (wrong.level, case.change in wrong.change) == (case.level, True)
    assert found.code == 1
    await_that(lambda: examined(host).bad(WARNING, FAULT) == [])


@pytest.mark.parametrize("name", ["balancer", "node1"])
def test_a_rule_that_drops_what_is_invalid_is_named_until_its_cure_is_applied(
    sound_lab: Lab, engine: str, name: str
) -> None:
    """Engine raw sends what it sends through the host's netfilter, engine ebpf past it."""
    host = sound_lab.hosts[name]

    def is_served() -> bool:
        asked = ["curl", "-sS", "--max-time", "2", "-o", "/dev/null", f"http://{VIP_ADDRESS}/1m"]
        return sound_lab.client.run(asked, check=False).returncode == 0

    with ruled(host, *INVALID):
        assert is_served() == ((engine, name) != ("raw", "balancer"))
        found = only(examined(host).of("firewall"))
        assert found.level == (FAULT if engine == "raw" else WARNING)
        assert (
            "chain forward of table ip breakage drops what connection tracking calls invalid" in found.found
        )
        cure = found.change.split("`")[1]
        host.run(["sh", "-c", cure.replace('"', '\\"')])
        assert only(examined(host).of("firewall")).level == OK
        await_that(is_served)
    await_sound(sound_lab)


def test_a_shell_without_privileges_is_told_so(sound_lab: Lab) -> None:
    less = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]
    found = examined(sound_lab.balancer, under=less)
    assert "CAP_NET_RAW" in only(found.of("privileges")).found
    assert "sudo l3dsr doctor" in only(found.of("privileges")).change
    assert {each.level for each in found.of("mtu")} == {WARNING}
    assert found.code == 0


def test_a_host_without_tun_devices_is_told_so(sound_lab: Lab) -> None:
    hidden = 'mount -t tmpfs none /dev/net && exec "$@"'
    found = examined(sound_lab.balancer, under=["unshare", "--mount", "sh", "-c", hidden, "sh"])
    assert found.bad(WARNING, FAULT) == found.of("tun")
    assert only(found.of("tun")).change == "run `modprobe tun`"
    assert found.code == 1


def test_somebody_who_may_not_ask_the_daemon_is_told_so(sound_lab: Lab) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    found = examined(sound_lab.balancer, "balancer", under=nobody)
    assert "run `sudo l3dsr doctor`" in {each.change for each in found.of("path")}
    tool = [str(daemon_program("l3dsr")), "status", f"--state-dir={sound_lab.balancer.state_directory}"]
    refused = sound_lab.balancer.run([*nobody, *tool], check=False)
    assert refused.returncode == 1
    assert refused.stderr.endswith(" is not for you: add yourself to its group (l3dsr), or use sudo\n")


def test_a_key_file_that_others_can_read_is_named(sound_lab: Lab) -> None:
    readable = sound_lab.directory / "readable.key"
    readable.write_text("0123456789abcdef0123456789abcdef\n")
    readable.chmod(0o644)
    file = sound_lab.directory / "doctored.toml"
    text = checked.configuration(sound_lab).replace("[[pool]]", f'key-file = "{readable}"\n[[pool]]', 1)
    file.write_text(text)
    found = examined(sound_lab.balancer, "balancer", f"--config={file}")
    assert only(found.of("key")).level == FAULT
    assert str(readable) in only(found.of("key")).found
    assert "0600" in only(found.of("key")).change
    assert found.code == 1


# --- the path


@contextmanager
def instead(lab: Lab, node: str, start: Callable[[], Process | None]) -> Iterator[None]:
    """Another packetbridge, or none, in place of the node's own."""
    daemon_of(lab.hosts[node]).stop()
    other: Process | None = None
    try:
        other = start()
        yield
    finally:
        if other is not None:
            other.stop()
        lab.start_packetbridge(node)


def other_key(lab: Lab, node: str) -> AbstractContextManager[None]:
    other = lab.directory / "other.key"
    other.touch(0o600)
    other.write_text("0123456789abcdef0123456789abcdef\n")
    return instead(lab, node, lambda: lab.start_packetbridge(node, f"--key-file={other}"))


def other_clock(lab: Lab, node: str, *, seconds: int) -> AbstractContextManager[None]:
    host = lab.hosts[node]
    command = daemon_of(host).argv[4:]

    def start() -> Process:
        daemon = host.start([sys.executable, str(SHIFTED), str(seconds), *command], name="packetbridge")
        daemon.wait_for("ready", 60)
        return daemon

    return instead(lab, node, start)


def other_map(lab: Lab, node: str) -> AbstractContextManager[None]:
    own = lab.topology.node(node)
    text = bridge(lab, node, vip(f"{VIP_ADDRESS}:80", 5, f"{own.backend}:80"))
    return instead(lab, node, lambda: lab.start_configured(lab.hosts[node], "packetbridge", text))


def no_packetbridge(lab: Lab, node: str) -> AbstractContextManager[None]:
    return instead(lab, node, lambda: None)


@contextmanager
def no_backend(lab: Lab, node: str) -> Iterator[None]:
    lab.nginx[node].stop()
    try:
        yield
    finally:
        lab.nginx[node].start()


@contextmanager
def at_router(lab: Lab, node: str, *, hook: str, rule: str) -> Iterator[None]:
    """``rule`` has the node's bridge address as BRIDGE, and its link as LINK."""
    text = rule.replace("BRIDGE", str(lab.topology.node(node).bridge)).replace("LINK", node)
    table = f"breakage_{node}"
    chain = f"{{ type filter hook {hook} priority -150; }}"
    lab.router.run(["nft", f"add table ip {table}; add chain ip {table} {hook} {chain}"])
    try:
        lab.router.run(["nft", f"add rule ip {table} {hook} {text}"])
        yield
    finally:
        lab.router.run(["nft", "delete", "table", "ip", table])


@contextmanager
def narrow(lab: Lab, node: str) -> Iterator[None]:
    """A black hole: large packets vanish, and no ICMP error tells of it."""
    rule = "ip daddr BRIDGE meta length > 1300 drop"
    with at_router(lab, node, hook="forward", rule=rule):
        yield


class OnPath(NamedTuple):
    """What is done on the way to a node, and what the balancer's doctor says of it: by check, level, what
    is found and what to change.
    """

    do: Callable[[Lab, str], AbstractContextManager[None]]
    expected: Mapping[str, tuple[str, str, str]]
    is_down: bool = True


PATHS = {
    "other_key": OnPath(
        other_key,
        {
            "channel": (FAULT, "key", "put the same key file on both"),
            "health": (FAULT, "is the key file the same", "put the same key file on both"),
        },
    ),
    "clock_two_minutes_off": OnPath(
        partial(other_clock, seconds=120),
        {
            "channel": (FAULT, "", "set both clocks (NTP)"),
            "clock": (FAULT, "over 1 min 0 s off: handoffs are refused", "set both clocks (NTP)"),
        },
    ),
    "clock_half_a_minute_off": OnPath(
        partial(other_clock, seconds=-30),
        {"clock": (WARNING, "its clock is 30", "set both clocks (NTP)")},
        is_down=False,
    ),
    "vip_map_different": OnPath(
        other_map,
        {"vip map": (FAULT, "DSCP 5", "have balancer and packetbridge say the same DSCP, VIP and port")},
    ),
    "dscp_cleared": OnPath(
        partial(at_router, hook="forward", rule="ip daddr BRIDGE ip dscp set cs0"),
        {
            "dscp": (
                FAULT,
                "DSCP 1 (TOS 4, 0x04) arrives as DSCP 0",
                "have the routers on the way leave DSCP 1",
            ),
            "health": (FAULT, "a router on the way remarks it", "packetbridge"),
        },
    ),
    "dscp_dropped": OnPath(
        partial(at_router, hook="forward", rule="ip daddr BRIDGE ip dscp 1 drop"),
        {"dscp": (FAULT, "DSCP 1 (TOS 4, 0x04) does not arrive", "choose another one on both sides")},
    ),
    "vip_filtered": OnPath(
        partial(at_router, hook="forward", rule=f'iifname "LINK" ip saddr {VIP_ADDRESS} drop'),
        {"health": (FAULT, "does a filter on the way (uRPF) drop that source?", "a filter (uRPF, BCP 38)")},
    ),
    "backend_stopped": OnPath(
        no_backend,
        {"health": (FAULT, "the backend refuses connections", "start the server on the node")},
    ),
    "packetbridge_stopped": OnPath(
        no_packetbridge,
        {
            "channel": (FAULT, "", "start the packetbridge on"),
            "health": (FAULT, "", "start the packetbridge on the node"),
        },
    ),
    "large_packets_vanish": OnPath(
        narrow,
        {"mtu": (FAULT, "packets of 1500 bytes do not arrive", "mtu N")},
        is_down=False,
    ),
    "channel_filtered": OnPath(
        partial(at_router, hook="forward", rule="ip daddr BRIDGE udp dport 19507 drop"),
        {"channel": (FAULT, "", "let UDP to the channel's port pass")},
        is_down=False,
    ),
    "no_route": OnPath(
        partial(at_router, hook="forward", rule="ip daddr BRIDGE reject with icmp type host-unreachable"),
        {"health": (FAULT, "", "see that the node is up and that this host has a route")},
    ),
}
ROUNDS = [list(PATHS)[at : at + len(ALL)] for at in range(0, len(PATHS), len(ALL))]
"""Each node has something else that is wrong."""


@pytest.mark.parametrize("names", ROUNDS, ids="-".join)
def test_what_is_wrong_on_the_path_is_named_with_its_cure(sound_lab: Lab, names: list[str]) -> None:
    cases = dict(zip(ALL, (PATHS[name] for name in names), strict=True))
    with ExitStack() as broken:
        for node, case in cases.items():
            broken.enter_context(case.do(sound_lab, node))
        for node, case in cases.items():
            await_state(sound_lab, node, "down" if case.is_down else "up")

        def complaints() -> list[str]:
            found = examined(sound_lab.balancer)
            assert found.code == 1
            return [
                f"{node}: {check} {level} {said!r} {change!r} not in {found.of(check, node)}"
                for node, case in cases.items()
                for check, (level, said, change) in case.expected.items()
                if not any(
                    level == each.level and said in each.found and change in each.change
                    for each in found.of(check, node)
                )
            ]

        try:
            await_that(lambda: complaints() == [], 12)
        finally:
            print("\n".join(complaints()))
    await_sound(sound_lab)


def test_a_narrow_path_that_tells_of_itself_is_no_fault(sound_lab: Lab) -> None:
    sound_lab.set_path_mtu("node2", 1300)
    try:
        await_that(lambda: "1300 bytes" in only(mtu_of(sound_lab, "node2")[:1]).found)
        shrunk, arriving = mtu_of(sound_lab, "node2")
        assert shrunk.level == WARNING
        assert "raise the MTU on the way to 192.168.33.21" in shrunk.change
        assert arriving.level == OK
    finally:
        sound_lab.set_path_mtu("node2", 1500)
        sound_lab.balancer.run(["ip", "route", "flush", "cache"])
    await_sound(sound_lab)


def mtu_of(lab: Lab, node: str) -> list[Finding]:
    return examined(lab.balancer).of("mtu", node)


def test_a_node_s_doctor_says_that_the_backend_is_stopped(sound_lab: Lab) -> None:
    with no_backend(sound_lab, "node3"):
        found = examined(sound_lab.hosts["node3"])
    backend = only(found.of("backend"))
    assert (backend.level, backend.found) == (FAULT, "192.168.33.32:80: Connection refused")
    assert "start the server" in backend.change
    assert found.code == 1
    await_sound(sound_lab)


# --- a daemon that does not answer


def test_without_its_daemon_a_host_is_checked_all_the_same(sound_lab: Lab) -> None:
    with no_packetbridge(sound_lab, "node1"):
        found = examined(sound_lab.hosts["node1"], "packetbridge")
        path = only(found.of("path"))
        assert (path.level, path.change) == (WARNING, "start packetbridge and run `l3dsr doctor` again")
        refused = sound_lab.tool(sound_lab.hosts["node1"], "doctor", check=False)
        assert refused.returncode == 1
        assert "neither daemon runs here" in refused.stderr
    await_sound(sound_lab)


def test_a_daemon_that_hangs_is_named(sound_lab: Lab) -> None:
    """And what it would have mended."""
    host = sound_lab.hosts["node1"]
    device = f"net.ipv4.conf.{tun_of(host)}.forwarding"
    daemon = daemon_of(host)
    daemon.send_signal(signal.SIGSTOP)
    try:
        with sysctl(host, device, 0):
            found = examined(host)
    finally:
        daemon.send_signal(signal.SIGCONT)
    forwarding = only(found.of("forwarding"))
    assert (forwarding.level, forwarding.change) == (FAULT, f"run `sysctl -w {device}=1`")
    hanging = only(found.of("daemon"))
    assert (hanging.level, found.code) == (FAULT, 1)
    assert hanging.found.endswith("packetbridge.sock said nothing for 5 seconds")
    await_sound(sound_lab)
