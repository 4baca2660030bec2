"""Who may hand a connection to a node: only who has the key, and only once."""

from itertools import count

import pytest
from scapy.layers.inet import IP, TCP
from scapy.packet import Packet
from scapy.utils import rdpcap

from lab import Lab
from tests.lab.crafted import CraftedClient, Line, line_to, payload_of
from tests.lab.forged import ForgedHandoff
from tests.lab.observed import counters_of, daemon_of, node_of
from tests.lab.sockets import ask, await_that, connection, sockets_of

pytestmark = pytest.mark.root

PORTS = count(40000)


@pytest.fixture
def genuine(ghost_lab: Lab) -> ForgedHandoff:
    """To node1, with the right key, and with its port as request id."""
    port = next(PORTS)
    key = bytes.fromhex(ghost_lab.key_file.read_text())
    payload = f"GET /forged HTTP/1.1\r\nHost: lab\r\nX-Request-Id: {port}\r\n\r\n".encode()
    return ForgedHandoff(key, "192.168.33.20", port, payload)


def times_logged(lab: Lab, handoff: ForgedHandoff) -> int:
    return lab.nginx["node1"].access_log.read_text().count(f'"{handoff.client_port}"')


def assert_refused(lab: Lab, line: Line, packet: Packet, handoff: ForgedHandoff, counter: str) -> None:
    """Counted once, never served, and no answer of any kind."""
    bridge = daemon_of(lab.hosts["node1"])
    before = counters_of(bridge)
    with CraftedClient(lab, handoff.client_port) as client:
        line.send(bytes(packet))
        await_that(lambda: counters_of(bridge).get(counter, 0) > before.get(counter, 0))
        assert client.receive(0.05) is None
    after = counters_of(bridge)
    assert after[counter] == before.get(counter, 0) + 1
    assert after.get("handoff", 0) == before.get("handoff", 0)
    assert times_logged(lab, handoff) == 0


def test_a_handoff_with_the_right_key_is_served_as_the_vip(
    ghost_lab: Lab, to_node1: Line, genuine: ForgedHandoff
) -> None:
    with CraftedClient(ghost_lab, genuine.client_port) as client:
        to_node1.send(bytes(genuine.packet()))
        answer = client.receive_such(lambda packet: bool(payload_of(packet)))
    assert (answer.src, answer[TCP].seq) == ("192.168.33.10", genuine.vip_isn + 1)
    assert answer[TCP].ack == genuine.client_isn + 1 + len(genuine.payload)
    assert payload_of(answer).endswith(b"\r\n\r\nnode1 /forged\n")
    await_that(lambda: times_logged(ghost_lab, genuine) > 0)
    assert times_logged(ghost_lab, genuine) == 1


def test_a_handoff_under_another_key_is_dropped(
    ghost_lab: Lab, to_node1: Line, genuine: ForgedHandoff
) -> None:
    for key in (bytes(16), bytes(15) + b"\x01"):
        other = genuine.changed(key=key)
        assert_refused(ghost_lab, to_node1, other.packet(), other, "handoff_bad_tag")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("client", "198.51.100.78"),
        ("client_isn", 0x2000_0001),
        ("vip_isn", 0x3000_0001),
        ("mss", 1400),
        ("scale", 8),
        ("seconds", 17),
    ],
)
def test_a_handoff_that_was_changed_on_its_way_is_dropped(
    ghost_lab: Lab, to_node1: Line, genuine: ForgedHandoff, field: str, value: object
) -> None:
    changed = genuine.changed(**{field: value})
    assert_refused(ghost_lab, to_node1, changed.signed_as(genuine), changed, "handoff_bad_tag")


def test_a_handoff_for_another_port_under_the_tag_of_the_first_is_dropped(
    ghost_lab: Lab, to_node1: Line, genuine: ForgedHandoff
) -> None:
    changed = genuine.changed(client_port=next(PORTS))
    assert_refused(ghost_lab, to_node1, changed.signed_as(genuine), changed, "handoff_bad_tag")


@pytest.mark.parametrize("off", [-65, 65, -3600, 20000])
def test_a_handoff_that_is_more_than_a_minute_off_is_dropped(
    ghost_lab: Lab, to_node1: Line, genuine: ForgedHandoff, off: int
) -> None:
    late = genuine.changed(seconds=genuine.seconds + off)
    assert_refused(ghost_lab, to_node1, late.packet(), late, "handoff_too_old")


@pytest.mark.parametrize("off", [-50, 50])
def test_a_handoff_that_is_less_than_a_minute_off_is_served(
    ghost_lab: Lab, to_node1: Line, genuine: ForgedHandoff, off: int
) -> None:
    to_node1.send(bytes(genuine.changed(seconds=genuine.seconds + off).packet()))
    await_that(lambda: times_logged(ghost_lab, genuine) == 1)


def test_a_handoff_for_a_vip_that_is_not_known_is_dropped(
    ghost_lab: Lab, to_node1: Line, genuine: ForgedHandoff
) -> None:
    unknown = genuine.changed(dscp=5)
    assert_refused(ghost_lab, to_node1, unknown.packet(), unknown, "unknown_dscp")


def test_a_syn_with_the_dscp_of_a_vip_that_is_no_handoff_is_dropped(
    ghost_lab: Lab, to_node1: Line, genuine: ForgedHandoff
) -> None:
    syn = IP(src=genuine.client, dst=genuine.node, tos=4) / TCP(
        sport=genuine.client_port, dport=80, flags="S"
    )
    assert_refused(ghost_lab, to_node1, syn, genuine, "not_a_handoff")


def test_a_captured_handoff_is_good_for_nothing_while_its_connection_lives_and_after_it(
    ghost_lab: Lab,
) -> None:
    target = "/captured"
    node = node_of(ghost_lab, target)
    host, bridge = ghost_lab.hosts[node], daemon_of(ghost_lab.hosts[node])
    tagged_syn = "tcp[tcpflags] & tcp-syn != 0 and ip[1] & 0xfc != 0"
    with line_to(ghost_lab, node) as line, connection(ghost_lab) as client:
        port = client.getsockname()[1]
        with host.capture(filter_expression=tagged_syn) as path:
            assert ask(client, target).status == 200
        (handoff,) = rdpcap(str(path))
        replay = bytes(handoff[IP])
        before = counters_of(bridge)
        line.send(replay)
        await_that(lambda: counters_of(bridge).get("same_handoff", 0) > before.get("same_handoff", 0))
        assert ask(client, f"{target}?afterwards").body.decode() == f"{node} {target}?afterwards\n"
        host.run(["ss", "-K", "dport", "=", f":{port}"])
        await_that(lambda: sockets_of(host, port) == [])
        line.send(replay)
        await_that(lambda: counters_of(bridge).get("replayed_handoff", 0) > before.get("replayed_handoff", 0))
    assert sockets_of(host, port) == []
    log = ghost_lab.nginx[node].access_log.read_text().splitlines()
    assert sum(f" {port} " in line and f"GET {target} " in line for line in log) == 1
