"""4-tuples that are used again: by the next connection, by a direct one, by one to another VIP."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import Host, Lab
from tests.lab.conversation import VIP_ADDRESS
from tests.lab.observed import counters_of, daemon_of, node_of
from tests.lab.sockets import Response, abort, ask, await_that, connection, hear, say, sockets_of

pytestmark = pytest.mark.root

PORT = 30123
SECOND_VIP = "192.168.33.11"
SMALL = "/reused"


@pytest.fixture(params=[1, 0], ids=["timestamps", "no_timestamps"])
def any_lab(running_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The client's kernel with and without what makes reuse easy for a server."""
    running_lab.client.sysctl("net.ipv4.tcp_timestamps", request.param)
    yield running_lab
    running_lab.client.sysctl("net.ipv4.tcp_timestamps", 1)


@contextmanager
def unheard(client: Host) -> Iterator[None]:
    """What the client says leaves it no more: its sockets end without anybody noticing."""
    client.run(
        ["nft", "-f", "-"],
        input=(
            "table ip unheard { chain output {"
            "type filter hook output priority 0; policy accept; tcp dport 80 drop; }; }"
        ),
    )
    try:
        yield
    finally:
        client.run(["nft", "delete", "table", "ip", "unheard"])


def vanish_while_established(lab: Lab, port: int, target: str) -> None:
    with connection(lab, port=port) as client:
        node = ask(client, target).node
        with unheard(lab.client):
            abort(client)
    assert sockets_of(lab.hosts[node], port) == ["ESTAB"]


def ask_once(lab: Lab, target: str, port: int, address: str = VIP_ADDRESS) -> Response:
    """The server closes first: it is there that the 4-tuple is in TIME_WAIT."""
    with connection(lab, port=port, address=address) as client:
        say(client, target, "Connection: close")
        answer = hear(client)
        assert client.recv(1) == b""
    await_that(lambda: port == 0 or own_sockets(lab.client, port) == [])
    return answer


def own_sockets(client: Host, port: int) -> list[str]:
    return client.run(["ss", "-Htan", "sport", "=", f":{port}"]).stdout.splitlines()


def test_a_port_is_reused_while_the_server_has_the_old_socket_established(any_lab: Lab) -> None:
    node = node_of(any_lab, SMALL)
    before = any_lab.hosts[node].counters()
    for number in range(5):
        vanish_while_established(any_lab, PORT, SMALL)
        again = ask_once(any_lab, f"{SMALL}?{number}", PORT)
        assert again.body.decode() == f"{node} {SMALL}?{number}\n"
    assert any_lab.hosts[node].counters_since(before).get("TcpEstabResets", 0) >= 5


def test_a_port_is_reused_for_another_node_while_the_first_has_the_old_socket(any_lab: Lab) -> None:
    elsewhere = next(
        f"/elsewhere/{number}"
        for number in range(100)
        if node_of(any_lab, f"/elsewhere/{number}") != node_of(any_lab, SMALL)
    )
    vanish_while_established(any_lab, PORT + 1, SMALL)
    for target in (elsewhere, SMALL, elsewhere):
        assert ask_once(any_lab, target, PORT + 1).body.decode() == f"{node_of(any_lab, target)} {target}\n"


def test_a_port_is_reused_in_the_middle_of_a_download_of_which_the_client_knows_no_more(any_lab: Lab) -> None:
    """The server still sends the old answer when the new connection begins; no byte of it gets into that."""
    with connection(any_lab, port=PORT + 2) as client:
        say(client, "/100m")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
        with unheard(any_lab.client):
            abort(client)
    again = ask_once(any_lab, "/1m", PORT + 2)
    assert hashlib.md5(again.body).hexdigest() == any_lab.content.md5("1m")
    again = ask_once(any_lab, "/100m", PORT + 2)
    assert hashlib.md5(again.body).hexdigest() == any_lab.content.md5("100m")


def test_a_port_is_reused_while_the_old_socket_is_in_time_wait(any_lab: Lab) -> None:
    node = node_of(any_lab, SMALL)
    for number in range(5):
        assert ask_once(any_lab, f"{SMALL}?{number}", PORT + 3).body.decode() == f"{node} {SMALL}?{number}\n"
        await_that(lambda: sockets_of(any_lab.hosts[node], PORT + 3) == ["TIME-WAIT"])


def test_a_port_is_reused_again_and_again(any_lab: Lab) -> None:
    for number in range(40):
        target = f"/again/{number}"
        with connection(any_lab, port=PORT + 4) as client:
            answer = ask(client, target)
            assert answer.body.decode() == f"{answer.node} {target}\n"
            abort(client)


# --- beside direct connections


def test_direct_requests_to_a_node_go_on_beside_bridged_ones(running_lab: Lab) -> None:
    with (
        connection(running_lab, address="192.168.33.30") as direct,
        connection(running_lab) as bridged,
    ):
        for number in range(20):
            assert ask(direct, f"/direct/{number}").body.decode() == f"node1 /direct/{number}\n"
            answer = ask(bridged, f"/bridged/{number}")
            assert answer.body.decode() == f"{answer.node} /bridged/{number}\n"


def test_direct_and_bridged_connections_take_turns_on_one_port(any_lab: Lab) -> None:
    node = any_lab.topology.node(node_of(any_lab, SMALL))
    for number in range(2):
        for address in (str(node.backend), VIP_ADDRESS):
            answer = ask_once(any_lab, f"{SMALL}?{number}", PORT + 5, address)
            assert answer.body.decode() == f"{node.name} {SMALL}?{number}\n"


def test_a_direct_connection_whose_client_vanished_does_not_keep_a_bridged_one_away(any_lab: Lab) -> None:
    node = any_lab.topology.node(node_of(any_lab, SMALL))
    with connection(any_lab, port=PORT + 6, address=str(node.backend)) as client:
        ask(client, "/direct")
        with unheard(any_lab.client):
            abort(client)
    assert sockets_of(any_lab.hosts[node.name], PORT + 6) == ["ESTAB"]
    assert ask_once(any_lab, SMALL, PORT + 6).body.decode() == f"{node.name} {SMALL}\n"


# --- two VIPs


@pytest.fixture(scope="module")
def two_vips(running_lab: Lab) -> Lab:
    """The second balancer process is the one that `daemon_of` finds on the balancer."""
    lab = running_lab
    service, second = lab.topology.service, lab.topology.second_service
    for node in lab.topology.nodes:
        daemon_of(lab.hosts[node.name]).stop()
        lab.start_packetbridge(node.name, f"--vip={second.dscp}={second.vip}@{node.second_backend}:80")
    apart = [f"--state-dir={lab.balancer.directory / 'second'}", "--metrics=off"]
    lab.start_balancer(f"--listen={second.vip}", f"--dscp={second.dscp}", *apart)
    assert (str(service.vip), str(second.vip)) == (VIP_ADDRESS, SECOND_VIP)
    return lab


def backends(lab: Lab, address: str) -> dict[str, str]:
    """By the node's name: where NGINX is asked for this VIP."""
    return {
        node.name: str(node.backend if address == VIP_ADDRESS else node.second_backend)
        for node in lab.topology.nodes
    }


def test_each_of_two_vips_is_served_by_its_own_backends(two_vips: Lab) -> None:
    nodes = set()
    for number in range(20):
        for address in (VIP_ADDRESS, SECOND_VIP):
            answer = ask_once(two_vips, f"/vips/{number}", 0, address)
            assert answer.body.decode() == f"{answer.node} /vips/{number}\n"
            assert answer.backend == backends(two_vips, address)[answer.node]
            nodes.add(answer.node)
    assert nodes == {"node1", "node2", "node3"}


def test_one_client_port_may_be_connected_to_both_vips_at_once(two_vips: Lab) -> None:
    with (
        connection(two_vips, port=PORT + 7) as first,
        connection(two_vips, port=PORT + 7, address=SECOND_VIP) as second,
    ):
        for client, address in ((first, VIP_ADDRESS), (second, SECOND_VIP)) * 3:
            answer = ask(client, "/1m")
            assert hashlib.md5(answer.body).hexdigest() == two_vips.content.md5("1m")
            assert answer.backend == backends(two_vips, address)[answer.node]
        abort(first)
        assert ask(second, "/4k").body == two_vips.content.path("4k").read_bytes()


def test_the_end_of_one_of_two_balancers_does_not_touch_the_other(two_vips: Lab) -> None:
    balancer = daemon_of(two_vips.balancer)
    with connection(two_vips) as kept:
        assert ask(kept, "/first").status == 200
        assert balancer.stop() == 0
        assert ask(kept, "/first").status == 200
        assert ask_once(two_vips, "/4k", 0).status == 200
    assert "bugs" not in counters_of(daemon_of(two_vips.balancer))
