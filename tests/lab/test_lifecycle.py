"""Connections from SYN to end, with segments that come twice, late, or from somebody else."""

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet

from lab import TO_NODE, TO_VIP, Faults, Lab
from tests.lab.conversation import VIP, Client, converse, request
from tests.lab.crafted import CraftedClient
from tests.lab.fetch import curl
from tests.lab.lossless import patient
from tests.lab.observed import counters_of, daemon_of, node_of
from tests.lab.sockets import abort, ask, await_that, connection, hear, say, sockets_of

pytestmark = pytest.mark.root

PORTS = count(20000)


@pytest.fixture
def crafted(ghost_lab: Lab) -> Iterator[CraftedClient]:
    """A client that has said nothing yet."""
    with CraftedClient(ghost_lab, next(PORTS)) as client:
        yield client


def times_logged(lab: Lab, request_id: str) -> int:
    """Once it was: a line is written when the answer has been sent."""

    def times() -> int:
        return sum(nginx.access_log.read_text().count(f'"{request_id}"') for nginx in lab.nginx.values())

    await_that(lambda: times() > 0)
    return times()


def small_answer(lab: Lab, target: str) -> bytes:
    """The end of what NGINX says of a URL without a file."""
    return f"\r\n\r\n{node_of(lab, target)} {target}\n".encode()


# --- beginnings


def is_syn_ack(packet: Packet) -> bool:
    return str(packet[TCP].flags) == "SA"


def test_a_syn_said_again_gets_the_same_answer_and_one_connection(
    ghost_lab: Lab, crafted: CraftedClient
) -> None:
    syn = crafted.segment("S")
    for _ in range(3):
        crafted.send(syn)
    answers = [crafted.receive_such(is_syn_ack) for _ in range(3)]
    numbers = {(packet[TCP].seq >> 24 & 0b111, packet[TCP].ack) for packet in answers}
    assert len(numbers) == 1
    assert crafted.shake_hands()[TCP].ack == crafted.isn + 1
    assert crafted.ask("/again").endswith(small_answer(ghost_lab, "/again"))


@pytest.mark.parametrize("fast_open", [b"", bytes.fromhex("0102030405060708")], ids=["asks", "has_cookie"])
def test_data_and_fast_open_in_a_syn_are_neither_acknowledged_nor_taken(
    ghost_lab: Lab, crafted: CraftedClient, fast_open: bytes
) -> None:
    """Nor are options that nobody knows. What the SYN carried is said again, and answered once."""
    request_id = f"in-the-syn-{crafted.port}"
    said = f"GET /fast HTTP/1.1\r\nHost: lab\r\nX-Request-Id: {request_id}\r\n\r\n".encode()
    options = [("MSS", 1460), (34, fast_open), (77, b"unknown")]
    crafted.send(crafted.segment("S", said, options=options))
    early = crafted.receive_such(is_syn_ack)
    assert (early[TCP].ack, early[TCP].options) == (crafted.isn + 1, [("MSS", 1424)])
    crafted.shake_hands()
    crafted.say(said)
    assert crafted.hear().endswith(small_answer(ghost_lab, "/fast"))
    assert times_logged(ghost_lab, request_id) == 1


def test_a_syn_ack_that_was_answered_is_answered_again(ghost_lab: Lab, crafted: CraftedClient) -> None:
    crafted.shake_hands()
    for _ in range(3):
        crafted.send(crafted.segment("A"))
    assert crafted.ask("/acknowledged").endswith(small_answer(ghost_lab, "/acknowledged"))


def test_a_first_payload_said_again_before_and_after_its_answer_runs_no_post_twice(
    ghost_lab: Lab, crafted: CraftedClient
) -> None:
    crafted.shake_hands()
    body = b"only once"
    lines = ("POST /echo HTTP/1.1", "Host: lab", "X-Request-Id: said-again", f"Content-Length: {len(body)}")
    said = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body
    first = crafted.segment("PA", said)
    for _ in range(5):
        crafted.send(first)
    crafted.next += len(said)
    assert body in crafted.hear()
    for _ in range(5):
        crafted.send(first)
    assert (
        crafted.ask("/echo", "X-Request-Id: afterwards", method="POST", body=b"still there").count(
            b"still there"
        )
        == 1
    )
    assert times_logged(ghost_lab, "said-again") == 1
    assert times_logged(ghost_lab, "afterwards") == 1


def test_a_copy_of_the_handoff_that_comes_after_the_end_runs_no_post_twice(running_lab: Lab) -> None:
    """What the impairer still holds when it ends is delivered then."""
    bridges = [daemon_of(node) for node in running_lab.nodes]
    before = sum(seen_again(counters_of(bridge)) for bridge in bridges)
    faults = Faults(seed=1, duplicate=1.0, duplicate_delay=30.0)
    post = request("/echo", "X-Request-Id: late-copy", method="POST", body=b"once")
    with running_lab.weather.impairer(TO_NODE, faults, "tcp flags syn") as copied:
        (answer,) = converse(running_lab.client, [Client((post,))])
    assert (answer.error, answer.body) == ("", b"once")
    assert copied.hits() >= 1
    await_that(lambda: sum(seen_again(counters_of(bridge)) for bridge in bridges) > before)
    assert times_logged(running_lab, "late-copy") == 1


def seen_again(counters: dict[str, int]) -> int:
    return counters.get("replayed_handoff", 0) + counters.get("same_handoff", 0)


def test_handoffs_that_all_come_seconds_late_run_the_post_once(running_lab: Lab) -> None:
    post = request("/echo", "X-Request-Id: all-late", method="POST", body=b"late")
    with running_lab.weather.impairer(TO_NODE, Faults(seed=1, delay=2.0), "tcp flags syn") as delayed:
        (answer,) = converse(running_lab.client, [Client((post,))])
    assert (answer.error, answer.body) == ("", b"late")
    assert delayed.hits() > 1
    assert times_logged(running_lab, "all-late") == 1


# --- ends


def test_a_flow_that_was_reset_is_forgotten_when_the_kernel_has_no_socket_for_it(running_lab: Lab) -> None:
    """The packetbridge asks ten seconds after the RST, which anybody may have forged. The node is one where
    no late handoff has made a client reset anything.
    """
    busy = node_of(running_lab, "/echo")
    target = next(f"/asked/{n}" for n in range(100) if node_of(running_lab, f"/asked/{n}") != busy)
    with connection(running_lab) as client:
        bridge = daemon_of(running_lab.hosts[ask(client, target).node])
        before = counters_of(bridge).get("socket_gone", 0)
        abort(client)
    await_that(lambda: counters_of(bridge).get("socket_gone", 0) > before, 30)
    assert "socket_query_failed" not in counters_of(bridge)


def test_a_client_that_resets_ends_the_servers_connection(running_lab: Lab) -> None:
    node = running_lab.hosts[node_of(running_lab, "/slow/file/200000/1m")]
    with connection(running_lab) as client:
        port = client.getsockname()[1]
        say(client, "/slow/file/200000/1m")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
        assert sockets_of(node, port) == ["ESTAB"]
        abort(client)
    await_that(lambda: sockets_of(node, port) == [])


def test_a_client_that_closes_in_the_middle_of_a_download_ends_the_servers_connection(
    running_lab: Lab,
) -> None:
    node = running_lab.hosts[node_of(running_lab, "/slow/file/200000/1m")]
    with connection(running_lab) as client:
        port = client.getsockname()[1]
        say(client, "/slow/file/200000/1m")
        assert client.recv(16).startswith(b"HTTP/1.1 200 OK")
    await_that(lambda: sockets_of(node, port) == [])


def test_a_client_that_closes_orderly_leaves_no_socket_on_the_node(running_lab: Lab) -> None:
    with connection(running_lab) as client:
        port = client.getsockname()[1]
        node = running_lab.hosts[ask(client, "/orderly").node]
        assert sockets_of(node, port) == ["ESTAB"]
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    await_that(lambda: sockets_of(node, port) == [])


def test_a_server_that_resets_ends_the_clients_connection(running_lab: Lab) -> None:
    with connection(running_lab) as client:
        port = client.getsockname()[1]
        node = running_lab.hosts[ask(client, "/killed").node]
        node.run(["ss", "-K", "dport", "=", f":{port}"])
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_client_that_was_gone_for_a_while_gets_the_rest(running_lab: Lab) -> None:
    """Long enough for timeouts on the server's side."""
    node = running_lab.hosts[node_of(running_lab, "/1m")]
    before = node.counters()
    with connection(running_lab, receive_buffer=65536) as client:
        say(client, "/1m", "Connection: close")
        received = bytearray(client.recv(1000))
        with running_lab.weather.drop(TO_VIP, packets=1000000) as lost:
            client.settimeout(0.1)
            await_that(
                lambda: (
                    bool(drain(client, received))
                    or node.counters_since(before).get("TcpExtTCPTimeouts", 0) > 1
                )
            )
        assert lost.hits() > 0
        client.settimeout(15)
        while more := client.recv(1 << 16):
            received += more
    assert hashlib.md5(bytes(received).partition(b"\r\n\r\n")[2]).hexdigest() == running_lab.content.md5("1m")


def drain(client: socket.socket, received: bytearray) -> bool:
    """Read what is there; False, as waiting goes on."""
    try:
        received += client.recv(1 << 16)
    except TimeoutError:
        pass
    return False


# --- forged segments


BESIDE = [1, -1, 4000, -70000, 1 << 20, 1 << 31]


@pytest.mark.parametrize("flags", ["R", "RA", "FA", "S"])
def test_a_forged_segment_beside_the_expected_number_ends_nothing(
    ghost_lab: Lab, crafted: CraftedClient, flags: str
) -> None:
    crafted.shake_hands()
    answer = small_answer(ghost_lab, "/forged")
    assert crafted.ask("/forged").endswith(answer)
    for beside in BESIDE:
        crafted.send(crafted.segment(flags, seq=crafted.next + beside))
        assert crafted.ask("/forged").endswith(answer)


@pytest.mark.parametrize("flags", ["R", "FA"])
def test_a_forged_end_at_the_expected_number_is_not_believed_by_the_balancer_alone(
    ghost_lab: Lab, crafted: CraftedClient, flags: str
) -> None:
    """The server, whose connection it is, does not get it."""
    crafted.shake_hands()
    answer = small_answer(ghost_lab, "/forged")
    assert crafted.ask("/forged").endswith(answer)
    with ghost_lab.weather.drop(
        TO_NODE, f"tcp flags & ({'rst' if flags == 'R' else 'fin'}) != 0", packets=9
    ) as dropped:
        crafted.send(crafted.segment(flags))
        await_that(lambda: dropped.hits() == 1)
    assert crafted.ask("/forged").endswith(answer)
    assert crafted.ask("/forged").endswith(answer)


def test_a_reset_within_the_window_is_challenged_as_rfc_5961_says(
    ghost_lab: Lab, crafted: CraftedClient
) -> None:
    crafted.shake_hands()
    node = ghost_lab.hosts[node_of(ghost_lab, "/challenge")]
    crafted.ask("/challenge")
    before = node.counters()
    crafted.send(crafted.segment("R", seq=crafted.next + 100))
    challenge = crafted.receive_such(lambda packet: str(packet[TCP].flags) == "A")
    assert (challenge.src, challenge[TCP].seq, challenge[TCP].ack) == (
        crafted.vip,
        crafted.expected,
        crafted.next,
    )
    assert node.counters_since(before)["TcpExtTCPChallengeACK"] == 1


def is_reset(packet: Packet) -> bool:
    return bool(packet[TCP].flags.R)


def test_a_segment_of_no_connection_is_reset_by_the_vip_with_the_number_it_acknowledges(
    crafted: CraftedClient,
) -> None:
    crafted.expected = 0x7654_3210
    crafted.send(crafted.segment("A", b"who am I"))
    answer = crafted.receive_such(is_reset)
    assert (answer.src, answer[TCP].seq, str(answer[TCP].flags)) == (crafted.vip, 0x7654_3210, "R")


# --- servers that cannot take it


def test_a_closed_backend_port_resets_the_client_at_once(ghost_lab: Lab, crafted: CraftedClient) -> None:
    """As the VIP, at the first number it may have; nothing is said twice before that."""
    node = node_of(ghost_lab, "/closed")
    ghost_lab.nginx[node].stop()
    try:
        crafted.shake_hands()
        crafted.say(b"GET /closed HTTP/1.1\r\nHost: lab\r\n\r\n")
        answer = crafted.receive_such(is_reset)
        assert (answer.src, answer[TCP].seq) == (crafted.vip, crafted.vip_isn + 1)
        with patient(ghost_lab):
            before = ghost_lab.client.counters()
            refused = ghost_lab.client.run(["curl", "-sS", f"{VIP}/closed"], check=False)
            assert (refused.returncode, "reset" in refused.stderr) == (56, True)
            assert "TcpRetransSegs" not in ghost_lab.client.counters_since(before)
    finally:
        ghost_lab.nginx[node].start()
    assert curl(ghost_lab.client, f"{VIP}/closed") == f"{node} /closed\n"


def test_a_full_accept_queue_delays_and_loses_nothing(running_lab: Lab) -> None:
    """The worker sleeps until clients have been turned away."""
    node = node_of(running_lab, "/queue")
    host, nginx = running_lab.hosts[node], running_lab.nginx[node]
    nginx.stop()
    nginx.start(backlog=1)
    worker = re.search(r"start worker process (\d+)", nginx.process.read_log())
    assert worker is not None
    host.run(["kill", "-STOP", worker[1]])
    before = host.counters()
    try:
        with ExitStack() as open_connections:
            clients = [open_connections.enter_context(connection(running_lab)) for _ in range(8)]
            for number, client in enumerate(clients):
                say(client, f"/queue?{number}")
            await_that(lambda: host.counters_since(before).get("TcpExtListenOverflows", 0) > 3)
            host.run(["kill", "-CONT", worker[1]])
            answers = [hear(client).body.decode() for client in clients]
        assert answers == [f"{node} /queue?{number}\n" for number in range(8)]
    finally:
        host.run(["kill", "-CONT", worker[1]])
        nginx.stop()
        nginx.start()
