"""Connections that a node's listener adopts, with the numbers and options that the balancer has agreed on."""

import hashlib
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import pytest

from lab import TO_NODE, Host, Lab, Process
from tests.lab.conversation import VIP, Client, converse, request
from tests.lab.fetch import curl, md5_of_download, md5_of_echo
from tests.lab.lossless import repairs
from tests.lab.observed import counters_of, daemon_of, logged, node_of
from tests.lab.sockets import abort, ask, await_that, connection, hear, say, sockets_of
from tests.lab.test_windows import sleeping_worker

pytestmark = [
    pytest.mark.root,
    pytest.mark.engine("ebpf", reason="the raw data plane's packets reach the kernel through a TUN"),
]

TARGET = "/adopted"
ECHO = "/echo"
PORTS = count(32000)
PROMISED_SCALE = 7
OPTIONS = {"tcp_timestamps": " ts ", "tcp_sack": " sack ", "tcp_window_scaling": " wscale:"}
KEEP = "--keep-flows"
SUPERPACKET = 40_000
FRESH = 200
ACCEPTABLE = 2
"""Connections that a listener with a backlog of 1 takes before anybody accepts."""


class Adoptions:
    """What a node's packetbridge has counted since."""

    def __init__(self, lab: Lab, target: str = TARGET) -> None:
        self.node = lab.hosts[node_of(lab, target)]
        self._daemon = daemon_of(self.node)
        self._before = counters_of(self._daemon)

    def __call__(self, name: str = "adopted") -> int:
        return counters_of(self._daemon).get(name, 0) - self._before.get(name, 0)


@pytest.fixture
def adoptions(running_lab: Lab) -> Adoptions:
    """Of the node that serves TARGET."""
    return Adoptions(running_lab)


@contextmanager
def sysctl(host: Host, name: str, value: int) -> Iterator[None]:
    before = host.run(["cat", f"/proc/sys/net/ipv4/{name}"]).stdout.strip()
    host.sysctl(f"net.ipv4.{name}", value)
    try:
        yield
    finally:
        host.sysctl(f"net.ipv4.{name}", before)


def socket_at(host: Host, client: socket.socket) -> str:
    """What the host's kernel says of the client's connection."""
    port = client.getsockname()[1]
    either = f"( sport = :{port} or dport = :{port} )"
    return host.run(["ss", "-Htino", "state", "established", either]).stdout


def scales(shown: str) -> tuple[int, int] | None:
    """Of what is sent to the peer and what is received."""
    found = re.search(r" wscale:(\d+),(\d+) ", shown)
    return found and (int(found[1]), int(found[2]))


def replaced(lab: Lab, adoptions: Adoptions, *options: str) -> Process:
    daemon_of(adoptions.node).stop()
    return lab.start_packetbridge(adoptions.node.name, *options)


# --- what the adopted socket is like


def test_the_listener_adopts_connections(running_lab: Lab, adoptions: Adoptions) -> None:
    for number in range(20):
        target = f"{TARGET}?{number}"
        assert curl(running_lab.client, VIP + target) == f"{adoptions.node.name} {target}\n"
    assert (adoptions(), adoptions("handoff"), adoptions("adoption_refused")) == (20, 20, 0)
    assert adoptions("syn_ack_with_timestamps") == 0


@pytest.mark.parametrize("missing", [None, *OPTIONS])
def test_the_adopted_socket_has_the_clients_options(
    running_lab: Lab, adoptions: Adoptions, missing: str | None
) -> None:
    with ExitStack() as changed:
        if missing is not None:
            changed.enter_context(sysctl(running_lab.client, missing, 0))
        client = changed.enter_context(connection(running_lab))
        for _ in range(3):
            assert ask(client, TARGET).node == adoptions.node.name
        at_node, at_client = socket_at(adoptions.node, client), socket_at(running_lab.client, client)
    assert {option for option, word in OPTIONS.items() if word in at_node} == OPTIONS.keys() - {missing}
    if missing != "tcp_window_scaling":
        promised, own = scales(at_client) or (0, 0)
        assert promised == PROMISED_SCALE
        assert scales(at_node) == (own, promised)
    assert adoptions() == 1


def test_the_clients_mss_bounds_what_the_adopted_socket_sends(running_lab: Lab, adoptions: Adoptions) -> None:
    running_lab.set_link_mtu("client", 1300)
    try:
        with connection(running_lab) as client:
            ask(client, TARGET)
            shown = socket_at(adoptions.node, client)
    finally:
        running_lab.set_link_mtu("client", 1500)
    assert " mss:1248 " in shown  # 1300 less 20, 20 and the timestamps' 12
    assert adoptions() == 1


def test_what_adopted_connections_carry_is_complete(running_lab: Lab) -> None:
    of_file, of_echo = Adoptions(running_lab, "/100m"), Adoptions(running_lab, ECHO)
    assert md5_of_download(running_lab.client, f"{VIP}/100m") == running_lab.content.md5("100m")
    sent = running_lab.content.path("100m")
    assert md5_of_echo(running_lab.client, sent) == running_lab.content.md5("100m")
    assert of_file() >= 1
    assert of_echo() >= 1


def test_nothing_is_repaired_on_fresh_adopted_connections(running_lab: Lab) -> None:
    adoptions = Adoptions(running_lab, ECHO)
    body = running_lab.content.path("64k").read_bytes()

    def transfer() -> None:
        said = [request(ECHO, method="POST", body=body[:size]) for size in (100, SUPERPACKET)]
        answers = converse(running_lab.client, [Client((each,)) for each in said * (FRESH // 2)])
        assert {answer.error for answer in answers} == {""}

    before = adoptions.node.counters()
    assert repairs(running_lab, transfer) == {}
    changes = adoptions.node.counters_since(before)
    unwanted = ("PAWS", "Cookies", "Listen", "TCPChallengeACK", "TCPReqQFull", "EstabResets")
    assert [name for name in changes if any(word in name for word in unwanted)] == []
    assert adoptions() >= FRESH
    assert adoptions("adoption_refused") == 0


@pytest.mark.parametrize("ending", ["behind_last_segment", "in_last_segment"])
def test_an_adopted_connection_may_be_closed_by_its_client_first(
    running_lab: Lab, adoptions: Adoptions, ending: str
) -> None:
    client = Client((f"GET {TARGET} HTTP/1.0\r\n\r\n".encode(),), ending=ending)  # type: ignore[arg-type]
    (answer,) = converse(running_lab.client, [client])
    assert (answer.error, answer.node) == ("", adoptions.node.name)
    assert adoptions() == 1


def test_an_adopted_connection_is_reset_by_its_client(running_lab: Lab, adoptions: Adoptions) -> None:
    with connection(running_lab, port=(port := next(PORTS))) as client:
        ask(client, TARGET)
        assert sockets_of(adoptions.node, port) == ["ESTAB"]
        abort(client)
    await_that(lambda: sockets_of(adoptions.node, port) == [])
    assert adoptions() == 1


# --- what cannot be adopted


def test_a_4_tuple_in_time_wait_gets_a_handshake(running_lab: Lab, adoptions: Adoptions) -> None:
    port = next(PORTS)
    for _ in range(4):
        with connection(running_lab, port=port) as client:
            say(client, TARGET, "Connection: close")
            assert hear(client).node == adoptions.node.name
            assert client.recv(1) == b""
        await_that(lambda: sockets_of(adoptions.node, port) == ["TIME-WAIT"])
    assert (adoptions(), adoptions("adoption_refused")) == (1, 3)
    assert adoptions("syn_ack_with_timestamps") == 3


def test_a_closed_port_refuses_at_once(running_lab: Lab, adoptions: Adoptions) -> None:
    server = running_lab.nginx[adoptions.node.name]
    server.stop()
    with connection(running_lab) as client, pytest.raises(ConnectionResetError):
        ask(client, TARGET)
    server.start()
    assert (adoptions(), adoptions("backend_refusal")) == (0, 1)
    assert curl(running_lab.client, VIP + TARGET) == f"{adoptions.node.name} {TARGET}\n"
    assert adoptions() == 1


def test_a_node_that_allows_fewer_options_gets_a_handshake(running_lab: Lab, adoptions: Adoptions) -> None:
    with sysctl(adoptions.node, "tcp_sack", 0):
        assert curl(running_lab.client, VIP + TARGET) == f"{adoptions.node.name} {TARGET}\n"
    assert (adoptions(), adoptions("adoption_refused")) == (0, 1)


@pytest.mark.parametrize("how", ["option", "no_syn_cookies"])
def test_nothing_is_adopted_where_that_is_not_wanted(
    running_lab: Lab, adoptions: Adoptions, how: str
) -> None:
    with sysctl(adoptions.node, "tcp_syncookies", int(how == "option")):
        daemon = replaced(running_lab, adoptions, *(["--adopt=off"] if how == "option" else []))
        assert curl(running_lab.client, VIP + TARGET) == f"{adoptions.node.name} {TARGET}\n"
        counters = counters_of(daemon)
    assert {"adopted", "adoption_refused"}.isdisjoint(counters)
    assert counters["syn_ack_with_timestamps"] == 1
    replaced(running_lab, adoptions)


# --- first payloads that are lost, or come more than once


def test_a_handoff_that_comes_twice_runs_its_request_once(running_lab: Lab) -> None:
    adoptions = Adoptions(running_lab, ECHO)
    with running_lab.weather.duplicate(TO_NODE) as copied:
        for number in range(20):
            said = request(ECHO, f"X-Request-Id: twice-{number}", method="POST", body=b"b" * 100)
            (answer,) = converse(running_lab.client, [Client((said,))])
            assert (answer.error, answer.body) == ("", b"b" * 100)
            assert len(logged(running_lab, answer.node, f"twice-{number}", at_least=1)) == 1
    assert copied.hits() >= 20
    assert adoptions("same_handoff") >= 20
    assert adoptions() == 20


@contextmanager
def deaf_once(host: Host, size: int) -> Iterator[None]:
    """The host drops one segment with more than ``size`` bytes of payload, behind the packetbridge."""
    rule = f"tcp dport 80 ip length > {size} limit rate 1/hour burst 1 packets drop"
    chain = f"chain input {{ type filter hook input priority 0; {rule}; }}"
    host.run(["nft", "-f", "-"], input=f"table ip deaf {{ {chain}; }}")
    try:
        yield
    finally:
        host.run(["nft", "delete", "table", "ip", "deaf"])


@pytest.mark.parametrize("size", [500, SUPERPACKET])
def test_a_first_payload_that_the_host_loses_is_adopted_again(running_lab: Lab, size: int) -> None:
    adoptions = Adoptions(running_lab, ECHO)
    body = running_lab.content.path("64k").read_bytes()[:size]
    said = request(ECHO, f"X-Request-Id: lost-{size}", method="POST", body=body)
    with deaf_once(adoptions.node, 400):
        (answer,) = converse(running_lab.client, [Client((said,))])
    assert (answer.error, answer.body) == ("", body)
    assert len(logged(running_lab, answer.node, f"lost-{size}", at_least=1)) == 1
    assert adoptions() >= 2
    assert (adoptions("handoff"), adoptions("backend_rst")) == (1, 0)


def test_a_firewall_that_wants_to_see_a_syn_gets_one_at_last(running_lab: Lab, adoptions: Adoptions) -> None:
    rule = "tcp flags & (syn | ack) != syn ct state new drop"
    chain = f"chain input {{ type filter hook input priority 0; {rule}; }}"
    adoptions.node.run(["nft", "-f", "-"], input=f"table ip strict {{ {chain}; }}")
    try:
        assert curl(running_lab.client, VIP + TARGET) == f"{adoptions.node.name} {TARGET}\n"
    finally:
        adoptions.node.run(["nft", "delete", "table", "ip", "strict"])
    assert (adoptions(), adoptions("adoption_in_vain"), adoptions("handoff")) == (2, 1, 1)
    await_that(lambda: "then: --adopt=off" in daemon_of(adoptions.node).read_log(), 30)


@pytest.fixture
def short_queue(running_lab: Lab, adoptions: Adoptions) -> Iterator[Host]:
    """The node, whose listener takes `ACCEPTABLE` connections ahead of its worker."""
    server = running_lab.nginx[adoptions.node.name]
    server.stop()
    server.start(backlog=1)
    yield adoptions.node
    server.stop()
    server.start()


@pytest.mark.parametrize("size", [100, SUPERPACKET])
def test_connections_beyond_the_accept_queue_are_adopted_later(
    running_lab: Lab, adoptions: Adoptions, short_queue: Host, size: int
) -> None:
    clients = ACCEPTABLE + 4
    before = short_queue.counters()
    with ExitStack() as opened:
        connections = [opened.enter_context(connection(running_lab)) for _ in range(clients)]
        with sleeping_worker(running_lab, short_queue.name):
            for number, client in enumerate(connections):
                say(client, TARGET, f"X-Request-Id: queue-{size}-{number}", method="POST", body=b"q" * size)
            await_that(lambda: adoptions() >= clients + 4)
            assert adoptions("handoff") == clients
        for number, client in enumerate(connections):
            assert hear(client).status == 200
            assert len(logged(running_lab, short_queue.name, f"queue-{size}-{number}", at_least=1)) == 1
    assert short_queue.counters_since(before)["TcpExtListenOverflows"] >= 4
    assert adoptions("backend_rst") == 0


def test_a_listener_may_be_replaced_at_any_time(running_lab: Lab, adoptions: Adoptions) -> None:
    """A reload gives the listening socket to new workers; connections of old ones go on."""
    server = running_lab.nginx[adoptions.node.name]
    with connection(running_lab) as old:
        say(old, "/slow/file/1000000/1m")
        server.process.send_signal(signal.SIGHUP)
        for number in range(20):
            assert curl(running_lab.client, f"{VIP}{TARGET}?{number}").startswith(adoptions.node.name)
        assert hashlib.md5(hear(old).body).hexdigest() == running_lab.content.md5("1m")
    assert adoptions() >= 20


# --- taking over


@pytest.mark.parametrize("later", ["--adopt=off", "--adopt=auto"])
def test_either_set_of_programs_takes_over_the_others_connections(
    running_lab: Lab, adoptions: Adoptions, later: str
) -> None:
    earlier = {"--adopt=off": "--adopt=auto", "--adopt=auto": "--adopt=off"}[later]
    replaced(running_lab, adoptions, KEEP, earlier)
    with connection(running_lab) as client:
        assert ask(client, TARGET).node == adoptions.node.name
        daemon = replaced(running_lab, adoptions, KEEP, later)
        assert "the flows of an earlier run are carried on" in daemon.read_log()
        before = running_lab.counters()
        for _ in range(20):
            assert ask(client, TARGET).node == adoptions.node.name
        changes = running_lab.counters_since(before)
        assert [name for host in changes.values() for name in host if "OFOQueue" in name] == []
    assert curl(running_lab.client, VIP + TARGET) == f"{adoptions.node.name} {TARGET}\n"
    assert counters_of(daemon)["adopted"] == 1
    replaced(running_lab, adoptions)
