"""The operator's word on nodes, while they are checked and serve: weights, drains, maintenance."""

from contextlib import ExitStack
from itertools import count

import pytest

from lab import Lab
from tests.lab import checked
from tests.lab.checked import CHECK_SOURCE, await_all_up, await_state, operated, ruled
from tests.lab.conversation import VIP, Client, converse, request
from tests.lab.fetch import curl
from tests.lab.observed import daemon_of, node_of
from tests.lab.sockets import ask, await_that, connection, say

pytestmark = pytest.mark.root

LARGE = "/1m"
SMALL_BUFFER = 1 << 15
"""Of a client that reads nothing: the server has much left to send, however long that takes."""
RARE = {"interval": 1.0, "timeout": 1.0}
"""Checks are flows, too, for a moment."""


@pytest.fixture(scope="module")
def served_lab(lab: Lab) -> Lab:
    for node in lab.topology.nodes:
        lab.start_packetbridge(node.name)
    start(lab)
    await_all_up(lab)
    return lab


def start(lab: Lab) -> None:
    checked.start(lab, health=RARE)


def answering(lab: Lab, number: int = 60) -> set[str]:
    """The nodes that answer so many new connections, of which none may fail."""
    answers = converse(lab.client, [Client((request(f"/drain/{n}"),)) for n in range(number)])
    assert [(answer.status, answer.error) for answer in answers] == [(200, "")] * number
    return {answer.node for answer in answers}


def shares(lab: Lab) -> list[float]:
    return [node.share for node in checked.nodes(lab).values()]


def test_weights_are_the_operators(served_lab: Lab) -> None:
    balancer = served_lab.balancer
    assert served_lab.tool(balancer, "weight", "node1", "3").stdout == "node1 has weight 3\n"
    assert shares(served_lab) == pytest.approx([3 / 5, 1 / 5, 1 / 5], abs=0.001)
    served_lab.tool(balancer, "weight", "node1", "0")
    assert shares(served_lab) == pytest.approx([0, 1 / 2, 1 / 2], abs=0.001)
    assert answering(served_lab) == {"node2", "node3"}
    assert checked.nodes(served_lab)["node1"].state == "up"
    served_lab.tool(balancer, "weight", "node1", "default")
    assert shares(served_lab) == pytest.approx([1 / 3] * 3, abs=0.001)


def test_a_disabled_node_is_neither_checked_nor_given_connections(served_lab: Lab) -> None:
    log = served_lab.nginx["node2"].access_log
    with connection(served_lab) as client:
        target = next(url for url in map("/kept/{}".format, count()) if node_of(served_lab, url) == "node2")
        assert ask(client, target).node == "node2"
        with operated(served_lab, "disable", "node2", "enable"):
            assert checked.nodes(served_lab)["node2"].state == "maintenance"
            assert ask(client, target).node == "node2"
            assert answering(served_lab) == {"node1", "node3"}
            checks = log.read_text().count(CHECK_SOURCE)
            passed = checked.report(served_lab).counters["checks_passed"]
            await_that(lambda: checked.report(served_lab).counters["checks_passed"] >= passed + 6)
            assert log.read_text().count(CHECK_SOURCE) <= checks + 1
        await_that(lambda: log.read_text().count(CHECK_SOURCE) > checks + 2)
    assert answering(served_lab) == set(checked.ALL)


def test_a_restart_remembers_what_the_operator_said(served_lab: Lab) -> None:
    served_lab.tool(served_lab.balancer, "drain", "node1")
    served_lab.tool(served_lab.balancer, "disable", "node2")
    served_lab.tool(served_lab.balancer, "weight", "node3", "7")
    daemon_of(served_lab.balancer).stop()
    start(served_lab)
    found = checked.nodes(served_lab)
    assert [node.state for node in found.values()] == ["drain", "maintenance", "up"]
    assert found["node3"].weight == 7
    assert answering(served_lab) == {"node3"}
    served_lab.tool(served_lab.balancer, "undrain", "node1")
    served_lab.tool(served_lab.balancer, "enable", "node2")
    served_lab.tool(served_lab.balancer, "weight", "node3", "default")
    await_all_up(served_lab)
    assert shares(served_lab) == pytest.approx([1 / 3] * 3, abs=0.001)


def test_a_drain_waits_for_the_last_flow_while_others_are_served(served_lab: Lab) -> None:
    """A download, and a connection that is kept and used."""
    node = node_of(served_lab, LARGE)
    kept_url = next(url for url in map("/kept/{}".format, count()) if node_of(served_lab, url) == node)
    with connection(served_lab) as kept, connection(served_lab, receive_buffer=SMALL_BUFFER) as download:
        assert ask(kept, kept_url).node == node
        say(download, LARGE, "Connection: close")
        received = len(download.recv(1 << 16))
        drain = served_lab.start_tool(served_lab.balancer, "drain", node, "--wait")
        drain.wait_for("2 flows left")
        assert checked.nodes(served_lab)[node].state == "drain"
        assert curl(served_lab.client, VIP + kept_url).split()[0] != node
        while more := download.recv(1 << 16):
            received += len(more)
            assert drain.running
        assert received > 1 << 20
        download.close()
        drain.wait_for("1 flow left")
        assert node not in answering(served_lab)
        assert ask(kept, kept_url).node == node
        assert drain.running
    assert drain.wait() == 0
    assert drain.read_log().endswith(f"0 flows left\n{node}: the last flow is gone\n")
    await_that(lambda: checked.nodes(served_lab)[node].flows == 0)
    served_lab.tool(served_lab.balancer, "undrain", node)
    assert node_of(served_lab, LARGE) == node


def test_a_drain_does_not_wait_for_health_checks(served_lab: Lab) -> None:
    """Though one is under way at nearly any moment. The balancer has just started: it remembers no flow."""
    daemon_of(served_lab.balancer).stop()
    checked.start(served_lab, health={"path": "/slow/answer/0.9", "interval": 1.0, "timeout": 1.0})
    await_that(lambda: checked.nodes(served_lab)["node1"].flows == 1)
    with operated(served_lab, "drain", "node1", "undrain"):
        served_lab.tool(served_lab.balancer, "drain", "node1", "--wait", "--timeout=20")
        await_that(lambda: checked.nodes(served_lab)["node1"].flows == 1)
    daemon_of(served_lab.balancer).stop()
    start(served_lab)
    await_all_up(served_lab)


def test_a_drain_gives_up_after_its_timeout(served_lab: Lab) -> None:
    with connection(served_lab) as client:
        node = ask(client, "/stays").node
        with operated(served_lab, "drain", node, "undrain"):
            await_that(lambda: checked.nodes(served_lab)[node].flows == 1)
            told = served_lab.tool(served_lab.balancer, "drain", node, "--wait", "--timeout=1", check=False)
        assert told.returncode == 1
        assert told.stdout.endswith(f"{node}: 1 flow left\n")
        assert ask(client, "/stays").node == node


def test_a_node_that_drains_may_fail_and_recover(served_lab: Lab) -> None:
    """It is drained all the same, and undraining a failed node does not open it."""
    with operated(served_lab, "drain", "node1", "undrain"), checked.checks_dropped(served_lab, "node1"):
        await_that(lambda: "packetbridge" in checked.nodes(served_lab)["node1"].reason)
        assert checked.nodes(served_lab)["node1"].state == "drain"
        served_lab.tool(served_lab.balancer, "undrain", "node1")
        assert checked.nodes(served_lab)["node1"].state == "down"
        assert answering(served_lab) == {"node2", "node3"}
    await_all_up(served_lab)


# --- the channel


def test_traffic_and_checks_go_on_without_the_channel(served_lab: Lab) -> None:
    """Status says so, and counts no flows of nodes that do not tell; a drain goes by the balancer's own."""
    with ExitStack() as stack:
        client = stack.enter_context(connection(served_lab))
        node = ask(client, "/through").node
        with ruled(served_lab.router, "forward", "udp dport 19507 drop", "udp sport 19507 drop"):
            await_that(lambda: {each.state for each in checked.channels(served_lab).values()} == {"silent"})
            found = checked.nodes(served_lab).values()
            assert {(each.state, each.flows) for each in found} == {("up", None)}
            assert all("19507" in each.channel for each in found)
            assert (
                len([w for w in checked.report(served_lab).warnings if w.startswith("channel to node")]) == 3
            )
            assert ask(client, "/through").node == node
            assert answering(served_lab) == set(checked.ALL)
            await_that(lambda: all(check.ok for check in checked.checks(served_lab).values()))
            with operated(served_lab, "drain", node, "undrain"):
                arguments = ("drain", node, "--wait", "--timeout=1")
                assert served_lab.tool(served_lab.balancer, *arguments, check=False).returncode == 1
        await_all_up(served_lab)
        assert not [w for w in checked.report(served_lab).warnings if w.startswith("channel")]
        await_that(lambda: checked.nodes(served_lab)[node].flows == 1)


def test_a_failed_check_is_found_without_the_channel(served_lab: Lab) -> None:
    with ruled(served_lab.router, "forward", "udp dport 19507 drop"):
        served_lab.nginx["node3"].stop()
        try:
            await_state(served_lab, "node3", "down")
            assert checked.checks(served_lab)["node3"].failure == "backend_refused"
        finally:
            served_lab.nginx["node3"].start()
    await_all_up(served_lab)
