"""The daemons as guests of a host: what they leave alone, what they survive, and what remains of them."""

import itertools
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import Host, Lab
from lab.process import Process
from tests.lab.conversation import VIP
from tests.lab.fetch import NODE2, curl, md5_of_download
from tests.lab.footprint import footprint, pins
from tests.lab.lossless import repairs
from tests.lab.observed import counters_of, daemon_of, handoffs_in, node_of, tun_of
from tests.lab.sockets import ask, await_that, connection

pytestmark = pytest.mark.root

IMPATIENCE_SECONDS = 0.003
AT_THE_MOMENT = frozenset(
    (
        "answered",
        "collecting",
        "flows",
        "half_open",
        "map_bytes",
        "strangers",
        "tombstones",
        "verified",
        "waiting_bytes",
    )
)
"""Counters that become less with time."""
STARTED: dict[str, Callable[[Lab], tuple[Host, Process]]] = {
    "balancer": lambda lab: (lab.balancer, lab.start_balancer()),
    "packetbridge": lambda lab: (lab.nodes[0], lab.start_packetbridge("node1")),
}
ONLY_NODE1 = ["node1=192.168.33.20"]
both = pytest.mark.parametrize("program", list(STARTED))


def host_of(lab: Lab, program: str) -> Host:
    return lab.balancer if program == "balancer" else lab.nodes[0]


@contextmanager
def serving(host: Host, ready: str, *argv: str) -> Iterator[None]:
    process = host.start([sys.executable, "-u", *argv], name="server")
    try:
        process.wait_for(ready)
        yield
    finally:
        process.stop()


def reload(daemon: Process) -> None:
    """Returns once the daemon has read its key file."""
    before = daemon.read_log().count("INFO: reloaded: ")
    daemon.send_signal(signal.SIGHUP)
    await_that(lambda: daemon.read_log().count("INFO: reloaded: ") > before)


# --- the end of a daemon


@both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_daemon_leaves_the_host_as_it_was(lab: Lab, program: str, number: signal.Signals) -> None:
    before = footprint(host_of(lab, program))
    host, daemon = STARTED[program](lab)
    assert footprint(host) != before
    daemon.send_signal(number)
    assert daemon.wait() == 0, daemon.read_log()
    assert footprint(host) == before
    *_, counters, last = daemon.read_log().splitlines()
    assert f" {program} INFO: counters: " in counters
    assert last.endswith(f" {program} INFO: stopped by {number.name}")


@both
def test_an_impatient_second_signal_does_not_break_off_the_cleaning_up(lab: Lab, program: str) -> None:
    before = footprint(host_of(lab, program))
    host, daemon = STARTED[program](lab)
    for number in itertools.cycle((signal.SIGTERM, signal.SIGINT)):
        daemon.send_signal(number)
        time.sleep(IMPATIENCE_SECONDS)
        if not daemon.running:
            break
    assert daemon.returncode == 0, daemon.read_log()
    assert footprint(host) == before
    assert "Traceback" not in daemon.read_log()


@both
def test_a_daemon_that_is_stopped_while_it_starts_leaves_nothing(
    lab: Lab, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(lab, program)
    before = footprint(host)
    monkeypatch.setattr(Process, "wait_for", lambda *_: None)
    _, daemon = STARTED[program](lab)
    await_that(lambda: bool(host.run(["ip", "-oneline", "link", "show", "type", "tun"]).stdout))
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait() == 0, daemon.read_log()
    assert footprint(host) == before
    assert "Traceback" not in daemon.read_log()


@pytest.mark.engine("raw", reason="eBPF programs are to outlive a killed daemon")
def test_a_killed_balancer_leaves_nothing(lab: Lab) -> None:
    before = footprint(lab.balancer)
    lab.start_balancer().kill()
    assert footprint(lab.balancer) == before


@pytest.mark.engine("raw", reason="rule, table and mark are how the raw data plane gets replies")
def test_a_killed_packetbridge_leaves_two_rules_that_the_next_start_takes_away(lab: Lab) -> None:
    host = lab.nodes[0]
    before = footprint(host)
    lab.start_packetbridge("node1").kill()
    left = [line for line in footprint(host) if line not in before]
    assert len(left) == 2
    marked = r"from all fwmark 0x4c33[0-9a-f]{4} iif lo"
    assert re.match(rf"100:\s+{marked} lookup \d+ proto 76", left[0])
    assert re.match(rf"101:\s+{marked} blackhole proto 76", left[1])
    assert curl(lab.client, "http://192.168.33.30/direct") == "node1 /direct\n"
    elsewhere = lab.start_packetbridge("node1", "--backend=192.168.33.40:80")
    assert not set(left) & set(footprint(host))
    assert elsewhere.stop() == 0
    assert footprint(host) == before


@pytest.mark.engine("ebpf", reason="the raw data plane ends with its process")
@both
def test_what_a_killed_daemon_leaves_goes_when_the_next_one_stops(lab: Lab, program: str) -> None:
    before = footprint(host_of(lab, program))
    host, daemon = STARTED[program](lab)
    daemon.kill()
    assert pins(host) != []
    assert host.run(["sh", "-c", "ip link show type tun; nft list ruleset"]).stdout == ""
    _, successor = STARTED[program](lab)
    assert successor.stop() == 0
    assert footprint(host) == before


@both
def test_a_daemon_whose_tun_is_deleted_ends_with_one_clear_line(lab: Lab, program: str) -> None:
    host = host_of(lab, program)
    before = footprint(host)
    _, daemon = STARTED[program](lab)
    tun = tun_of(host)
    host.run(["ip", "link", "delete", tun])
    assert daemon.wait() == 2
    said = [line for line in daemon.read_log().splitlines() if " INFO: " not in line]
    assert said == [f"{program}: device {tun} has been deleted: start the daemon again"]
    assert footprint(host) == before


# --- the host beside the daemons


def test_other_ports_and_protocols_of_the_vip_keep_working(running_lab: Lab) -> None:
    client, balancer = running_lab.client, running_lab.balancer
    directory = balancer.directory / "other_service"
    directory.mkdir()
    (directory / "file").write_text("from another port\n")
    web = ["-m", "http.server", "8080", "--bind", "192.168.33.10", "--directory", str(directory)]
    echo = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM)\n"
        "s.bind(('192.168.33.10', 80)); print('bound')\n"
        "while True: data, client = s.recvfrom(2048); s.sendto(data, client)"
    )
    ask = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(20)\n"
        "s.connect(('192.168.33.10', 80)); s.send(b'over UDP'); print(s.recv(2048).decode())"
    )
    with serving(balancer, "Serving HTTP", *web), serving(balancer, "bound", "-c", echo):
        client.run(["ping", "-c1", "-W20", "192.168.33.10"])
        assert curl(client, f"{VIP}:8080/file") == "from another port\n"
        assert client.run([sys.executable, "-c", ask]).stdout == "over UDP\n"
        assert client.run(["curl", "-sS", f"{VIP}:81"], check=False).returncode == 7
        assert curl(client, f"{VIP}/bridged").endswith(" /bridged\n")
    assert counters_of(daemon_of(balancer)).keys().isdisjoint({"bugs", "tap_malformed", "dropped_bad_flags"})


def test_the_nodes_own_connections_are_left_alone(running_lab: Lab) -> None:
    node = running_lab.nodes[0]
    before = packets_of(daemon_of(node))
    for source in ("192.168.33.20", "192.168.33.30", "10.33.1.2"):
        answer = curl(node, "-i", "--interface", source, f"{NODE2}/own")
        assert f"X-Client: {source}\r\n" in answer
        assert answer.endswith("node2 /own\n")
    assert packets_of(daemon_of(node)) == before


def packets_of(daemon: Process) -> dict[str, int]:
    """What it has counted so far."""
    return {name: number for name, number in counters_of(daemon).items() if name not in AT_THE_MOMENT}


def test_a_vip_that_is_only_routed_is_served_as_well(engine: str) -> None:
    with Lab(vip_local=False, engine=engine) as routed:
        before = footprint(routed.balancer)
        routed.start_daemons()
        assert md5_of_download(routed.client, f"{VIP}/1m") == routed.content.md5("1m")
        assert daemon_of(routed.balancer).stop() == 0
        assert footprint(routed.balancer) == before


def test_bridge_and_backend_may_be_addresses_of_the_loopback_interface(lab: Lab) -> None:
    """A link that is narrower than the client's: what is larger than it would be lost time and again."""
    node = lab.nodes[0]
    lab.set_link_mtu("node1", 1400)
    moved = ("192.168.33.20/32", "192.168.33.30/32")
    for address in moved:
        node.run(["ip", "address", "delete", address, "dev", "eth0"])
        node.run(["ip", "address", "add", address, "dev", "lo"])
    before = footprint(node)
    bridge = lab.start_packetbridge("node1")
    balancer = lab.start_balancer(nodes=ONLY_NODE1)

    def download() -> None:
        assert md5_of_download(lab.client, f"{VIP}/1m") == lab.content.md5("1m")

    try:
        assert "node1 TcpRetransSegs" not in repairs(lab, download)
    finally:
        balancer.stop()
        assert bridge.stop() == 0
        assert footprint(node) == before
        for address in moved:
            node.run(["ip", "address", "delete", address, "dev", "lo"])
            node.run(["ip", "address", "add", address, "dev", "eth0"])
        lab.set_link_mtu("node1", 1500)


@pytest.mark.parametrize("role", ["balancer", "node1"])
def test_an_interface_going_down_and_up_is_survived(running_lab: Lab, role: str) -> None:
    host = running_lab.hosts[role]
    daemon = daemon_of(host)
    gateway = str(running_lab.topology.link(role).router)
    host.run(["ip", "link", "set", "eth0", "down"])
    host.run(["ip", "link", "set", "eth0", "up"])
    host.run(["ip", "route", "add", "default", "via", gateway, "dev", "eth0"])
    host.run(["ping", "-c1", "-w10", gateway])
    answers = curl(running_lab.client, "-H", "Connection: close", f"{VIP}/after/[1-30]")
    assert len(answers.splitlines()) == 30
    assert set(answers.split()[::2]) == {"node1", "node2", "node3"}
    assert daemon.running


def asked_by_second_link(lab: Lab, client: socket.socket, target: str) -> bool:
    """Whether a request has taken this way."""
    before = lab.router.interface_bytes("second").received
    assert ask(client, target).status == 200
    return lab.router.interface_bytes("second").received > before + len(target)


def test_a_route_to_a_node_that_changes_is_followed(running_lab: Lab) -> None:
    """By a second link to the router, and back when that has gone."""
    balancer, router = running_lab.balancer, running_lab.router
    node = running_lab.topology.nodes[0]
    target = next(f"/moved/{n}" for n in range(100) if node_of(running_lab, f"/moved/{n}") == node.name)
    link = ["ip", "link", "add", "second", "type", "veth", "peer", "name", "eth1"]
    router.run([*link, "netns", balancer.namespace])
    router.run(["ip", "address", "add", "10.33.99.1/24", "dev", "second"])
    router.run(["ip", "link", "set", "second", "up"])
    balancer.run(["ip", "address", "add", "10.33.99.2/24", "dev", "eth1"])
    balancer.run(["ip", "link", "set", "eth1", "up"])
    try:
        with connection(running_lab) as client:
            assert ask(client, target).node == node.name
            balancer.run(["ip", "route", "add", f"{node.bridge}/32", "via", "10.33.99.1"])
            await_that(lambda: asked_by_second_link(running_lab, client, target))
            router.run(["ip", "link", "delete", "second"])
            assert ask(client, target).node == node.name
    finally:
        router.run(["ip", "link", "delete", "second"], check=False)


def test_two_installations_side_by_side_know_nothing_of_each_other(lab: Lab, running_lab: Lab) -> None:
    lab.start_daemons()
    try:
        before = packets_of(daemon_of(running_lab.balancer))
        curl(lab.client, f"{VIP}/beside/[1-5]")
        assert packets_of(daemon_of(running_lab.balancer)) == before
    finally:
        stopped = [daemon_of(host).stop() for host in (lab.balancer, *lab.nodes)]
    assert stopped == [0, 0, 0, 0]
    assert curl(running_lab.client, f"{VIP}/alone").endswith(" /alone\n")


# --- what they say and heed


def test_packets_and_connections_are_counted_and_not_logged(running_lab: Lab) -> None:
    daemons = [daemon_of(host) for host in (running_lab.balancer, *running_lab.nodes)]
    logs = [daemon.read_log() for daemon in daemons]
    counted = counters_of(daemons[0])
    logs[0] = daemons[0].read_log()
    for _ in range(20):
        curl(running_lab.client, f"{VIP}/logged")
    assert [daemon.read_log() for daemon in daemons] == logs
    after = counters_of(daemons[0])
    grown = {name: number - counted.get(name, 0) for name, number in after.items()}
    assert handoffs_in(grown) == 20


def test_a_key_is_changed_without_losing_a_connection(lab: Lab, tmp_path: Path) -> None:
    """Nodes accept both keys first; then the balancer signs with the new one; then the old one goes."""
    old, new = "00112233445566778899aabbccddeeff\n", "ffeeddccbbaa99887766554433221100\n"
    at_node, at_balancer = tmp_path / "node.key", tmp_path / "balancer.key"
    for path in (at_node, at_balancer):
        path.touch(mode=0o600)
        path.write_text(old)
    bridge = lab.start_packetbridge("node1", f"--key-file={at_node}")
    balancer = lab.start_balancer(f"--key-file={at_balancer}", nodes=ONLY_NODE1)
    for daemon, path, keys in (
        (bridge, at_node, old + new),
        (balancer, at_balancer, new + old),
        (balancer, at_balancer, new),
        (bridge, at_node, new),
    ):
        path.write_text(keys)
        reload(daemon)
        assert curl(lab.client, f"{VIP}/key") == "node1 /key\n"
    assert "handoff_bad_tag" not in counters_of(bridge)
    at_node.write_text("rubbish\n")
    bridge.send_signal(signal.SIGHUP)
    bridge.wait_for(
        f"ERROR: not reloaded, all stays as it was: key file {at_node} line 1 is not 32 hex digits\n"
    )
    assert curl(lab.client, f"{VIP}/key") == "node1 /key\n"
    assert (balancer.stop(), bridge.stop()) == (0, 0)


def test_the_operator_is_told_of_keys_that_do_not_match(lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.touch(mode=0o600)
    other.write_text("00112233445566778899aabbccddeeff\n")
    bridge = lab.start_packetbridge("node1", f"--key-file={other}")
    balancer = lab.start_balancer(nodes=ONLY_NODE1)
    lab.client.run(["curl", "-sS", "--max-time", "1", VIP], check=False)
    bridge.wait_for("WARNING: handoffs with a wrong tag are dropped: has the balancer the same key file?")
    assert len(re.findall("WARNING: handoffs", bridge.read_log())) == 1
    assert (balancer.stop(), bridge.stop()) == (0, 0)
