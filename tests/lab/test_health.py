"""Health checks through the real path: what they find, and what follows from it."""

import json
import re
import time
from contextlib import ExitStack
from functools import partial

import pytest

from lab import Host, Lab
from lab.impairment import TO_NODE
from tests.lab import checked
from tests.lab.breakages import BREAKAGES, BRIDGE, other_dscp, packetbridge_frozen
from tests.lab.checked import (
    CHECK_SOURCE,
    await_all_up,
    await_state,
    checks_dropped,
    configured,
    node_flows,
    operated,
)
from tests.lab.conversation import VIP, Client, converse, request
from tests.lab.fetch import curl
from tests.lab.observed import daemon_of, node_of
from tests.lab.sockets import ask, await_that, connection

pytestmark = pytest.mark.root

VIP_ADDRESS = "192.168.33.10"
URLS = 500
AT_ONCE_SECONDS = 10.0
"""Before a client gives up, at least."""


@pytest.fixture(scope="module")
def checked_lab(lab: Lab) -> Lab:
    lab.router.sysctl("net.ipv4.icmp_ratelimit", 0)
    for node in lab.topology.nodes:
        lab.start_packetbridge(node.name)
    checked.start(lab)
    await_all_up(lab)
    return lab


def is_found(lab: Lab, failure: str, text: str) -> bool:
    """At node1, by its last check."""
    check = checked.checks(lab)["node1"]
    return check.failure == failure and text in check.text


def shown_status(lab: Lab) -> str:
    return lab.tool(lab.balancer, "status").stdout


@pytest.mark.parametrize("name", BREAKAGES)
def test_the_broken_part_is_named(checked_lab: Lab, name: str) -> None:
    begin, failure, text = BREAKAGES[name]
    with begin(checked_lab):
        await_state(checked_lab, "node1", "down")
        await_that(lambda: is_found(checked_lab, failure, text))
        await_that(lambda: text in shown_status(checked_lab).partition("node1 is down: ")[2])
    await_all_up(checked_lab)


def test_a_vip_map_that_differs_is_logged_when_it_does_and_when_no_longer(checked_lab: Lab) -> None:
    """Whatever becomes of checks."""
    log = daemon_of(checked_lab.balancer).read_log
    before = len(log())
    with other_dscp(checked_lab):
        await_that(lambda: "WARNING: node node1 maps VIP 192.168.33.10:80 to DSCP 5, here" in log()[before:])
    await_that(lambda: "INFO: no longer: node node1 maps VIP 192.168.33.10:80 to DSCP 5" in log()[before:])
    assert log()[before:].count(" WARNING: node node1 maps ") == 1
    await_all_up(checked_lab)


@pytest.mark.engine("raw", reason="the eBPF programs go on while their daemon does nothing")
def test_a_packetbridge_that_hangs_is_silent(checked_lab: Lab) -> None:
    with packetbridge_frozen(checked_lab):
        await_state(checked_lab, "node1", "down")
        await_that(lambda: is_found(checked_lab, "bridge_silent", "no answer from UDP port 19507"))
    await_all_up(checked_lab)


@pytest.mark.engine("ebpf", reason="the raw data plane hangs with its process")
def test_programs_serve_while_their_daemon_hangs(checked_lab: Lab) -> None:
    """Its channel says so, and its checks pass."""
    with packetbridge_frozen(checked_lab):
        await_that(lambda: checked.channels(checked_lab)["node1"].state == "silent")
        await_all_up(checked_lab, channel="silent", names=["node1"])
    await_all_up(checked_lab)


# --- what checks leave behind


def test_checks_come_from_the_balancers_own_address_and_look_like_requests(checked_lab: Lab) -> None:
    lines = checked_lab.nginx["node1"].access_log.read_text().splitlines()
    line = next(line for line in reversed(lines) if line.startswith(CHECK_SOURCE))
    assert re.fullmatch(rf'{CHECK_SOURCE} \d+ 192\.168\.33\.30 200 \d+ "GET / HTTP/1\.1" "-"', line)


def has_no_flows(node: Host) -> bool:
    return node_flows(node) == 0


def test_checks_leave_no_flows_and_no_sockets(checked_lab: Lab) -> None:
    told = checked_lab.tool(checked_lab.balancer, "flows", "--client", CHECK_SOURCE).stdout
    assert CHECK_SOURCE not in told
    for node in checked_lab.nodes:
        await_that(partial(has_no_flows, node))
        shown = node.run(["ss", "-Htan", "dst", CHECK_SOURCE]).stdout.splitlines()
        assert len(shown) <= 1, shown


# --- what follows


def answered_by(lab: Lab) -> dict[str, str]:
    """The node of each of many URLs, all asked for once."""
    urls = [f"/film/{number}" for number in range(URLS)]
    answers = converse(lab.client, [Client((request(url),)) for url in urls])
    assert {answer.status for answer in answers} == {200}
    return {url: answer.node for url, answer in zip(urls, answers, strict=True)}


def test_only_the_share_of_a_failed_node_moves(checked_lab: Lab) -> None:
    before = answered_by(checked_lab)
    with checks_dropped(checked_lab, "node1"):
        await_state(checked_lab, "node1", "down")
        handed = checked.nodes(checked_lab)["node1"].handoffs
        meanwhile = answered_by(checked_lab)
        assert checked.nodes(checked_lab)["node1"].handoffs == handed
    await_all_up(checked_lab)
    assert "node1" not in meanwhile.values()
    others = [url for url in before if before[url] != "node1"]
    assert sum(before[url] != meanwhile[url] for url in others) <= 0.02 * URLS
    assert answered_by(checked_lab) == before


def test_explain_tells_where_urls_go_and_would_go(checked_lab: Lab) -> None:
    before = answered_by(checked_lab)
    for url in list(before)[:2]:
        said = json.loads(checked_lab.tool(checked_lab.balancer, "explain", url, "--json").stdout)
        assert said["node"] == before[url]
        (leaving,) = (each for each in said["departures"] if each["node"] == before[url])
        assert leaving["moved"] <= 1 / 3 + 0.02
        with operated(checked_lab, "drain", before[url], "undrain"):
            assert curl(checked_lab.client, VIP + url).split()[0] == leaving["successor"]


def test_flows_of_a_failed_node_go_on(checked_lab: Lab) -> None:
    with connection(checked_lab) as client:
        node = ask(client, "/kept").node
        with checks_dropped(checked_lab, node):
            await_state(checked_lab, node, "down")
            assert ask(client, "/kept").node == node
            assert node_of(checked_lab, "/kept") != node
        await_all_up(checked_lab)
        assert ask(client, "/kept").node == node


def test_flows_of_a_failed_node_are_reset_where_that_is_wanted(checked_lab: Lab) -> None:
    """Idle ones, too, and no others."""
    with ExitStack() as stack:
        stack.enter_context(configured(checked_lab, pool={"on-fail": "reset"}))
        clients = [stack.enter_context(connection(checked_lab)) for _ in range(60)]
        nodes = [ask(client, f"/reset/{number}").node for number, client in enumerate(clients)]
        with checks_dropped(checked_lab, "node1"):
            await_state(checked_lab, "node1", "down")
            down_at = time.monotonic()
            for client, node in zip(clients, nodes, strict=True):
                if node == "node1":
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
            assert time.monotonic() - down_at < AT_ONCE_SECONDS
        for number, (client, node) in enumerate(zip(clients, nodes, strict=True)):
            if node != "node1":
                assert ask(client, f"/reset/{number}").node == node
    assert {"node1", "node2", "node3"} == set(nodes)


def test_a_node_is_down_after_fall_failures_and_up_after_rise_successes(checked_lab: Lab) -> None:
    """A check sends its handoff four times. NGINX may log the last success, and the first, a little later."""
    balancer, log = daemon_of(checked_lab.balancer), checked_lab.nginx["node1"].access_log
    handoffs = f"ip saddr {CHECK_SOURCE} ip daddr {BRIDGE} tcp flags syn"
    with configured(checked_lab, health={"fall": 3, "rise": 5, "interval": 0.8, "timeout": 0.8}):
        said = len(balancer.read_log())
        with checked_lab.weather.drop(TO_NODE, handoffs, packets=8) as dropped:
            await_that(lambda: dropped.hits() == 8)
            passed = log.read_text().count(CHECK_SOURCE)
            await_that(lambda: log.read_text().count(CHECK_SOURCE) > passed)
        assert "node1 is down" not in balancer.read_log()[said:]
        with checked_lab.weather.drop(TO_NODE, handoffs, packets=12):
            await_that(lambda: "node1 is down" in balancer.read_log()[said:])
            passed = log.read_text().count(CHECK_SOURCE)
            await_that(lambda: "node1 is up" in balancer.read_log()[said:])
        assert log.read_text().count(CHECK_SOURCE) >= passed + 3


def test_a_recovered_node_gets_its_share_in_steps(checked_lab: Lab) -> None:
    """Tenths of its weight, beside two whole ones. It is up at some time between two looks."""
    seconds, last_down, looks = 4.0, 0.0, list[tuple[float, int]]()

    def is_whole() -> bool:
        nonlocal last_down
        asked = time.monotonic()
        node = checked.nodes(checked_lab)["node1"]
        if node.state == "up":
            looks.append((time.monotonic(), round(20 * node.share / (1 - node.share))))
        else:
            last_down = asked
        return node.share > 0.333

    with configured(checked_lab, pool={"slow-start": seconds}):
        await_that(lambda: all(node.share > 0.333 for node in checked.nodes(checked_lab).values()))
        with checks_dropped(checked_lab, "node1"):
            await_state(checked_lab, "node1", "down")
            last_down = time.monotonic()
        await_that(is_whole)
    tenths = [each for _, each in looks]
    assert tenths == sorted(tenths)
    assert len(set(tenths)) >= 4
    assert all(each <= 1 + 9 * (at - last_down) / seconds for at, each in looks)
    assert looks[-1][0] - looks[0][0] < seconds + AT_ONCE_SECONDS


@pytest.mark.parametrize("no_node", ["503", "all"])
def test_without_a_healthy_node_it_is_503_or_all_are_tried(checked_lab: Lab, no_node: str) -> None:
    with configured(checked_lab, pool={"no-node": no_node}), checks_dropped(checked_lab, *checked.ALL):
        for node in checked.ALL:
            await_state(checked_lab, node, "down")
        answer = converse(checked_lab.client, [Client((request("/nobody"),))])[0]
        warnings = checked.report(checked_lab).warnings
        if no_node == "503":
            assert answer.status == 503
            assert b"\r\nRetry-After: " in answer.data
            assert "service www: no node is open to new connections" in warnings
        else:
            assert "service www: no node is up, new connections go to those that are down" in warnings
            assert len(set(answered_by(checked_lab).values())) == 3


# --- where the VIP and the balancer's own address are


def test_the_kernel_answers_no_check_with_a_reset(engine: str) -> None:
    """Not even where the VIP is not its own address, so that answers from there are nothing unusual."""
    with Lab(engine=engine, vip_local=False) as lab:
        for node in lab.topology.nodes:
            lab.start_packetbridge(node.name)
        before = lab.balancer.counters()
        checked.start(lab)
        await_all_up(lab)
        passed = checked.report(lab).counters["checks_passed"]
        await_that(lambda: checked.report(lab).counters["checks_passed"] > passed + 20)
        assert "TcpOutRsts" not in lab.balancer.counters_since(before)


def test_the_vip_may_be_the_balancers_only_address(engine: str) -> None:
    """Then checks come from the VIP."""
    with Lab(engine=engine) as lab:
        lab.balancer.run(["ip", "address", "delete", f"{CHECK_SOURCE}/30", "dev", "eth0"])
        lab.balancer.run(["ip", "address", "delete", "192.168.33.11/32", "dev", "eth0"])
        lab.balancer.run(["ip", "route", "replace", "default", "via", "10.33.0.1", "dev", "eth0", "onlink"])
        lab.router.run(["ip", "route", "replace", VIP_ADDRESS, "dev", "balancer"])
        for node in lab.topology.nodes:
            lab.start_packetbridge(node.name)
        checked.start(lab)
        await_all_up(lab)
        assert "is checked from 192.168.33.10" in daemon_of(lab.balancer).read_log()
        assert set(answered_by(lab).values()) == set(checked.ALL)
