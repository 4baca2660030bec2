"""One side has said all it has to say, and the other goes on."""

import hashlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from lab import Lab, Process
from tests.lab.conversation import Client, converse, request
from tests.lab.observed import payload_length, segments
from tests.lab.sockets import await_that, connection

pytestmark = pytest.mark.root

SERVER = Path(__file__).with_name("half_closer.py")
HEAD = b"HTTP/1.0 200 OK\r\n\r\n"


def test_a_client_that_has_ended_its_side_is_answered(running_lab: Lab) -> None:
    said = b"GET /64k HTTP/1.1\r\nHost: lab\r\n\r\n"
    answers = converse(running_lab.client, [Client((said,), ending="behind_last_segment")] * 5)
    for answer in answers:
        assert hashlib.md5(answer.body).hexdigest() == running_lab.content.md5("64k")
        assert answer.error == ""


def test_the_first_payload_may_carry_the_fin(running_lab: Lab) -> None:
    with running_lab.client.capture(filter_expression="tcp dst port 80", snap_bytes=96) as path:
        answers = converse(running_lab.client, [Client((request("/64k"),), ending="in_last_segment")] * 5)
    for answer in answers:
        assert hashlib.md5(answer.body).hexdigest() == running_lab.content.md5("64k")
        assert answer.error == ""
    with_payload = [segment["TCP"].flags for segment in segments(path) if payload_length(segment)]
    assert len(with_payload) == 5
    assert all(flags.F for flags in with_payload)


@pytest.fixture(scope="module")
def half_closers(running_lab: Lab) -> Iterator[list[Process]]:
    """In the place of NGINX on every node, until the module ends."""
    servers = []
    for node in running_lab.topology.nodes:
        running_lab.nginx[node.name].stop()
        program = [sys.executable, str(SERVER), str(node.backend)]
        servers.append(running_lab.hosts[node.name].start(program, name="half-closer"))
    for server in servers:
        server.wait_for("ready")
    yield servers
    for server in servers:
        server.stop()


@pytest.mark.parametrize("ending", ["behind_last_segment", "in_last_segment"])
def test_a_server_that_waits_for_the_clients_end_gets_it_and_answers_then(
    running_lab: Lab,
    half_closers: list[Process],
    ending: Literal["behind_last_segment", "in_last_segment"],
) -> None:
    said = f"PUT /{ending} HTTP/1.0\r\n\r\n".encode() + running_lab.content.path("1m").read_bytes()
    (answer,) = converse(running_lab.client, [Client((said,), ending=ending)])
    assert answer.error == ""
    assert answer.data == HEAD + said
    assert sum(report_of(said) in server.read_log() for server in half_closers) == 1


def test_a_client_may_go_on_when_the_server_has_ended_its_side(
    running_lab: Lab, half_closers: list[Process]
) -> None:
    said = b"GET /before HTTP/1.0\r\n\r\n"
    more = running_lab.content.path("64k").read_bytes()
    with connection(running_lab) as client:
        client.sendall(said)
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
        for part in (more[:20000], more[20000:]):
            client.sendall(part)
        client.shutdown(socket.SHUT_WR)
        await_that(lambda: sum(report_of(said + more) in server.read_log() for server in half_closers) == 1)
    assert answer == HEAD + said


def report_of(received: bytes) -> str:
    return f"{len(received)} {hashlib.md5(received).hexdigest()}\n"
