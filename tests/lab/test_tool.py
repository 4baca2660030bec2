"""`l3dsr status`, `flows`, `flow` and `explain` say what is so, as captures and answers have it."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv4Address
from itertools import count

import pytest
from scapy.layers.inet import IP, TCP

from common.reports import BalancerReport, Explanation, FlowReport, FlowSide, PacketbridgeReport
from lab import Lab, daemon_program
from tests.lab.backend_leg import backend_leg
from tests.lab.configured import answers, nodes_of
from tests.lab.conftest import check_for_bugs
from tests.lab.fetch import curl
from tests.lab.observable import (
    ALTERNATIVE,
    DSCPS,
    MAIN,
    NAMES,
    NODES,
    SECOND_WWW,
    SPLICED,
    WWW,
    asked,
    balancer,
    flow_on,
    lines_of,
    packetbridge,
    start,
)
from tests.lab.observed import daemon_of, node_of, segments, syn_ack_of, syn_of
from tests.lab.sockets import ask, await_that, connection
from tests.lab.terminal import Terminal

pytestmark = pytest.mark.root
on_one_engine = pytest.mark.engine("raw", reason="the engine is behind the daemon's words")

PORTS = count(33000)
CLIENT, OTHER_CLIENT = "198.51.100.10", "198.51.100.11"
ALTERNATE_SCREEN, NORMAL_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
HOME = b"\x1b[H"
URLS = [f"/explained/{number}?query={number % 3}" for number in range(6)]
MODULUS = 1 << 32
TAGGED = "tcp and ip[1] & 0xfc != 0"


@pytest.fixture(scope="module")
def lab(engine: str) -> Iterator[Lab]:
    with Lab(engine=engine) as fresh:
        start(fresh)
        yield fresh
        check_for_bugs(fresh)


@contextmanager
def open_connections(lab: Lab, targets: list[str], service: str = WWW) -> Iterator[list[tuple[int, str]]]:
    """Kept ones, by the client's port and the node that serves it."""
    address, port = service.split(":")
    with ExitStack() as all_open:
        found = []
        for target in targets:
            client = all_open.enter_context(
                connection(lab, port=next(PORTS), address=address, vip_port=int(port))
            )
            found.append((client.getsockname()[1], ask(client, target).node))
        yield found


def nodes_by_name(lab: Lab, service: str = WWW) -> dict[str, tuple[int | None, int]]:
    """Flows and handoffs."""
    (found,) = [each for each in balancer(lab).services if each.name == NAMES[service]]
    return {node.name: (node.flows, node.handoffs) for node in found.nodes}


def are_flows_of(lab: Lab, node: str, flows: dict[str, int]) -> bool:
    """As its packetbridge says, by VIP."""
    return {vip.vip: vip.flows for vip in packetbridge(lab, node).vips} == flows


def handoffs(lab: Lab) -> Counter[str]:
    return Counter({name: handed for name, (_, handed) in nodes_by_name(lab).items()})


def explained(lab: Lab, service: str, target: str) -> Explanation:
    (found,) = asked(lab.balancer, "balancer", "explain", Explanation, url=f"http://{service}{target}")
    assert isinstance(found, Explanation)
    return found


# --- status


def test_handoffs_are_the_connections_that_were_made(lab: Lab) -> None:
    before = handoffs(lab)
    made = Counter(nodes_of(lab, [f"http://{WWW}/made/{number}" for number in range(30)]))
    assert handoffs(lab) - before == made


@pytest.mark.parametrize("service", [WWW, ALTERNATIVE])
def test_flows_are_the_connections_that_are_open(lab: Lab, service: str) -> None:
    targets = [f"/open/{number}" for number in range(12)]
    with open_connections(lab, targets, service) as made:
        held = Counter(node for _, node in made)
        await_that(lambda: {n: f for n, (f, _) in nodes_by_name(lab, service).items() if f} == held)
        for name in held:
            await_that(partial(are_flows_of, lab, name, {**dict.fromkeys(DSCPS, 0), service: held[name]}))
    await_that(lambda: {flows for flows, _ in nodes_by_name(lab, service).values()} == {0})


def test_shares_of_the_table_are_by_weight_and_make_one(lab: Lab) -> None:
    shares = {each.name: {n.name: n.share for n in each.nodes} for each in balancer(lab).services}
    assert shares["www"] == pytest.approx(dict.fromkeys(NODES, 1 / 3), abs=0.01)
    assert shares["alternative"] == pytest.approx({"node1": 0.75, "node2": 0.25}, abs=0.01)
    assert [sum(each.values()) for each in shares.values()] == pytest.approx([1.0] * 3)


def test_bytes_are_those_of_the_packets_that_passed(lab: Lab) -> None:
    name = node_of(lab, "/1m")
    node = lab.hosts[name]
    await_that(lambda: nodes_by_name(lab)[name][0] == 0)
    delivered = packetbridge(lab, name).counters["bytes_to_clients"]
    handed = balancer(lab).counters["bytes_to_nodes"]
    with (
        node.capture(filter_expression=f"src host {MAIN}", snap_bytes=120) as to_client,
        lab.balancer.capture(filter_expression=TAGGED, snap_bytes=120) as to_node,
    ):
        assert nodes_of(lab, [f"http://{WWW}/1m"]) == [name]
        await_that(lambda: nodes_by_name(lab)[name][0] == 0)
    sent = sum(int(packet.len) for packet in segments(to_client))
    assert sent > 1 << 20
    assert packetbridge(lab, name).counters["bytes_to_clients"] - delivered == sent
    passed = sum(int(packet.len) for packet in segments(to_node))
    assert balancer(lab).counters["bytes_to_nodes"] - handed == passed

    def balancer_knows() -> bool:
        (found,) = {
            n.bytes_to_clients for each in balancer(lab).services for n in each.nodes if n.name == name
        }
        return found == delivered + sent

    await_that(balancer_knows)


def test_status_is_a_page_for_people_or_a_document_for_programs(lab: Lab) -> None:
    for host, daemon, kind in (
        (lab.balancer, "balancer", BalancerReport),
        (lab.hosts["node2"], "packetbridge", PacketbridgeReport),
    ):
        page = " ".join(lab.tool(host, "status").stdout.split())
        assert page.startswith(f"{daemon} ")
        assert f"engine {lab.engine}" in page
        assert f"{WWW} DSCP 1 (TOS 4, 0x04)" in page
        assert f"{SECOND_WWW} DSCP 63 (TOS 252, 0xfc)" in page
        (document,) = lines_of(lab.tool(host, "status", "--json").stdout, kind)
        assert document.engine == lab.engine
    for node in NODES:
        assert f"{node}  192.168.33.2" in lab.tool(lab.balancer, "status").stdout


def test_status_counts_errors_by_reason(lab: Lab) -> None:
    long = lab.client.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{WWW}/{'x' * 17000}"]
    )
    assert long.stdout == "414"
    assert "1 answered by the balancer itself: 414" in lab.tool(lab.balancer, "status").stdout


# --- the live screen


def watching(lab: Lab, host_name: str) -> Terminal:
    host = lab.hosts[host_name]
    argv = [str(daemon_program("l3dsr")), "status", "--watch", "--state-dir", str(host.state_directory)]
    return Terminal(host, argv)


def frame(terminal: Terminal) -> list[str]:
    """The newest one that is whole, without ANSI sequences."""
    whole = terminal.output.split(HOME)[1:]
    text = whole[-1].partition(b"\x1b[J")[0] if b"\x1b[J" in terminal.output.split(HOME)[-1] else b""
    return text.replace(b"\x1b[K", b"").decode().split("\r\n")


@on_one_engine
@pytest.mark.parametrize("host_name", ["balancer", "node1"])
@pytest.mark.parametrize("keys", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_the_live_screen_ends_and_gives_the_terminal_back(lab: Lab, host_name: str, keys: bytes) -> None:
    with watching(lab, host_name) as terminal:
        terminal.read_until(lambda: b"engine " in terminal.output and b"\x1b[J" in terminal.output)
        assert terminal.output.startswith(ALTERNATE_SCREEN)
        assert terminal.settings() != terminal.before
        terminal.type(keys)
        assert terminal.wait() == 0
        assert terminal.output.endswith(NORMAL_SCREEN)
        assert terminal.settings() == terminal.before


@on_one_engine
def test_the_live_screen_follows_what_happens_and_fits_the_terminal(lab: Lab) -> None:
    with watching(lab, "balancer") as terminal:
        terminal.read_until(lambda: any("node3" in line for line in frame(terminal)))
        lab.tool(lab.balancer, "drain", "node3")
        terminal.read_until(lambda: any("node3" in line and " drain " in line for line in frame(terminal)))
        lab.tool(lab.balancer, "undrain", "node3")
        terminal.read_until(lambda: any("node3" in line and " up " in line for line in frame(terminal)))
        terminal.resize(40, 8)
        terminal.read_until(lambda: len(frame(terminal)) == 8)
        assert max(map(len, frame(terminal))) == 40
        assert frame(terminal)[-1].endswith(" more lines")
        terminal.resize(130, 50)
        terminal.read_until(lambda: len(frame(terminal)) > 12)
        assert max(map(len, frame(terminal))) > 80
        terminal.type(b"q")
        assert terminal.wait() == 0


@on_one_engine
def test_the_live_screen_says_that_a_daemon_is_gone_and_goes_on_when_it_is_back(lab: Lab) -> None:
    daemon = daemon_of(lab.hosts["node3"])
    with watching(lab, "node3") as terminal:
        terminal.read_until(lambda: any("engine" in line for line in frame(terminal)))
        daemon.stop()
        terminal.read_until(lambda: any("no answer: no daemon listens" in line for line in frame(terminal)))
        restarted = lab.hosts["node3"].start(daemon.argv[4:], name="packetbridge")
        restarted.wait_for("ready")
        terminal.read_until(lambda: any("engine" in line for line in frame(terminal)))
        terminal.type(b"q")
        assert terminal.wait() == 0


@on_one_engine
def test_the_live_screen_can_be_left_while_a_daemon_hangs(lab: Lab) -> None:
    daemon = daemon_of(lab.hosts["node2"])
    with watching(lab, "node2") as terminal:
        terminal.read_until(lambda: any("engine" in line for line in frame(terminal)))
        daemon.send_signal(signal.SIGSTOP)
        try:
            terminal.read_until(lambda: any("said nothing for" in line for line in frame(terminal)))
            terminal.type(b"q")
            assert terminal.wait() == 0
        finally:
            daemon.send_signal(signal.SIGCONT)


@on_one_engine
def test_without_a_terminal_there_is_no_live_screen(lab: Lab) -> None:
    refused = lab.tool(lab.balancer, "status", "--watch", check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("l3dsr status: --watch needs a terminal")


# --- flows


def test_flows_are_listed_and_chosen_by_client_and_node(lab: Lab) -> None:
    def listed(*options: str) -> set[tuple[str, int, str]]:
        said = [
            json.loads(line)
            for line in lab.tool(lab.balancer, "flows", "--json", *options).stdout.splitlines()
        ]
        assert {each.pop("daemon") for each in said} <= {"balancer"}
        found = [FlowReport(**each) for each in said]
        return {(flow.client, flow.client_port, flow.node) for flow in found if flow.client_port >= 33000}

    bridges = {node.name: str(node.bridge) for node in lab.topology.nodes}
    with open_connections(lab, [f"/listed/{number}" for number in range(9)]) as made:
        mine = {(CLIENT, port, bridges[node]) for port, node in made}
        assert mine <= listed("--client", CLIENT)
        assert listed("--client", OTHER_CLIENT) == set()
        for name, address in bridges.items():
            own = {flow for flow in mine if flow[2] == address}
            for named in (name, address):
                found = listed("--node", named)
                assert found & mine == own
                assert {flow[2] for flow in found} <= {address}
        port, name = made[0]
        page = lab.tool(lab.hosts[name], "flows", "--client", CLIENT).stdout
        assert f"{CLIENT}:{port}" in page
        assert page.startswith("packetbridge: ")
    assert len(lab.tool(lab.balancer, "flows", "--json", "--limit", "3").stdout.splitlines()) == 3


@pytest.mark.parametrize("name", [SPLICED, "node2"])
def test_both_sides_of_a_flow_agree_with_each_other_and_with_the_capture(lab: Lab, name: str) -> None:
    target = next(t for t in (f"/both-sides/{n}" for n in count()) if node_of(lab, t) == name)
    node, port = lab.hosts[name], next(PORTS)
    with (
        lab.client.capture(filter_expression=f"port {port}") as client_leg,
        backend_leg(lab, node) as backend_segments,
        connection(lab, port=port) as client,
    ):
        assert ask(client, target).node == name
        shown = lab.tool(lab.balancer, "flow", f"{CLIENT}:{port}")
        sides = lines_of(lab.tool(lab.balancer, "flow", f"{CLIENT}:{port}", "--json").stdout, FlowSide)
        own = lines_of(lab.tool(node, "flow", f"{CLIENT}:{port}", "--json").stdout, FlowSide)
    here, there = flow_on(sides, "balancer"), flow_on(sides, "packetbridge")
    assert [side.node for side in sides] == [name, name]
    assert flow_on(own, "packetbridge").details == there.details
    assert {here.node, there.node} == {str(lab.topology.node(name).bridge)}

    seen = segments(client_leg)
    syn, syn_ack = syn_of(seen)[TCP], syn_ack_of(seen)[TCP]
    assert (here.details["client_isn"], there.details["client_isn"]) == (syn.seq, syn.seq)
    assert (here.details["isn"], there.details["balancer_isn"]) == (syn_ack.seq, syn_ack.seq)
    assert here.details["mss"] == dict(syn.options)["MSS"]
    ours = [
        packet
        for packet in backend_segments
        if TCP in packet and port in (packet[TCP].sport, packet[TCP].dport)
    ]
    answered = [packet for packet in ours if packet[TCP].sport == 80 and packet.len > 100]
    first = next(packet for packet in seen if packet[TCP].sport == 80 and packet[IP].len > 100)
    delta = (first[TCP].seq - answered[0][TCP].seq) % MODULUS
    said = there.details["seq_delta"]
    assert isinstance(said, int)
    assert said % MODULUS == delta
    assert (delta == 0) == bool(there.details.get("adopted"))
    assert f"client isn      {syn.seq}" in shown.stdout
    assert f"seq delta             {said}" in shown.stdout


def test_a_direct_connection_and_an_unknown_one_are_no_flows(lab: Lab) -> None:
    backend = str(lab.topology.node("node1").backend)
    with connection(lab, port=next(PORTS), address=backend) as client:
        assert ask(client, "/direct").node == "node1"
        port = client.getsockname()[1]
        for host, named in ((lab.balancer, port), (lab.hosts["node1"], port), (lab.balancer, 1)):
            unknown = lab.tool(host, "flow", f"{CLIENT}:{named}", check=False)
            assert (unknown.returncode, unknown.stdout) == (1, f"no flow of {CLIENT}:{named} is known\n")


def test_a_connection_without_a_node_is_told_with_what_the_balancer_does_about_it(lab: Lab) -> None:
    for said, state in ((b"", "verified"), (b"GET nowhere HTTP/1.1\r\n\r\n", "answered")):
        port = next(PORTS)
        with connection(lab, port=port) as client:
            client.sendall(said)
            assert said == b"" or client.recv(100).startswith(b"HTTP/1.1 400 Bad Request\r\n")
            page = lab.tool(lab.balancer, "flow", f"{CLIENT}:{port}").stdout
            (side,) = lines_of(lab.tool(lab.balancer, "flow", f"{CLIENT}:{port}", "--json").stdout, FlowSide)
        assert (side.side, side.node, side.flow.state, side.flow.node) == ("balancer", "", state, "")
        assert side.flow.details.get("answer") == ("HTTP/1.1 400 Bad Request" if said else None)
        assert page.rstrip().endswith("it has no node")


@on_one_engine
def test_nodes_and_vips_that_are_not_there_are_named(lab: Lab) -> None:
    for host, wanted, complaint in (
        (lab.balancer, ["flows", "--node", "node9"], "there is no node node9; there are node1, node2, node3"),
        (lab.hosts["node1"], ["flows", "--node", "node1"], "192.168.33.20 is this one"),
        (lab.balancer, ["flow", f"{CLIENT}:1", "--vip", "192.168.33.9"], f"; there are {WWW}, "),
    ):
        refused = lab.tool(host, *wanted, check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert complaint in refused.stderr


@on_one_engine
def test_without_a_daemon_the_tool_says_so(lab: Lab) -> None:
    for command in (["status"], ["flows"], ["flow", f"{CLIENT}:1"], ["explain", "/x"], ["drain", "node1"]):
        refused = lab.tool(lab.client, *command, check=False)
        assert refused.returncode == 1
        assert "daemon listens on " in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


# --- explain


@pytest.mark.parametrize("service", DSCPS, ids=NAMES.values())
def test_a_url_goes_where_explain_says(lab: Lab, service: str) -> None:
    urls = [f"http://{service}{target}" for target in URLS]
    assert [explained(lab, service, target).node for target in URLS] == nodes_of(lab, urls)


@pytest.mark.parametrize(
    ("service", "key"),
    [(WWW, "/explained/0"), (ALTERNATIVE, "/explained/0?query=0"), (SECOND_WWW, "/explained")],
    ids=NAMES.values(),
)
def test_explain_names_the_key_that_the_service_hashes(lab: Lab, service: str, key: str) -> None:
    found = explained(lab, service, URLS[0])
    assert (found.service, found.key) == (NAMES[service], key)
    assert found.slot == int(found.key_hash, 16) % found.slots
    assert {*found.sequence} == ({"node1", "node2"} if service == ALTERNATIVE else {*NODES})


def test_explain_tells_where_a_url_goes_when_a_node_leaves(lab: Lab) -> None:
    before = {target: explained(lab, WWW, target) for target in URLS}
    for leaving in NODES:
        lab.tool(lab.balancer, "drain", leaving)
        try:
            found = nodes_of(lab, [f"http://{WWW}{target}" for target in URLS])
            told = [explained(lab, WWW, target) for target in URLS]
        finally:
            lab.tool(lab.balancer, "undrain", leaving)
        said = [
            next(gone.successor for gone in before[target].departures if gone.node == leaving)
            for target in URLS
        ]
        assert found == said
        assert [each.node for each in told] == found
        assert all(leaving not in each.sequence for each in told)
    assert [explained(lab, WWW, target).node for target in URLS] == [each.node for each in before.values()]


def test_explain_is_for_people_too(lab: Lab) -> None:
    found = explained(lab, WWW, URLS[0])
    page = lab.tool(lab.balancer, "explain", f"http://{WWW}{URLS[0]}").stdout
    assert f"node      {found.node}\n" in page
    assert f"sequence  {', '.join(found.sequence)}\n" in page
    assert page.count("without node") == len(NODES)
    ambiguous = lab.tool(lab.balancer, "explain", "/path/alone", check=False)
    assert ambiguous.returncode == 1
    assert "which service is meant?" in ambiguous.stderr
    assert lab.tool(lab.balancer, "explain", "/path/alone", "--service", "second").stdout.startswith(
        "service   second"
    )


def test_addresses_of_clients_are_told_apart(lab: Lab) -> None:
    curl(lab.client, "--interface", OTHER_CLIENT, f"http://{WWW}/other-client")
    said = lab.tool(lab.balancer, "flows", "--client", OTHER_CLIENT).stdout
    assert "balancer: 1 flow\n" in said
    assert str(IPv4Address(OTHER_CLIENT)) in said
    assert answers(lab, [f"http://{WWW}/answered"])[0].status == 200
