"""Daemons and servers that end in the middle of something. What a client gets is never wrong: all of it, or
a reset soon.
"""

import socket
from collections.abc import Callable

import pytest

from lab import Host, Lab, Process
from tests.lab.conversation import VIP, Client, converse, request
from tests.lab.fetch import curl
from tests.lab.footprint import pins
from tests.lab.observed import counters_of, daemon_of, node_of
from tests.lab.sockets import Response, ask, await_that, connection, hear, say

pytestmark = pytest.mark.root

SOON_SECONDS = 15.0
SLOW = "/slow/file/500000/1m"
NEVER_WHOLE = "/slow/file/20000/1m"
"""Takes most of a minute."""
ENDS: dict[str, Callable[[Process], int]] = {"killed": Process.kill, "stopped": Process.stop}
however = pytest.mark.parametrize("how", ENDS)


def restart_balancer(lab: Lab, how: str) -> None:
    ENDS[how](daemon_of(lab.balancer))
    lab.start_balancer()


def restart_packetbridge(lab: Lab, name: str, how: str) -> None:
    ENDS[how](daemon_of(lab.hosts[name]))
    lab.start_packetbridge(name)


def begin_download(client: socket.socket, target: str) -> bytes:
    """The first bytes of the answer."""
    say(client, target, "Connection: close")
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(4096)
    return received


def assert_complete_or_reset(client: socket.socket, received: bytes, content: bytes) -> None:
    """What comes is right as far as it goes, and nothing is waited for for long."""
    client.settimeout(SOON_SECONDS)
    pieces = [received]
    was_reset = False
    try:
        while more := client.recv(1 << 20):
            pieces.append(more)
    except ConnectionResetError:
        was_reset = True
    body = b"".join(pieces).partition(b"\r\n\r\n")[2]
    assert body == content[: len(body)]
    assert was_reset or len(body) == len(content)


def assert_all_nodes_serve(lab: Lab) -> None:
    answers = converse(lab.client, [Client((request(f"/after/{number}"),)) for number in range(30)])
    assert [answer.error for answer in answers] == [""] * 30
    assert {answer.node for answer in answers} == {"node1", "node2", "node3"}


# --- in the middle of a download


@however
@pytest.mark.parametrize(("target", "file"), [(SLOW, "1m"), ("/100m", "100m")], ids=["slow", "fast"])
def test_a_download_during_which_the_balancer_ends_is_complete_or_reset(
    running_lab: Lab, how: str, target: str, file: str
) -> None:
    content = running_lab.content.path(file).read_bytes()
    with connection(running_lab) as client:
        received = begin_download(client, target)
        restart_balancer(running_lab, how)
        assert_complete_or_reset(client, received, content)
    assert_all_nodes_serve(running_lab)


@however
@pytest.mark.parametrize(("target", "file"), [(SLOW, "1m"), ("/100m", "100m")], ids=["slow", "fast"])
def test_a_download_during_which_the_packetbridge_ends_is_complete_or_reset(
    running_lab: Lab, how: str, target: str, file: str
) -> None:
    content = running_lab.content.path(file).read_bytes()
    node = node_of(running_lab, target)
    with connection(running_lab) as client:
        received = begin_download(client, target)
        restart_packetbridge(running_lab, node, how)
        assert_complete_or_reset(client, received, content)
    assert_all_nodes_serve(running_lab)
    assert "bugs" not in counters_of(daemon_of(running_lab.hosts[node]))


@however
def test_an_upload_during_which_both_daemons_end_is_complete_or_reset(running_lab: Lab, how: str) -> None:
    body = running_lab.content.path("1m").read_bytes()
    node = node_of(running_lab, "/echo")
    with connection(running_lab) as client:
        client.settimeout(SOON_SECONDS)
        client.sendall(f"POST /echo HTTP/1.1\r\nHost: lab\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        client.sendall(body[:300000])
        restart_packetbridge(running_lab, node, how)
        restart_balancer(running_lab, how)
        try:
            client.sendall(body[300000:])
            answer = hear(client)
        except (ConnectionResetError, BrokenPipeError):
            return
        assert answer.body == body


# --- between two requests


def ask_or_be_reset(client: socket.socket, target: str) -> Response | None:
    """None after a reset, which comes soon."""
    client.settimeout(SOON_SECONDS)
    try:
        return ask(client, target)
    except (ConnectionResetError, BrokenPipeError):
        return None


@however
def test_an_idle_connection_is_carried_on_by_the_next_packetbridge(running_lab: Lab, how: str) -> None:
    content = running_lab.content.path("1m").read_bytes()
    node = node_of(running_lab, "/1m")
    with connection(running_lab) as client:
        port = client.getsockname()[1]
        assert ask(client, "/1m").body == content
        for _ in range(2):
            await_that(lambda: is_acknowledged(running_lab.hosts[node], port))
            restart_packetbridge(running_lab, node, how)
            assert ask(client, "/1m") == Response(200, node, backend_of(running_lab, node), content)
    assert counters_of(daemon_of(running_lab.hosts[node]))["flows"] >= 1


def is_acknowledged(node: Host, client_port: int) -> bool:
    """Whether nothing is under way: what is meets a host without daemon, which answers in its own way."""
    _, _, send_queue, *_ = node.run(["ss", "-Htn", "dport", "=", f":{client_port}"]).stdout.split()
    return send_queue == "0"


def backend_of(lab: Lab, node: str) -> str:
    return str(lab.topology.node(node).backend)


@pytest.mark.engine("raw", reason="eBPF programs and maps outlive a killed balancer")
@however
def test_an_idle_connection_is_reset_soon_by_the_next_balancer(running_lab: Lab, how: str) -> None:
    with connection(running_lab) as client:
        node = running_lab.hosts[ask(client, "/kept").node]
        await_that(lambda: is_acknowledged(node, client.getsockname()[1]))
        restart_balancer(running_lab, how)
        assert ask_or_be_reset(client, "/kept") is None
    assert counters_of(daemon_of(running_lab.balancer))["resets_sent"] >= 1


@pytest.mark.engine("raw", reason="eBPF programs and maps outlive a killed balancer")
@however
def test_a_handshake_that_the_last_balancer_has_shaken_is_reset_soon(running_lab: Lab, how: str) -> None:
    with connection(running_lab) as client:
        restart_balancer(running_lab, how)
        assert ask_or_be_reset(client, "/late") is None
    assert_all_nodes_serve(running_lab)


def test_a_packetbridge_that_has_lost_its_state_resets_its_clients_soon(running_lab: Lab) -> None:
    node = node_of(running_lab, "/lost")
    host = running_lab.hosts[node]
    with connection(running_lab) as client:
        assert ask(client, "/lost").status == 200
        daemon_of(host).kill()
        for path in (*host.state_directory.glob("*.flows"), *pins(host)):
            if not path.is_dir():
                path.unlink()
        running_lab.start_packetbridge(node)
        assert ask_or_be_reset(client, "/lost") is None
    assert curl(running_lab.client, f"{VIP}/lost") == f"{node} /lost\n"


# --- NGINX


def test_a_download_during_which_nginx_ends_is_cut_short_and_the_next_is_served(running_lab: Lab) -> None:
    content = running_lab.content.path("1m").read_bytes()
    node = node_of(running_lab, NEVER_WHOLE)
    beside = next(f"/beside/{n}" for n in range(100) if node_of(running_lab, f"/beside/{n}") == node)
    with connection(running_lab) as client, connection(running_lab) as idle:
        assert ask(idle, beside).node == node
        received = begin_download(client, NEVER_WHOLE)
        running_lab.nginx[node].stop()
        client.settimeout(SOON_SECONDS)
        idle.settimeout(SOON_SECONDS)
        try:
            while more := client.recv(1 << 20):
                received += more
        except ConnectionResetError:
            pass
        body = received.partition(b"\r\n\r\n")[2]
        assert body == content[: len(body)]
        assert len(body) < len(content)
        assert idle.recv(1) == b""
        running_lab.nginx[node].start()
        assert_all_nodes_serve(running_lab)
