"""`l3dsr doctor` names what is really wrong, with its cure, and finds nothing in a sound lab."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

import pytest

from lab import Host, Lab, daemon_program
from tests.lab import checked
from tests.lab.checked import ALL, ruled
from tests.lab.examined import (
    FAULT,
    OK,
    WARNING,
    await_sound,
    awaited,
    examined,
    no_backend,
    no_packetbridge,
    only,
    start_sound,
)
from tests.lab.observed import daemon_of, tun_of
from tests.lab.sockets import await_that

pytestmark = pytest.mark.root
on_one_engine = pytest.mark.engine("raw", reason="nothing of the engine is looked at")

VIP_ADDRESS = "192.168.33.10"


@pytest.fixture(scope="module")
def sound_lab(lab: Lab) -> Lab:
    start_sound(lab)
    return lab


# --- a sound lab


@pytest.mark.parametrize("name", ["balancer", *ALL])
def test_in_a_sound_lab_there_is_nothing_to_change(sound_lab: Lab, name: str) -> None:
    found = awaited(sound_lab.hosts[name])
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


@on_one_engine
def test_people_read_the_same_as_a_page(sound_lab: Lab) -> None:
    found = awaited(sound_lab.balancer)
    shown = [""]

    def are_counted() -> bool:
        shown[:] = sound_lab.tool(sound_lab.balancer, "doctor", check=False).stdout.splitlines()
        return shown[-1] == f"{len(found.findings)} ok, 0 warnings, 0 faults"

    await_that(are_counted)
    assert shown[0] == "balancer:"


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
        if (engine, name) == ("raw", "balancer"):
            assert not is_served()
        else:
            await_that(is_served)
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


ENDS_SERVICE = {
    "invalid_counted": ("filter", "forward", "ct state invalid counter drop"),
    "neither_new_nor_known": ("filter", "forward", "ct state != { new, established, related } drop"),
    "all_rejected": ("filter", "forward", "reject"),
    "reverse_path": ("filter", "prerouting", "fib saddr . iif oif missing drop"),
    "masquerade": ("nat", "postrouting", "oifname eth0 masquerade"),
}


@pytest.mark.engine("raw", reason="engine ebpf sends past netfilter")
@pytest.mark.parametrize("case", ENDS_SERVICE.values(), ids=ENDS_SERVICE)
def test_a_rule_that_ends_service_is_a_fault_until_its_cure_is_applied(
    sound_lab: Lab, case: tuple[str, str, str]
) -> None:
    kind, hook, text = case
    host = sound_lab.balancer

    def is_served() -> bool:
        asked = ["curl", "-sS", "--max-time", "2", "-o", "/dev/null", f"http://{VIP_ADDRESS}/1m"]
        return sound_lab.client.run(asked, check=False).returncode == 0

    with ruled(host, hook, text, kind=kind):
        assert not is_served()
        found = examined(host)
        assert (only(found.of("firewall")).level, found.code) == (FAULT, 1)
        host.run(["sh", "-c", only(found.of("firewall")).change.split("`")[1].replace('"', '\\"')])
        assert only(examined(host).of("firewall")).level == OK
        await_that(is_served)
    await_sound(sound_lab)


@on_one_engine
def test_a_shell_without_privileges_is_told_so(sound_lab: Lab) -> None:
    less = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]
    found = awaited(sound_lab.balancer, under=less)
    assert "CAP_NET_RAW" in only(found.of("privileges")).found
    assert "sudo l3dsr doctor" in only(found.of("privileges")).change
    assert {each.level for each in found.of("mtu")} == {WARNING}


@on_one_engine
def test_a_host_without_tun_devices_is_told_so(sound_lab: Lab) -> None:
    hidden = 'mount -t tmpfs none /dev/net && exec "$@"'
    under = ["unshare", "--mount", "sh", "-c", hidden, "sh"]
    found = examined(sound_lab.balancer, under=under)

    def is_alone() -> bool:
        nonlocal found
        found = examined(sound_lab.balancer, under=under)
        return found.bad(WARNING, FAULT) == found.of("tun")

    await_that(is_alone)
    assert only(found.of("tun")).change == "run `modprobe tun`"
    assert found.code == 1


@on_one_engine
def test_somebody_who_may_not_ask_the_daemon_is_told_so(sound_lab: Lab) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    found = examined(sound_lab.balancer, "balancer", under=nobody)
    assert "run `sudo l3dsr doctor`" in {each.change for each in found.of("path")}
    tool = [str(daemon_program("l3dsr")), "status", f"--state-dir={sound_lab.balancer.state_directory}"]
    refused = sound_lab.balancer.run([*nobody, *tool], check=False)
    assert refused.returncode == 1
    assert " is not for you: " in refused.stderr
    assert refused.stderr.endswith("use sudo\n")


@on_one_engine
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


@on_one_engine
def test_a_file_that_a_running_daemon_would_refuse_is_named_and_the_rest_is_checked(sound_lab: Lab) -> None:
    file = sound_lab.directory / "refused.toml"
    file.write_text(checked.configuration(sound_lab).replace("dscp = ", "dcsp = ", 1))
    found = examined(sound_lab.balancer, "balancer", f"--config={file}")
    wrong = only(found.bad(WARNING, FAULT))
    assert (wrong.check, "dcsp" in wrong.found, str(file) in wrong.found) == ("configuration", True, True)
    assert {"mtu", "channel", "health"} <= {each.check for each in found.findings}
    assert found.code == 1


def test_a_node_s_doctor_says_that_the_backend_is_stopped(sound_lab: Lab) -> None:
    with no_backend(sound_lab, "node3"):
        found = examined(sound_lab.hosts["node3"])
    backend = only(found.of("backend"))
    assert (backend.level, backend.found) == (FAULT, "192.168.33.32:80: Connection refused")
    assert "start the server" in backend.change
    assert found.code == 1
    await_sound(sound_lab)


# --- a daemon that does not answer


@on_one_engine
def test_without_its_daemon_a_host_is_checked_all_the_same(sound_lab: Lab) -> None:
    with no_packetbridge(sound_lab, "node1"):
        found = examined(sound_lab.hosts["node1"], "packetbridge")
        path = only(found.of("path"))
        assert (path.level, path.change) == (WARNING, "start packetbridge and run `l3dsr doctor` again")
        refused = sound_lab.tool(sound_lab.hosts["node1"], "doctor", check=False)
        assert refused.returncode == 1
        assert "neither daemon runs here" in refused.stderr
    await_sound(sound_lab)


@on_one_engine
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
