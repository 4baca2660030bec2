"""Metrics, live page and log of running daemons: what they say is what has happened, as it happens."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab import Host, Lab, daemon_program
from tests.lab import checked
from tests.lab.browser import Browser
from tests.lab.checked import ALL, await_all_up, await_state
from tests.lab.configured import nodes_of
from tests.lab.conftest import check_for_bugs
from tests.lab.conversation import VIP
from tests.lab.fetch import curl
from tests.lab.observed import daemon_of
from tests.lab.sockets import ask, await_that, connection
from tests.lab.terminal import Terminal

pytestmark = pytest.mark.root
on_one_engine = pytest.mark.engine("raw", reason="nothing of the engine is looked at")

BALANCER_PORT, PACKETBRIDGE_PORT = 9713, 9714
HUMAN = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} balancer (INFO|WARNING|ERROR): .+")
Samples = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def lab(engine: str) -> Iterator[Lab]:
    with Lab(engine=engine) as fresh:
        for node in fresh.topology.nodes:
            fresh.start_packetbridge(node.name)
        fresh.start_configured(fresh.balancer, "balancer", checked.configuration(fresh), "--log-format=json")
        await_all_up(fresh)
        yield fresh
        check_for_bugs(fresh)


def page(host: Host, port: int, path: str) -> str:
    """By somebody on the host itself: they listen on loopback."""
    return curl(host, "--fail", f"http://127.0.0.1:{port}{path}")


def metrics(host: Host, port: int) -> dict[str, Samples]:
    """By family without its daemon's prefix; samples by their labels' values, in the order of the names."""
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(page(host, port, "/metrics")):
        assert family.documentation
        assert family.type in ("counter", "gauge")
        name = family.name.removeprefix("l3dsr_").partition("_")[2]
        found[name] = {
            tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
            for sample in family.samples
        }
    return found


def of_balancer(lab: Lab) -> dict[str, Samples]:
    return metrics(lab.balancer, BALANCER_PORT)


# --- metrics


def test_metrics_count_what_happens(lab: Lab) -> None:
    before = of_balancer(lab)
    made = Counter(nodes_of(lab, [f"{VIP}/counted/{number}" for number in range(30)]))

    def handed() -> dict[str, float]:
        handoffs, earlier = of_balancer(lab)["node_handoffs"], before["node_handoffs"]
        return {name: handoffs[name, "www"] - earlier[name, "www"] for name in ALL}

    await_that(lambda: handed() == dict(made))
    after = of_balancer(lab)
    assert after["syns_answered"][()] - before["syns_answered"][()] == 30
    assert after["sent_to_nodes_bytes"][()] > before["sent_to_nodes_bytes"][()]
    for name in ALL:
        states = {state for node, service, state in after["node_state"] if node == name and service == "www"}
        assert states == {"up", "down", "drain", "maintenance"}
        assert after["node_state"][name, "www", "up"] == 1
        assert sum(value for labels, value in after["node_state"].items() if labels[0] == name) == 1
        assert after["node_channel_up"][name, "www"] == 1
    assert sum(after["node_table_share_ratio"].values()) == pytest.approx(1)
    assert after["info"].popitem()[0][0] == lab.engine


def test_flows_of_both_daemons_are_the_open_connections(lab: Lab) -> None:
    with connection(lab) as first, connection(lab) as second:
        node = ask(first, "/held").node
        assert ask(second, "/held").node == node

        def flows() -> float:
            return of_balancer(lab)["node_flows"][node, "www"]

        # A health check is a flow, too, for a moment.
        await_that(lambda: flows() == 2)
        await_that(lambda: metrics(lab.hosts[node], PACKETBRIDGE_PORT)["flows"][f"{VIP[7:]}:80",] == 2)
    await_that(lambda: flows() == 0)


def test_errors_are_counted_by_reason(lab: Lab) -> None:
    before = of_balancer(lab)["error_answers"]["414",]
    curl(lab.client, "-o", "/dev/null", f"{VIP}/{'x' * 17000}")
    await_that(lambda: of_balancer(lab)["error_answers"]["414",] == before + 1)


def test_a_failed_node_and_failed_checks_are_in_the_metrics(lab: Lab) -> None:
    failed = of_balancer(lab)["health_checks"]["failed",]
    lab.nginx["node2"].stop()
    try:
        await_that(lambda: of_balancer(lab)["node_state"]["node2", "www", "down"] == 1)
        assert of_balancer(lab)["node_table_share_ratio"]["node2", "www"] == 0
        assert of_balancer(lab)["health_checks"]["failed",] > failed
        await_that(lambda: metrics(lab.hosts["node2"], PACKETBRIDGE_PORT)["backend_refusals"][()] > 0)
    finally:
        lab.nginx["node2"].start()
    await_all_up(lab)


@on_one_engine
def test_nobody_but_the_host_itself_is_answered(lab: Lab) -> None:
    for address, port in (("10.33.0.2", BALANCER_PORT), ("10.33.1.2", PACKETBRIDGE_PORT)):
        refused = lab.client.run(
            ["curl", "-sS", "--max-time", "30", f"http://{address}:{port}/metrics"], check=False
        )
        assert refused.returncode == 7


# --- the live page


def test_the_page_shows_nodes_as_they_fail_and_come_back(lab: Lab) -> None:
    with Browser(lab.balancer, f"http://127.0.0.1:{BALANCER_PORT}/") as browser:

        def row(name: str) -> str:
            return " | ".join(next((cells for cells in browser.rows() if cells[0].startswith(name)), []))

        browser.await_that(lambda: all("● up" in row(name) for name in ALL), 20)
        assert "live" in browser.text()
        lab.nginx["node3"].stop()
        try:
            await_state(lab, "node3", "down")
            browser.await_that(lambda: "✕ down" in row("node3") and "backend refuse" in row("node3"), 20)
            assert "| 0.0 % |" in row("node3")
            assert "● up" in row("node1")
        finally:
            lab.nginx["node3"].start()
        await_all_up(lab)
        browser.await_that(lambda: "● up" in row("node3"), 20)
        lab.tool(lab.balancer, "drain", "node1")
        browser.await_that(lambda: " drain" in row("node1"), 20)
        lab.tool(lab.balancer, "undrain", "node1")
        browser.await_that(lambda: "● up" in row("node1"), 20)


def test_the_page_says_that_its_daemon_is_gone_and_goes_on_when_it_is_back(lab: Lab) -> None:
    host = lab.hosts["node2"]
    daemon = daemon_of(host)
    with Browser(host, f"http://127.0.0.1:{PACKETBRIDGE_PORT}/") as browser:
        browser.await_that(lambda: any(cells[0] == f"{VIP[7:]}:80" for cells in browser.rows()), 20)
        daemon.stop()
        browser.await_that(lambda: "The daemon does not answer." in browser.text(), 20)
        host.start(daemon.argv[4:], name="packetbridge").wait_for("ready")
        browser.await_that(lambda: "The daemon does not answer." not in browser.text(), 20)
    await_all_up(lab)


@on_one_engine
def test_the_page_asks_nobody_but_its_daemon(lab: Lab) -> None:
    origin = f"http://127.0.0.1:{BALANCER_PORT}/"
    with Browser(lab.balancer, origin) as browser:
        browser.await_that(lambda: any("node1" in cells[0] for cells in browser.rows()), 20)
        asked = browser.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
    assert set(asked) == {f"{origin}report.json"}


# --- the log


def test_lines_are_json_objects_with_their_fields(lab: Lab) -> None:
    daemon = daemon_of(lab.balancer)
    lab.nginx["node1"].stop()
    try:
        await_state(lab, "node1", "down")
    finally:
        lab.nginx["node1"].start()
    await_all_up(lab)
    events = [json.loads(line) for line in daemon.read_log().splitlines()]
    assert all({"ts", "level", "daemon", "event"} <= event.keys() for event in events)
    assert {event["daemon"] for event in events} == {"balancer"}
    of_node = [event for event in events if event.get("node") == "node1"]
    assert any("backend" in event["event"] and event["level"] == "warning" for event in of_node)
    assert any(re.search(r"\bup\b", event["event"]) for event in of_node)


@on_one_engine
def test_on_a_terminal_it_is_for_people_and_elsewhere_json(lab: Lab, tmp_path: Path) -> None:
    """``auto``, what the daemons do if nobody says otherwise."""
    options = [
        str(daemon_program("balancer")),
        "--config=/dev/null",
        "--listen=203.0.113.1:80",
        "--node=node1=192.168.33.20",
        "--health=off",
        "--insecure",
        "--engine=raw",
        f"--state-dir={tmp_path}",
        "--metrics=off",
        "--channel-port=19999",
    ]
    with Terminal(lab.client, options) as terminal:
        terminal.read_until(lambda: b"ready" in terminal.output)
        terminal.type(b"\x03")
        terminal.wait()
        lines = terminal.output.decode().replace("^C", "").splitlines()
    assert lines
    assert all(HUMAN.fullmatch(line) for line in lines)
    elsewhere = lab.client.start(options, name="balancer")
    elsewhere.wait_for("ready")
    elsewhere.stop()
    assert all("event" in json.loads(line) for line in elsewhere.read_log().splitlines())
