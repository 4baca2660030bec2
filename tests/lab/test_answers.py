"""What the balancer says by itself, and whom it lets wait or turns away."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab import FROM_VIP, TO_VIP, Lab
from tests.lab.conversation import VIP, Client, converse
from tests.lab.fetch import curl
from tests.lab.instead import balancer_with
from tests.lab.observed import counters_of, daemon_of, payload_length, segments
from tests.lab.sockets import abort, ask, await_that, connection, say, sockets_of

pytestmark = pytest.mark.root

LONG_URL = "/" + "u" * 10000
BAD_TARGET = ("--request-target", "no-slash")


@pytest.fixture(scope="module")
def lab_without_nodes(engine: str) -> Iterator[Lab]:
    """No node has any weight."""
    with Lab(engine=engine) as fresh:
        fresh.start_balancer(nodes=["node1=192.168.33.20@0"])
        yield fresh


def assert_clean_end(lab: Lab, before: dict[str, int]) -> None:
    after = counters_of(daemon_of(lab.balancer))
    assert after.get("resets_sent", 0) == before.get("resets_sent", 0)
    assert "bugs" not in after


REFUSALS = {
    "400 Bad Request": [*BAD_TARGET, VIP],
    "414 URI Too Long": [VIP + LONG_URL],
}


@pytest.mark.parametrize("status", REFUSALS)
def test_curl_shows_the_answer_to_a_request_that_cannot_be_placed(running_lab: Lab, status: str) -> None:
    before = counters_of(daemon_of(running_lab.balancer))
    shown = curl(running_lab.client, "-i", *REFUSALS[status])
    head, _, body = shown.partition("\r\n\r\n")
    assert head.splitlines()[0] == f"HTTP/1.1 {status}"
    assert "Connection: close" in head.splitlines()
    assert body == f"{status}\n"
    assert_clean_end(running_lab, before)


def test_curl_shows_that_there_is_no_node(lab_without_nodes: Lab) -> None:
    before = counters_of(daemon_of(lab_without_nodes.balancer))
    shown = curl(lab_without_nodes.client, "-i", f"{VIP}/anything")
    assert shown.startswith("HTTP/1.1 503 Service Unavailable\r\n")
    assert "\r\nRetry-After: 5\r\n" in shown
    assert shown.endswith("\r\n\r\n503 Service Unavailable\n")
    headers = curl(lab_without_nodes.client, "-I", f"{VIP}/anything")
    assert "\r\nContent-Length: 24\r\n" in headers
    assert headers.endswith("\r\n\r\n")
    assert_clean_end(lab_without_nodes, before)


def test_an_answer_is_one_segment_with_fin_and_no_reset(lab_without_nodes: Lab) -> None:
    with lab_without_nodes.client.capture(filter_expression="tcp src port 80") as path:
        curl(lab_without_nodes.client, f"{VIP}/anything")
    found = segments(path)
    said = [segment for segment in found if payload_length(segment)]
    first = (found[0]["TCP"].seq + 1) % 2**32
    assert {(str(segment["TCP"].flags), segment["TCP"].seq) for segment in said} == {("FPA", first)}
    assert not any(segment["TCP"].flags.R for segment in found)


def test_a_client_that_sends_a_large_body_is_told_as_well(lab_without_nodes: Lab) -> None:
    lab = lab_without_nodes
    body = f"@{lab.content.path('64k')}"
    shown = curl(lab.client, "-i", "-H", "Expect:", "--data-binary", body, f"{VIP}/anything")
    assert shown.startswith("HTTP/1.1 503 ")


LOSSES = {
    "SYN-ACK": (FROM_VIP, "tcp flags & (syn | ack) == syn | ack"),
    "request": (TO_VIP, "ip length > 60 tcp flags & syn == 0"),
    "answer": (FROM_VIP, "ip length > 100"),
    "end of the client": (TO_VIP, "tcp flags & fin == fin"),
    "acknowledgment of the end": (FROM_VIP, "tcp flags & (syn | fin) == 0"),
}


@pytest.mark.parametrize("what", LOSSES)
def test_an_answer_arrives_though_one_packet_is_lost(lab_without_nodes: Lab, what: str) -> None:
    lab = lab_without_nodes
    direction, condition = LOSSES[what]
    with lab.weather.drop(direction, condition) as dropped:
        assert curl(lab.client, f"{VIP}/anything") == "503 Service Unavailable\n"
        await_that(lambda: dropped.hits() == 1)
        await_that(lambda: unfinished(lab) == [])


def unfinished(lab: Lab) -> list[str]:
    """The client's sockets that still wait for something."""
    shown = lab.client.run(["ss", "-Htan", "dport", "=", ":80"]).stdout
    return [line for line in shown.splitlines() if not line.startswith("TIME-WAIT")]


def test_answers_arrive_over_a_path_that_loses_a_tenth(lab_without_nodes: Lab) -> None:
    """Every tenth packet each way: at random, some client would lose all it says for too long."""
    lab = lab_without_nodes
    statuses = ["-o", "/dev/null", "-w", "%{http_code} %{errormsg}\n"]
    fetching = ["curl", "-s", "--max-time", "25", *statuses]
    with (
        lab.weather.loss(TO_VIP, 1, "numgen inc mod 10 0") as lost,
        lab.weather.loss(FROM_VIP, 1, "numgen inc mod 10 0") as lost_back,
    ):
        clients = [lab.client.start([*fetching, f"{VIP}/{number}"], name="lossy") for number in range(25)]
        codes = [client.wait(30) for client in clients]
    assert lost.hits() > 0
    assert lost_back.hits() > 0
    assert codes == [0] * 25
    assert {client.read_log() for client in clients} == {"503 \n"}


# --- what is not HTTP

CLIENT_HELLO = bytes.fromhex("16030100050100000100")


def test_what_is_not_http_is_reset(running_lab: Lab) -> None:
    (answer,) = converse(running_lab.client, [Client((CLIENT_HELLO,))])
    assert (answer.data, answer.error) == (b"", "ConnectionResetError")


def test_what_is_not_http_goes_to_a_node_where_that_is_wanted(running_lab: Lab) -> None:
    """NGINX, which does not understand it either, says so. Which node depends on the ports: of so many, one
    node has none once in 10**10 times.
    """
    with balancer_with(running_lab, "--non-http=hash"):
        answers = converse(running_lab.client, [Client((CLIENT_HELLO,))] * 60)
        assert {answer.status for answer in answers} == {400}
        assert {answer.node for answer in answers} == {"node1", "node2", "node3"}


# --- those who say nothing yet


def test_a_connection_made_ahead_of_need_waits_and_is_served(running_lab: Lab) -> None:
    """With the kernel's keepalive probes, which are answered: behind one that is not comes no second."""
    client = running_lab.client
    before = client.counters()
    with connection(running_lab) as quiet, connection(running_lab) as probing:
        probing.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 1)):
            probing.setsockopt(socket.IPPROTO_TCP, option, value)
        await_that(lambda: client.counters_since(before).get("TcpExtTCPKeepAlive", 0) >= 2)
        ports = [quiet.getsockname()[1], probing.getsockname()[1]]
        assert all(sockets_of(node, port) == [] for node in running_lab.nodes for port in ports)
        for waited in (quiet, probing):
            answer = ask(waited, "/ahead")
            assert answer.body.decode() == f"{answer.node} /ahead\n"
        seen = client.counters()
        await_that(lambda: client.counters_since(seen).get("TcpExtTCPKeepAlive", 0) > 0)
        assert ask(probing, "/ahead").status == 200


def test_a_client_that_leaves_without_a_word_is_let_go(running_lab: Lab) -> None:
    before = counters_of(daemon_of(running_lab.balancer))
    with connection(running_lab) as leaving:
        leaving.shutdown(socket.SHUT_WR)
        assert leaving.recv(1) == b""
    with connection(running_lab) as aborting:
        abort(aborting)
    assert_clean_end(running_lab, before)


# --- full tables


def test_a_balancer_whose_table_is_full_says_503_and_serves_those_it_has(running_lab: Lab) -> None:
    with balancer_with(running_lab, "--max-flows=4") as balancer, ExitStack() as held:
        clients = [held.enter_context(connection(running_lab)) for _ in range(6)]
        answers = [ask(client, "/full") for client in clients]
        assert [answer.status for answer in answers] == [200] * 4 + [503] * 2
        assert [ask(client, "/4k").status for client in clients[:4]] == [200] * 4
        counters = counters_of(balancer)
        assert (counters["flows"], counters["flow_table_full"]) == (4, 2)


def test_a_packetbridge_whose_table_is_full_makes_room_by_closed_flows_only(
    running_lab: Lab, tmp_path: Path
) -> None:
    """A handoff for which there is no room is dropped; the client's own retransmission asks again. Flows of
    before are not carried on.
    """
    lab = running_lab
    for host in lab.nodes:
        daemon_of(host).stop()
        lab.start_packetbridge(host.name, "--max-flows=2", f"--state-dir={tmp_path / host.name}")
    try:
        with ExitStack() as held:
            first, second, third = (held.enter_context(connection(lab)) for _ in range(3))
            node = ask(first, "/full").node
            assert ask(second, "/full").node == node
            bridge = daemon_of(lab.hosts[node])
            say(third, "/full", "Connection: close")
            await_that(lambda: counters_of(bridge).get("flows_full", 0) >= 2)
            assert ask(second, "/4k").status == 200
            first.shutdown(socket.SHUT_WR)
            assert first.recv(1) == b""
            assert third.recv(4096).startswith(b"HTTP/1.1 200 OK")
            assert ask(second, "/4k").status == 200
            assert counters_of(bridge)["flows"] == 2
    finally:
        for host in lab.nodes:
            daemon_of(host).stop()
            lab.start_packetbridge(host.name)
