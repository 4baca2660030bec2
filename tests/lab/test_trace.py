"""`l3dsr trace` on balancer and nodes: what it shows and writes is what captures beside it have."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from scapy.layers.inet import TCP
from scapy.utils import rdpcap

from l3dsr.scapy_layer import handoff_option
from l3dsr.trace.legs import SILENCE_SECONDS
from lab import Host, Lab, Process, daemon_program
from tests.lab.backend_leg import backend_leg
from tests.lab.configured import nodes_of
from tests.lab.conftest import check_for_bugs
from tests.lab.dissected import by_scapy, by_tshark
from tests.lab.observable import ALTERNATIVE, DSCPS, MAIN, NAMES, SPLICED, WWW, balancer, start
from tests.lab.observed import daemon_of, node_of, segments, syn_ack_of, syn_of
from tests.lab.sockets import ask, await_that, connection

pytestmark = pytest.mark.root

PORTS = count(35000)
CLIENT, OTHER_CLIENT = "198.51.100.10", "198.51.100.11"
LINE = re.compile(r"\S+  (\S+) (in |out)  ([\d.]+):(\d+) > ([\d.]+):(\d+)  (?:(DSCP .*?\))  )?(.*)")
SUMMARY = re.compile(r"(\d+) packets? shown, (\d+) lost, (\d+) unreadable\n")
ENCODED = {1: "DSCP 1 (TOS 4, 0x04)", 33: "DSCP 33 (TOS 132, 0x84)", 63: "DSCP 63 (TOS 252, 0xfc)"}
"""As RFC 2474 places a DSCP in the byte."""
BOTH_LEGS = re.compile(
    r"seq (\d+) ack (\d+) .*len (\d+)  \| client leg seq (\d+) ack (\d+) \| backend leg seq (\d+) ack (\d+)"
)


@pytest.fixture(scope="module")
def lab(engine: str) -> Iterator[Lab]:
    with Lab(engine=engine) as fresh:
        start(fresh)
        yield fresh
        check_for_bugs(fresh)


class Line(NamedTuple):
    interface: str
    direction: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    dscp: str
    rest: str


def lines(trace: Process) -> list[Line]:
    """That it has shown so far, as whole ones."""
    shown = trace.read_log().rpartition("\n")[0].splitlines()
    found = [LINE.fullmatch(line) for line in shown if " > " in line]
    assert all(found), shown
    return [Line(m[1], m[2].strip(), m[3], int(m[4]), m[5], int(m[6]), m[7] or "", m[8]) for m in found if m]


@contextmanager
def tracing(lab: Lab, host: Host, *arguments: str) -> Iterator[Process]:
    """It sees what passes in the block."""

    def is_listening() -> bool:
        if packet_sockets(host) <= before:
            return False
        state = Path(f"/proc/{trace.pid}/stat").read_text().rpartition(") ")[2]
        return state.startswith("S")

    before = packet_sockets(host)
    trace = lab.start_tool(host, "trace", *arguments)
    try:
        await_that(is_listening)
        yield trace
    finally:
        trace.stop()


def packet_sockets(host: Host) -> int:
    return len(host.run(["cat", "/proc/net/packet"]).stdout.splitlines())


def unread_bytes(host: Host) -> int:
    """What waits in all packet sockets to be read."""
    sockets = host.run(["cat", "/proc/net/packet"]).stdout.splitlines()[1:]
    return sum(int(line.split()[6]) for line in sockets)


def ended(trace: Process) -> tuple[int, int]:
    """Exit code, and how many packets it says that it has shown; it has lost none."""
    code = trace.wait()
    (shown, lost, unreadable) = map(int, SUMMARY.findall(trace.read_log())[-1])
    assert (lost, unreadable) == (0, 0)
    return code, shown


def target_at(lab: Lab, node: str, prefix: str) -> str:
    return next(t for t in (f"/{prefix}/{n}" for n in range(100)) if node_of(lab, t) == node)


# --- lines


@pytest.mark.parametrize("service", DSCPS, ids=NAMES.values())
def test_handoffs_are_decoded(lab: Lab, service: str) -> None:
    index, vip_port = DSCPS[service], int(service.partition(":")[2])
    urls = [f"http://{service}/decoded/{n}" for n in range(4)]
    with tracing(lab, lab.balancer, "handoffs", "dscp", str(index)) as trace:
        nodes = nodes_of(lab, urls)
        await_that(lambda: len([line for line in lines(trace) if line.interface == "eth0"]) >= len(urls))
    leaving = [line for line in lines(trace) if (line.interface, line.direction) == ("eth0", "out")]
    assert [line.destination for line in leaving] == [str(lab.topology.node(node).bridge) for node in nodes]
    assert {line.dscp for line in leaving} == {ENCODED[index]}
    assert {line.destination_port for line in leaving} == {vip_port}
    assert {line.source for line in leaving} == {CLIENT}
    for number, line in enumerate(leaving):
        assert line.rest.startswith("HANDOFF S-1 ")
        assert line.rest.endswith(f'"GET /decoded/{number} HTTP/1.1"')
    assert ended(trace)[0] == 0


def test_a_handoff_s_numbers_are_those_of_the_client_s_handshake(lab: Lab) -> None:
    port = next(PORTS)
    with (
        lab.client.capture(filter_expression=f"port {port}") as path,
        tracing(lab, lab.balancer, "handoffs", "client", f"{CLIENT}:{port}") as trace,
        connection(lab, port=port) as client,
    ):
        ask(client, "/numbers")
        await_that(lambda: lines(trace) != [])
    syn, syn_ack = syn_of(segments(path))[TCP], syn_ack_of(segments(path))[TCP]
    said = lines(trace)[-1].rest
    options = dict(syn.options)
    assert f"HANDOFF S-1 {syn.seq}, A-1 {syn_ack.seq}, " in said
    assert f" MSS {options['MSS']}, scale {options['WScale']}, " in said
    assert " SACK, " in said
    assert re.search(r" age \d s,", said)


@pytest.mark.parametrize("name", [SPLICED, "node2"])
@pytest.mark.parametrize("at", ["node", "balancer"])
def test_both_legs_stand_side_by_side(lab: Lab, name: str, at: str) -> None:
    target, port = target_at(lab, name, "both-legs"), next(PORTS)
    node = lab.hosts[name]
    with (
        lab.client.capture(filter_expression=f"port {port}") as client_path,
        backend_leg(lab, node) as on_backend_leg,
        connection(lab, port=port) as client,
    ):
        assert ask(client, target).node == name
        tracer = node if at == "node" else lab.balancer
        with tracing(lab, tracer, "client", f"{CLIENT}:{port}") as trace:
            for _ in range(3):
                ask(client, target)
            await_that(lambda: len({legs.client_leg for legs in requests(trace)}) == 3)
    of_client = {(p[TCP].seq, p[TCP].ack) for p in segments(client_path)}
    of_backend = {
        (p[TCP].seq, p[TCP].ack) for p in on_backend_leg if TCP in p and port in (p[TCP].sport, p[TCP].dport)
    }
    for said in both_legs(trace):
        is_backend_leg = any(end.startswith("192.168.33.3") for end in (said.source, said.destination))
        assert said.own == (said.backend_leg if is_backend_leg else said.client_leg)
    for said in requests(trace):
        assert said.client_leg in of_client
        assert said.backend_leg in of_backend


@contextmanager
def hanging(lab: Lab, name: str) -> Iterator[None]:
    """The node's packetbridge hangs, and the balancer knows."""

    def channels() -> set[str]:
        return {node.channel for each in balancer(lab).services for node in each.nodes if node.name == name}

    daemon = daemon_of(lab.hosts[name])
    daemon.send_signal(signal.SIGSTOP)
    try:
        await_that(lambda: "ok" not in channels())
        yield
    finally:
        daemon.send_signal(signal.SIGCONT)
        await_that(lambda: channels() == {"ok"})


def test_a_silent_node_hides_no_other_connection_s_legs(lab: Lab) -> None:
    """It does not make the balancer one that says nothing, which would be left alone for a while."""
    target, port = target_at(lab, SPLICED, "silent"), next(PORTS)
    silent = target_at(lab, "node2", "silent")
    with connection(lab, port=next(PORTS)) as other:
        assert ask(other, silent).node == "node2"
        with hanging(lab, "node2"):
            page = lab.tool(lab.balancer, "flow", f"{CLIENT}:{other.getsockname()[1]}").stdout
            assert "packetbridge (node2):\n  does not answer: " in page
            with (
                tracing(lab, lab.balancer, "client", f"{CLIENT}:{port}") as trace,
                connection(lab, port=port) as client,
            ):

                def shows_both() -> bool:
                    ask(client, target)
                    return any("client leg" in line.rest for line in lines(trace))

                await_that(shows_both, SILENCE_SECONDS - 1)


class BothLegs(NamedTuple):
    """Pairs are sequence and acknowledgment number."""

    source: str
    destination: str
    size: int
    own: tuple[int, int]
    client_leg: tuple[int, int]
    backend_leg: tuple[int, int]


def both_legs(trace: Process) -> list[BothLegs]:
    """Of each packet that it has shown; all have them."""
    found = []
    for line in lines(trace):
        said = BOTH_LEGS.search(line.rest)
        assert said, line
        seq, ack, size, *legs = map(int, said.groups())
        pairs = (seq, ack), (legs[0], legs[1]), (legs[2], legs[3])
        found.append(BothLegs(line.source, line.destination, size, *pairs))
    return found


def requests(trace: Process) -> list[BothLegs]:
    return [said for said in both_legs(trace) if said.size and said.source == CLIENT]


# --- filters


@contextmanager
def of_two_clients(lab: Lab) -> Iterator[None]:
    """In the block, each of two clients has made requests to all nodes of two services."""
    for address in (CLIENT, OTHER_CLIENT):
        for service in (WWW, ALTERNATIVE):
            urls = [f"http://{service}/chosen/{n}" for n in range(12)]
            each = [argument for url in urls for argument in ("-o", "/dev/null", url)]
            lab.client.run(["curl", "-sS", "--interface", address, "-H", "Connection: close", *each])
    yield


FILTERS = {
    "client": (["client", OTHER_CLIENT], {OTHER_CLIENT}, None, None),
    "node": (["handoffs", "node", "node2"], None, {"192.168.33.21"}, None),
    "bridge_address": (["handoffs", "node", "192.168.33.22"], None, {"192.168.33.22"}, None),
    "vip": (["handoffs", "vip", ALTERNATIVE], None, None, {ENCODED[33]}),
    "dscp": (["handoffs", "dscp", "33"], None, None, {ENCODED[33]}),
    "all": (
        ["handoffs", "client", CLIENT, "node", "node1", "dscp", "1"],
        {CLIENT},
        {"192.168.33.20"},
        {ENCODED[1]},
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_chooses(lab: Lab, name: str) -> None:
    words, clients, bridges, dscps = FILTERS[name]
    with tracing(lab, lab.balancer, *words) as trace, of_two_clients(lab):
        await_that(lambda: len(lines(trace)) >= 3)
    found = lines(trace)
    ends = [{line.source, line.destination} for line in found]
    if clients:
        assert all(clients & each for each in ends)
    if bridges:
        assert all(bridges & each for each in ends)
    if dscps:
        assert {line.dscp for line in found} == dscps
    if name != "client":
        assert all("HANDOFF" in line.rest for line in found)


def test_without_a_filter_all_that_is_tagged_is_shown_and_nothing_else(lab: Lab) -> None:
    with tracing(lab, lab.hosts["node1"]) as trace, of_two_clients(lab):
        await_that(lambda: {line.dscp for line in lines(trace)} >= {ENCODED[1], ENCODED[33]})
    assert {line.dscp for line in lines(trace)} == {ENCODED[1], ENCODED[33]}
    assert {line.destination for line in lines(trace)} == {"192.168.33.20"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["elsewhere"], "filter word 'elsewhere' is none of: client ADDR"),
        (["node", "node9"], "node 'node9' is neither an IPv4 address nor one of: node1, node2, node3"),
        (["dscp", "64"], "64"),
        (["client"], "filter word 'client' needs something behind it"),
    ],
)
def test_a_wrong_filter_is_refused(lab: Lab, words: list[str], complaint: str) -> None:
    refused = lab.tool(lab.balancer, "trace", *words, check=False)
    assert refused.returncode == 2
    assert complaint in refused.stderr


# --- files


@pytest.mark.parametrize("host_name", ["balancer", "node1"])
def test_the_file_has_the_packets_of_the_wire_and_both_readers_agree(lab: Lab, host_name: str) -> None:
    host, port = lab.hosts[host_name], next(PORTS)
    target = target_at(lab, "node1", "file")
    file = host.directory / f"trace-{port}.pcap"
    wire = f"tcp and ip[1] & 0xfc != 0 and port {port}"
    with (
        lab.client.capture(filter_expression=f"port {port}") as client_path,
        tracing(lab, host, "-w", str(file), "client", f"{CLIENT}:{port}") as trace,
    ):
        with host.capture(filter_expression=wire) as beside, connection(lab, port=port) as client:
            assert ask(client, target).node == "node1"
            assert ask(client, target).node == "node1"
        await_that(lambda: unread_bytes(host) == 0)
        trace.send_signal(signal.SIGINT)
        code, shown = ended(trace)
    written = rdpcap(str(file))
    assert (code, len(written)) == (0, shown)
    assert " > " not in trace.read_log()
    seen = {bytes(packet) for packet in segments(beside)}
    assert seen
    assert seen <= {bytes(packet) for packet in written}
    handoffs = [packet for packet in written if handoff_option(packet)]
    syn, syn_ack = syn_of(segments(client_path))[TCP], syn_ack_of(segments(client_path))[TCP]
    assert by_tshark(file) == [by_scapy(packet) for packet in handoffs]
    for packet in handoffs:
        assert (packet[TCP].seq, packet[TCP].ack) == (syn.seq, syn_ack.seq)
        assert bytes(packet[TCP].payload).startswith(f"GET {target} HTTP/1.1\r\n".encode())
        assert by_scapy(packet)[:2] == (1, 4)


def test_a_file_that_cannot_be_written_is_one_line(lab: Lab) -> None:
    refused = lab.tool(lab.balancer, "trace", "-w", "/proc/none.pcap", "-c", "1", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("l3dsr trace: cannot write /proc/none.pcap: ")


# --- ends


def test_it_ends_after_so_many_packets_or_seconds(lab: Lab) -> None:
    with tracing(lab, lab.balancer, "-c", "5", "vip", MAIN) as trace:
        nodes_of(lab, [f"http://{WWW}/counted/{n}" for n in range(5)])
        assert ended(trace) == (0, 5)
    assert len(lines(trace)) == 5
    with tracing(lab, lab.balancer, "--time", "1") as trace:
        assert ended(trace)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_daemon_notices_nothing(lab: Lab, number: signal.Signals) -> None:
    daemon = daemon_of(lab.balancer)
    before = daemon.read_log()
    with tracing(lab, lab.balancer, "vip", MAIN) as trace:
        nodes_of(lab, [f"http://{WWW}/ended"])
        await_that(lambda: lines(trace) != [])
        trace.send_signal(number)
        code, shown = ended(trace)
    assert (code, shown) == (0, len(lines(trace)))
    assert daemon.read_log() == before


def test_it_ends_when_its_reader_does(lab: Lab) -> None:
    host = lab.balancer
    tool = f"{daemon_program('l3dsr')} trace --state-dir={host.state_directory} vip {MAIN}"
    before = packet_sockets(host)
    piped = host.start(["sh", "-c", f"{tool} | head -n 2"], name="piped")
    await_that(lambda: packet_sockets(host) > before)
    for _ in range(10):
        nodes_of(lab, [f"http://{WWW}/piped"])
        if not piped.running:
            break
    assert piped.wait() == 0
    assert len([line for line in piped.read_log().splitlines() if " > " in line]) == 2
    assert "Traceback" not in piped.read_log()
