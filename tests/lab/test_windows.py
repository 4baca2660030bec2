"""Receivers that take little, or nothing for a while."""

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from scapy.layers.inet import TCP

from lab import Host, Lab
from tests.lab.crafted import CraftedClient, payload_of
from tests.lab.observed import node_of
from tests.lab.sockets import await_that, connection, hear, say

pytestmark = pytest.mark.root

PORTS = count(21000)


@contextmanager
def sleeping_worker(lab: Lab, name: str) -> Iterator[None]:
    """The node's NGINX accepts and reads nothing meanwhile."""
    worker = re.findall(r"start worker process (\d+)", lab.nginx[name].process.read_log())[-1]
    lab.hosts[name].run(["kill", "-STOP", worker])
    try:
        yield
    finally:
        lab.hosts[name].run(["kill", "-CONT", worker])


def await_increase(host: Host, before: dict[str, int], counter: str, least: int = 1) -> None:
    await_that(lambda: host.counters_since(before).get(counter, 0) >= least)


def read_all(client: socket.socket) -> bytes:
    received = bytearray()
    while more := client.recv(1 << 16):
        received += more
    return bytes(received)


def test_a_client_that_stops_reading_is_probed_and_gets_the_rest(running_lab: Lab) -> None:
    node = running_lab.hosts[node_of(running_lab, "/1m")]
    before = node.counters()
    with connection(running_lab, receive_buffer=8192) as client:
        say(client, "/1m", "Connection: close")
        await_increase(node, before, "TcpExtTCPWinProbe", 3)
        received = read_all(client)
    assert hashlib.md5(received.partition(b"\r\n\r\n")[2]).hexdigest() == running_lab.content.md5("1m")


def test_a_client_with_the_smallest_of_buffers_gets_everything(running_lab: Lab) -> None:
    with connection(running_lab, receive_buffer=1) as client:
        say(client, "/64k", "Connection: close")
        received = read_all(client)
    assert hashlib.md5(received.partition(b"\r\n\r\n")[2]).hexdigest() == running_lab.content.md5("64k")


def test_a_server_that_stops_reading_is_probed_and_gets_the_rest(running_lab: Lab) -> None:
    client_host, node = running_lab.client, node_of(running_lab, "/echo")
    body = running_lab.content.path("1m").read_bytes() * 12
    with connection(running_lab) as client:
        before = client_host.counters()
        with sleeping_worker(running_lab, node):
            client.settimeout(0)
            lines = ("POST /echo HTTP/1.1", "Host: lab", "Connection: close", f"Content-Length: {len(body)}")
            said = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body
            sent = 0

            def is_probed() -> bool:
                nonlocal sent
                try:
                    sent += client.send(said[sent : sent + (1 << 20)])
                except BlockingIOError:
                    pass
                return client_host.counters_since(before).get("TcpExtTCPWinProbe", 0) >= 2

            await_that(is_probed)
            assert sent < len(said)
        client.settimeout(15)
        client.sendall(said[sent:])
        answer = hear(client)
    assert hashlib.md5(answer.body).hexdigest() == hashlib.md5(body).hexdigest()


@pytest.fixture
def crafted(ghost_lab: Lab) -> Iterator[CraftedClient]:
    with CraftedClient(ghost_lab, next(PORTS)) as client:
        yield client


def test_a_window_that_is_closed_with_the_first_payload_opens_later(crafted: CraftedClient) -> None:
    """What comes before it opens is the acknowledgment and probes, no byte of the answer."""
    crafted.shake_hands()
    crafted.window = 0
    crafted.say(b"GET /closed HTTP/1.1\r\nHost: lab\r\n\r\n")
    for _ in range(2):
        said = crafted.receive()
        assert said is not None
        assert payload_of(said) == b""
        assert said[TCP].ack == crafted.next
        crafted.send(crafted.segment("A"))
    crafted.window = 10000
    crafted.send(crafted.segment("A"))
    assert crafted.hear().endswith(b" /closed\n")


def test_a_window_of_a_few_bytes_is_respected(crafted: CraftedClient) -> None:
    crafted.shake_hands()
    crafted.window = 50
    crafted.say(b"GET /tiny HTTP/1.1\r\nHost: lab\r\n\r\n")
    heard = b""
    while not heard.endswith(b" /tiny\n"):
        segment = crafted.receive_such(lambda packet: bool(payload_of(packet)))
        assert len(payload_of(segment)) <= 50
        if segment[TCP].seq != crafted.expected:  # the server has lost patience and says it again
            crafted.send(crafted.segment("A"))
            continue
        heard += payload_of(segment)
        crafted.expected += len(payload_of(segment))
        crafted.send(crafted.segment("A"))
    assert heard.startswith(b"HTTP/1.1 200 OK\r\n")
