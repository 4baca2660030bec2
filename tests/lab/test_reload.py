"""Another configuration while connections are open: established flows stay where they are, whatever changes
for new ones, and what cannot be is refused as a whole.
"""

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from common.control_client import ControlError
from lab import Host, Lab
from tests.lab.configured import (
    REFUSED,
    RELOADED,
    answers,
    bridge,
    generation,
    nodes_of,
    outcomes,
    pool,
    reload,
    reload_by_signal,
    service,
    vip,
)
from tests.lab.conftest import check_for_bugs
from tests.lab.conversation import VIP, VIP_ADDRESS
from tests.lab.observed import counters_of, daemon_of
from tests.lab.sockets import ask, await_that, connection, say

pytestmark = pytest.mark.root

SECOND_VIP_ADDRESS = "192.168.33.11"
ALL = {"node1": 1, "node2": 1, "node3": 1}
MAIN_SERVICE = service(f"{VIP_ADDRESS}:80", 1, name="www")
SECOND_SERVICE = service(f"{SECOND_VIP_ADDRESS}:80", 2, name="second")
URLS = [f"{VIP}/reload/{number}" for number in range(90)]
DOWNLOADS = range(1_000_000_000, 1_000_000_012)
"""Bytes a second that the server may send: URLs of one large file, at different nodes."""
SMALL_BUFFER = 1 << 15
SIP, SIP_SECONDS = 1 << 10, 0.01
MOST_SIPPED = 1 << 19


def bridge_text(lab: Lab, node: str, *, with_second: bool = False) -> str:
    place = lab.topology.node(node)
    vips = [vip(f"{VIP_ADDRESS}:80", 1, f"{place.backend}:80")]
    if with_second:
        vips.append(vip(f"{SECOND_VIP_ADDRESS}:80", 2, f"{place.second_backend}:80"))
    return bridge(lab, node, *vips)


def configure_balancer(lab: Lab, text: str) -> None:
    lab.configuration_file(lab.balancer, "balancer").write_text(text)
    reload(lab.balancer, "balancer")


def configure_bridges(lab: Lab, *, with_second: bool) -> None:
    for node in lab.nodes:
        path = lab.configuration_file(node, "packetbridge")
        path.write_text(bridge_text(lab, node.name, with_second=with_second))
        reload(node, "packetbridge")


@pytest.fixture(scope="module")
def started_lab(engine: str) -> Iterator[Lab]:
    with Lab(engine=engine) as fresh:
        for node in fresh.nodes:
            fresh.start_configured(node, "packetbridge", bridge_text(fresh, node.name))
        fresh.start_configured(fresh.balancer, "balancer", pool(fresh, ALL) + MAIN_SERVICE)
        fresh.balancer.run(["ip", "route", "add", "unreachable", "192.0.2.0/24"])
        yield fresh
        check_for_bugs(fresh)


@pytest.fixture
def lab(started_lab: Lab) -> Lab:
    """All have the configuration of the start again."""
    configure_balancer(started_lab, pool(started_lab, ALL) + MAIN_SERVICE)
    for node in started_lab.nodes:
        path = started_lab.configuration_file(node, "packetbridge")
        path.write_text(bridge_text(started_lab, node.name))
    await_that(lambda: all(is_taken(node) for node in started_lab.nodes))
    return started_lab


def node_by_node(lab: Lab, targets: Iterable[str], *options: str) -> dict[str, str]:
    """For each node, one of the targets that it answers."""
    targets = list(targets)
    found = answers(lab, [VIP + target for target in targets], *options)
    assert {answer.status for answer in found} == {200}
    return {answer.node: target for answer, target in zip(found, targets, strict=True)}


@contextmanager
def kept_connections(lab: Lab, address: str = VIP_ADDRESS) -> Iterator[None]:
    """One at each node, which are where they were when the block is left."""
    targets = node_by_node(lab, [f"/kept/{number}" for number in range(20)])
    with ExitStack() as all_open:
        clients = {node: all_open.enter_context(connection(lab, address=address)) for node in targets}
        for node, client in clients.items():
            assert ask(client, targets[node]).node == node
        yield
        for node, client in clients.items():
            assert ask(client, "/still-there").node == node


@contextmanager
def downloads(lab: Lab) -> Iterator[None]:
    """One from each node, which go on while the block runs, however long, and are complete afterwards."""
    targets = node_by_node(lab, [f"/slow/file/{number}/1m" for number in DOWNLOADS], "-I")
    content = lab.content.path("1m").read_bytes()
    with ExitStack() as all_open, ThreadPoolExecutor(len(targets)) as threads:
        clients = [all_open.enter_context(connection(lab, receive_buffer=SMALL_BUFFER)) for _ in targets]
        for client, target in zip(clients, targets.values(), strict=True):
            say(client, target, "Connection: close")
        is_over = threading.Event()
        sipping = [threads.submit(sip, client, is_over) for client in clients]
        try:
            yield
        finally:
            is_over.set()
        received = [thread.result() for thread in sipping]
        for number, client in enumerate(clients):
            while more := client.recv(1 << 20):
                received[number] += more
    assert [answer.partition(b"\r\n\r\n")[2] for answer in received] == [content] * len(targets)


def sip(client: socket.socket, is_over: threading.Event) -> bytes:
    """What has come until then: little at a time, and never all."""
    received = client.recv(SIP)
    while not is_over.wait(SIP_SECONDS):
        if len(received) < MOST_SIPPED:
            received += client.recv(SIP)
    return received


# --- what a reload changes, and what it leaves


Reload = Callable[[Lab], str]
"""Of the balancer; what is said of it."""


def by_signal(lab: Lab) -> str:
    return reload_by_signal(daemon_of(lab.balancer)).removeprefix(RELOADED)


def by_tool(lab: Lab) -> str:
    return lab.tool(lab.balancer, "reload").stdout


@pytest.mark.parametrize("how", [by_signal, by_tool])
def test_a_changed_weight_is_for_new_flows_only(lab: Lab, how: Reload) -> None:
    lab.configuration_file(lab.balancer, "balancer").write_text(
        pool(lab, {"node1": 1, "node2": 3, "node3": 0}) + MAIN_SERVICE
    )
    before = generation(lab.balancer, "balancer")
    with kept_connections(lab), downloads(lab):
        assert f"generation {before + 1}" in how(lab)
        shares = Counter(nodes_of(lab, URLS))
    assert shares.keys() == {"node1", "node2"}
    assert shares["node2"] > 1.5 * shares["node1"]


def test_a_removed_node_keeps_its_flows_and_the_others_keep_their_urls(lab: Lab) -> None:
    before = nodes_of(lab, URLS)
    with kept_connections(lab), downloads(lab):
        configure_balancer(lab, pool(lab, {"node1": 1, "node3": 1}) + MAIN_SERVICE)
        without = nodes_of(lab, URLS)
    assert set(without) == {"node1", "node3"}
    moved = [old for old, new in zip(before, without, strict=True) if old not in ("node2", new)]
    assert len(moved) <= 0.05 * len(URLS)
    configure_balancer(lab, pool(lab, ALL) + MAIN_SERVICE)
    assert nodes_of(lab, URLS) == before


def test_an_added_node_gets_its_share_of_new_flows(lab: Lab) -> None:
    configure_balancer(lab, pool(lab, {"node1": 1, "node2": 1}) + MAIN_SERVICE)
    before = nodes_of(lab, URLS)
    with kept_connections(lab):
        configure_balancer(lab, pool(lab, ALL) + MAIN_SERVICE)
        after = nodes_of(lab, URLS)
    assert 0.2 < after.count("node3") / len(URLS) < 0.5
    moved = [new for old, new in zip(before, after, strict=True) if new not in ("node3", old)]
    assert len(moved) <= 0.05 * len(URLS)


def test_another_hash_key_is_for_new_flows_only(lab: Lab) -> None:
    with kept_connections(lab):
        text = service(f"{VIP_ADDRESS}:80", 1, name="www", hash_key="segments:1")
        configure_balancer(lab, pool(lab, ALL) + text)
        assert len(set(nodes_of(lab, URLS))) == 1


def test_services_come_and_go_beside_others(lab: Lab) -> None:
    """First at the nodes, then at the balancer, and back in the other order."""
    url = f"http://{SECOND_VIP_ADDRESS}/second"
    first = VIP + "/first"
    assert lab.client.run(["curl", "-sS", "--max-time", "30", url], check=False).returncode == 7
    with kept_connections(lab), downloads(lab):
        configure_bridges(lab, with_second=True)
        configure_balancer(lab, pool(lab, ALL) + MAIN_SERVICE + SECOND_SERVICE)
        second, main = answers(lab, [url, first])
        assert (second.status, main.status) == (200, 200)
        assert second.backend == str(lab.topology.node(second.node).second_backend)
        with kept_connections(lab, SECOND_VIP_ADDRESS):
            configure_balancer(lab, pool(lab, ALL) + SECOND_SERVICE + MAIN_SERVICE)
        configure_balancer(lab, pool(lab, ALL) + MAIN_SERVICE)
        configure_bridges(lab, with_second=False)
        assert lab.client.run(["curl", "-sS", "--max-time", "30", url], check=False).returncode == 7
        assert answers(lab, [first])[0].status == 200


def test_the_flows_of_a_removed_service_end_and_that_is_said(lab: Lab) -> None:
    configure_bridges(lab, with_second=True)
    configure_balancer(lab, pool(lab, ALL) + MAIN_SERVICE + SECOND_SERVICE)
    with kept_connections(lab), connection(lab, address=SECOND_VIP_ADDRESS) as client:
        assert ask(client, "/second").status == 200
        configure_balancer(lab, pool(lab, ALL) + MAIN_SERVICE)
        await_that(lambda: "forgotten" in daemon_of(lab.balancer).read_log())
        with pytest.raises(ConnectionResetError):
            ask(client, "/second")


def test_a_node_that_moves_to_another_address_gets_new_flows_there(lab: Lab) -> None:
    text = pool(lab, {"node1": 1, "node2": 1}) + MAIN_SERVICE
    configure_balancer(lab, text)
    before = nodes_of(lab, URLS)
    with kept_connections(lab), downloads(lab):
        configure_balancer(lab, text.replace("192.168.33.21", "192.168.33.22"))
        assert nodes_of(lab, URLS) == [{"node2": "node3"}.get(node, node) for node in before]


def test_a_dscp_goes_from_one_service_to_another_at_once(lab: Lab) -> None:
    """At nodes it does so once the last flow is gone."""
    for node in lab.topology.nodes:
        path = lab.configuration_file(lab.hosts[node.name], "packetbridge")
        path.write_text(bridge(lab, node.name, vip(f"{SECOND_VIP_ADDRESS}:80", 1, f"{node.backend}:80")))
    await_that(lambda: all(is_taken(node) for node in lab.nodes))
    configure_balancer(lab, pool(lab, ALL) + service(f"{SECOND_VIP_ADDRESS}:80", 1, name="second"))
    found = nodes_of(lab, [f"http://{SECOND_VIP_ADDRESS}/moved/{number}" for number in range(20)])
    assert set(found) == ALL.keys()
    assert lab.client.run(["curl", "-sS", "--max-time", "30", VIP], check=False).returncode == 7


def is_taken(node: Host) -> bool:
    """What stands in the file of the node's packetbridge."""
    try:
        reload(node, "packetbridge")
    except ControlError:
        return False
    return True


def test_keys_are_exchanged_one_daemon_after_another_under_traffic(lab: Lab) -> None:
    """First the nodes know both, then the balancer signs with the new one, then the old one goes."""
    (old,) = lab.key_file.read_text().split()
    bridges = [daemon_of(node) for node in lab.nodes]
    for new in (f"{3:032x}", f"{4:032x}"):
        with kept_connections(lab):
            for keys, hosts in (
                ([old, new], lab.nodes),
                ([new, old], [lab.balancer]),
                ([new], [*lab.nodes, lab.balancer]),
            ):
                lab.key_file.write_text("\n".join(keys) + "\n")
                for host in hosts:
                    reload(host, "balancer" if host is lab.balancer else "packetbridge")
                    assert set(nodes_of(lab, URLS[:20])) == ALL.keys()
        old = new
    assert [counters_of(each).get("handoff_bad_tag", 0) for each in bridges] == [0, 0, 0]


def test_the_level_of_the_log_is_changed_by_a_reload(lab: Lab) -> None:
    daemon = daemon_of(lab.balancer)
    before = len(outcomes(daemon))
    configure_balancer(lab, 'log-level = "error"\n' + pool(lab, ALL) + MAIN_SERVICE)
    assert len(outcomes(daemon)) == before
    configure_balancer(lab, pool(lab, ALL) + MAIN_SERVICE)
    await_that(lambda: len(outcomes(daemon)) == before + 1)


def test_a_node_that_has_lost_its_route_keeps_no_change_back(lab: Lab) -> None:
    node = lab.topology.node("node2")
    lab.balancer.run(["ip", "route", "add", "unreachable", str(node.bridge)])
    try:
        configure_balancer(lab, pool(lab, {**ALL, "node2": 0}) + MAIN_SERVICE)
        assert set(nodes_of(lab, URLS)) == {"node1", "node3"}
    finally:
        lab.balancer.run(["ip", "route", "delete", "unreachable", str(node.bridge)])


# --- what is refused


EVERYTHING = "(all of the file)"
BALANCER_REFUSES = {
    "no_toml": ("", "[[", "not TOML"),
    "empty": (EVERYTHING, "", "there is no [[service]] any more"),
    "unknown_key": ("dscp = 1", "dhcp = 1", 'service "www": unknown key "dhcp"'),
    "dscp": ("dscp = 1", "dscp = 64", 'service "www": dscp 64 is not a number from 1 to 63'),
    "other_dscp": ("dscp = 1", "dscp = 3", "has DSCP 1 and cannot get 3 while it is served"),
    "window_scale": ("dscp = 1", "dscp = 1\nwindow-scale = 2", "has promised window scale 7"),
    "unknown_node": ("33.21", "33.300", "'192.168.33.300' is not an IPv4 address"),
    "no_route": ("192.168.33.21", "192.0.2.1", "no route to 192.0.2.1"),
    "limits": ("[[pool]]", "[limits]\nflows = 5\n[[pool]]", "limits cannot change while the balancer runs"),
    "channel": ("", "channel-port = 5\n", "channel-port cannot change while the balancer runs"),
    "keep_flows": ("", "keep-flows = true\n", "keep-flows cannot change while the balancer runs"),
    "metrics": ("", 'metrics = "off"\n', "metrics cannot change while the balancer runs"),
}
BRIDGE_REFUSES = {
    "no_toml": ("", "[[", "not TOML"),
    "empty": (EVERYTHING, "", "there is no [[vip]] any more"),
    "unknown_key": ("dscp = 1", "dhcp = 1", 'vip 1: unknown key "dhcp"'),
    "bridge_address": (
        'listen = "',
        'listen = "10.33.1.2"\n#',
        "listen cannot change while the packetbridge",
    ),
    "adopt": ("", 'adopt = "off"\n', "adopt cannot change while the packetbridge runs"),
    "no_such_address": (
        "[[vip]]",
        '[[vip]]\nvip = "192.168.33.11"\ndscp = 2\nbackend = "192.168.33.77:80"\n[[vip]]',
        "no interface has the address 192.168.33.77",
    ),
    "backend": ("33.30:80", "33.40:80", "flow of VIP 192.168.33.10:80 to 192.168.33.30:80: drain it first"),
}


def assert_is_refused(lab: Lab, host: Host, daemon: str, complaint: str) -> None:
    """By tool and log; nothing is different, for old flows nor for new ones."""
    process = daemon_of(host)
    before, answered = generation(host, daemon), answers(lab, URLS[:20])
    logged = len(process.read_log())
    done = lab.tool(host, "reload", check=False)
    await_that(lambda: complaint in process.read_log()[logged:])
    assert (done.returncode, complaint in done.stderr, done.stderr.count("\n")) == (1, True, 1)
    said = reload_by_signal(process)
    assert said.startswith(REFUSED)
    assert complaint in said
    assert generation(host, daemon) == before
    assert answers(lab, URLS[:20]) == answered
    assert {answer.status for answer in answered} == {200}


def spoil(lab: Lab, host: Host, daemon: str, right: str, wrong: str) -> None:
    """Where ``right`` is empty, ``wrong`` comes first in the file."""
    path = lab.configuration_file(host, daemon)
    text = path.read_text()
    if right is EVERYTHING:
        right = text
    assert right in text
    path.write_text(text.replace(right, wrong, 1))


@pytest.mark.parametrize("case", BALANCER_REFUSES)
def test_a_balancer_goes_on_with_the_old_configuration_if_it_refuses_the_new_one(lab: Lab, case: str) -> None:
    right, wrong, complaint = BALANCER_REFUSES[case]
    spoil(lab, lab.balancer, "balancer", right, wrong)
    with kept_connections(lab):
        assert_is_refused(lab, lab.balancer, "balancer", complaint)


@pytest.mark.parametrize("case", BRIDGE_REFUSES)
def test_a_packetbridge_goes_on_with_the_old_configuration_if_it_refuses_the_new_one(
    lab: Lab, case: str
) -> None:
    right, wrong, complaint = BRIDGE_REFUSES[case]
    spoil(lab, lab.nodes[0], "packetbridge", right, wrong)
    with kept_connections(lab):
        assert_is_refused(lab, lab.nodes[0], "packetbridge", complaint)


@pytest.mark.parametrize("keys", ["zz\n", "", f"{1:032x}\n" * 3], ids=["no_hex", "empty", "three"])
def test_a_key_file_that_cannot_be_used_leaves_the_old_keys_in_force(lab: Lab, keys: str) -> None:
    good = lab.key_file.read_text()
    lab.key_file.write_text(keys)
    try:
        with kept_connections(lab):
            assert_is_refused(lab, lab.balancer, "balancer", f"key file {lab.key_file} ")
            assert_is_refused(lab, lab.nodes[0], "packetbridge", f"key file {lab.key_file} ")
    finally:
        lab.key_file.write_text(good)


def test_a_vip_of_another_process_is_refused_and_served_once_that_has_ended(lab: Lab, tmp_path: Path) -> None:
    configure_bridges(lab, with_second=True)
    apart = [f"--state-dir={tmp_path}", f"--control={tmp_path}/apart.sock", "--metrics=off"]
    other = lab.start_balancer(f"--listen={SECOND_VIP_ADDRESS}:80", "--dscp=2", *apart)
    path = lab.configuration_file(lab.balancer, "balancer")
    path.write_text(pool(lab, {"node1": 1}) + MAIN_SERVICE + SECOND_SERVICE)
    urls = [url.replace(VIP_ADDRESS, SECOND_VIP_ADDRESS) for url in URLS]
    with kept_connections(lab):
        complaint = f"VIP {SECOND_VIP_ADDRESS}:80 is already served by another process"
        with pytest.raises(ControlError, match=complaint):
            reload(lab.balancer, "balancer")
        assert set(nodes_of(lab, URLS)) == set(nodes_of(lab, urls)) == ALL.keys()
        assert other.stop() == 0
        reload(lab.balancer, "balancer")
        assert set(nodes_of(lab, URLS)) == set(nodes_of(lab, urls)) == {"node1"}


def test_a_backend_without_flows_is_changed(lab: Lab) -> None:
    """Once those that it had have ended."""
    node = lab.topology.nodes[0]
    spoil(lab, lab.nodes[0], "packetbridge", f"{node.backend}:80", f"{node.second_backend}:80")
    await_that(lambda: is_taken(lab.nodes[0]))
    found = [answer for answer in answers(lab, URLS) if answer.node == node.name]
    assert {answer.backend for answer in found} == {str(node.second_backend)}
