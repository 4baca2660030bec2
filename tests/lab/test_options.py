"""What client and balancer have negotiated holds on the backend leg, and each option may be absent."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet

from lab import FROM_NODE, Host, Lab
from tests.lab.backend_leg import HEADERS_ONLY, backend_leg
from tests.lab.conversation import VIP, VIP_ADDRESS
from tests.lab.fetch import curl, md5_of_download, md5_of_echo
from tests.lab.instead import balancer_with
from tests.lab.observed import (
    daemon_of,
    node_of,
    options,
    payload_length,
    segments,
    syn_ack_of,
    syn_of,
)

pytestmark = pytest.mark.root

TARGET = "/1m"
SYSCTLS = {"SAckOK": "tcp_sack", "Timestamp": "tcp_timestamps", "WScale": "tcp_window_scaling"}
ALL = frozenset(SYSCTLS)
CHOICES = [frozenset(chosen) for size in range(4) for chosen in itertools.combinations(sorted(SYSCTLS), size)]


@pytest.fixture(scope="module")
def running_lab(spliced_lab: Lab) -> Lab:
    """What is seen of the backend's handshake is compared with the client's."""
    return spliced_lab


def name_of(chosen: frozenset[str]) -> str:
    return "+".join(sorted(chosen)) or "none"


@pytest.fixture
def node(running_lab: Lab) -> Host:
    """The one that serves TARGET."""
    return running_lab.hosts[node_of(running_lab, TARGET)]


@contextmanager
def sysctls(host: Host, values: dict[str, str]) -> Iterator[None]:
    """Of net.ipv4, as they were before afterwards."""
    before = {name: host.run(["cat", f"/proc/sys/net/ipv4/{name}"]).stdout.strip() for name in values}
    for name, value in values.items():
        host.sysctl(f"net.ipv4.{name}", value)
    try:
        yield
    finally:
        for name, value in before.items():
            host.sysctl(f"net.ipv4.{name}", value)


def client_options(chosen: frozenset[str]) -> dict[str, str]:
    return {sysctl: str(int(option in chosen)) for option, sysctl in SYSCTLS.items()}


@dataclass
class Legs:
    """What was seen of one connection on both legs, in the order in which it passed."""

    client: list[Packet]
    backend: list[Packet]


@contextmanager
def both_legs(lab: Lab, node: Host) -> Iterator[Legs]:
    """Filled when the block is left."""
    legs = Legs([], [])
    with (
        lab.client.capture(filter_expression="tcp port 80", snap_bytes=HEADERS_ONLY) as at_client,
        backend_leg(lab, node) as backend,
    ):
        yield legs
    legs.client += segments(at_client)
    legs.backend += [packet for packet in backend if TCP in packet]


def said(segment: Packet) -> dict[str, object]:
    """MSS, window scale and presence of the two others; absent is absent."""
    found = options(segment)
    values: dict[str, object] = {name: found[name] for name in ("MSS", "WScale") if name in found}
    return {**values, **dict.fromkeys(ALL.difference({"WScale"}).intersection(found), True)}


@pytest.mark.parametrize("chosen", CHOICES, ids=name_of)
def test_what_the_client_negotiates_holds_on_both_legs(
    running_lab: Lab, node: Host, chosen: frozenset[str]
) -> None:
    with (
        sysctls(running_lab.client, client_options(chosen)),
        both_legs(running_lab, node) as legs,
    ):
        assert md5_of_download(running_lab.client, VIP + TARGET) == running_lab.content.md5("1m")
    offered = said(syn_of(legs.client))
    assert chosen == ALL.intersection(offered)
    assert said(syn_of(legs.backend)) == offered
    assert syn_of(legs.backend)[TCP].seq == syn_of(legs.client)[TCP].seq
    answered, backend_answered = options(syn_ack_of(legs.client)), options(syn_ack_of(legs.backend))
    assert ALL.intersection(answered) == chosen
    assert ALL.intersection(backend_answered) == chosen
    assert answered["MSS"] == (1436 if "Timestamp" in chosen else 1424)
    for segment in legs.client + legs.backend:
        assert ("Timestamp" in options(segment)) == ("Timestamp" in chosen)
    for segment in legs.client[3:]:
        assert not {"MSS", "WScale", "SAckOK"}.intersection(options(segment))


@pytest.mark.parametrize("chosen", CHOICES, ids=name_of)
def test_a_lost_segment_is_repaired_with_what_was_negotiated(
    running_lab: Lab, node: Host, chosen: frozenset[str]
) -> None:
    with (
        sysctls(running_lab.client, client_options(chosen)),
        running_lab.weather.drop(FROM_NODE, "ip length > 2000", skip=2) as dropped,
        both_legs(running_lab, node) as legs,
    ):
        assert md5_of_download(running_lab.client, VIP + TARGET) == running_lab.content.md5("1m")
    assert dropped.hits() == 1
    blocks = selective_acknowledgments(legs.client, VIP_ADDRESS)
    assert bool(blocks) == ("SAckOK" in chosen)
    backend = str(running_lab.topology.node(node.name).backend)
    passed_on = selective_acknowledgments(legs.backend, backend)
    assert bool(passed_on) == bool(blocks)
    assert passed_on == blocks[: len(passed_on)]  # the last ones may come when the capture has ended


def selective_acknowledgments(found: list[Packet], server: str) -> list[tuple[int, ...]]:
    """Of the client's segments with SACK blocks: acknowledgment and edges, counted from the server's ISN."""
    isn = syn_ack_of(found)[TCP].seq
    return [
        tuple((number - isn) % 2**32 for number in (segment[TCP].ack, *options(segment)["SAck"]))
        for segment in found
        if segment.dst == server and "SAck" in options(segment)
    ]


def test_sequence_numbers_timestamps_and_windows_are_the_same_on_both_legs(
    running_lab: Lab, node: Host
) -> None:
    with both_legs(running_lab, node) as legs:
        curl(running_lab.client, "-o", "/dev/null", f"{VIP}/1m")
    served = answer_of(legs.client, VIP_ADDRESS)
    sent = answer_of(legs.backend, str(running_lab.topology.node(node.name).backend))
    client_isn, backend_isn = syn_ack_of(legs.client)[TCP].seq, syn_ack_of(legs.backend)[TCP].seq
    shift = window_scale(syn_ack_of(legs.backend)) - window_scale(syn_ack_of(legs.client))
    assert len(served) == len(sent) > 5
    clock = options(served[0])["Timestamp"][0] - options(sent[0])["Timestamp"][0]
    for ours, theirs in zip(served, sent, strict=True):
        assert (ours[TCP].seq - client_isn) % 2**32 == (theirs[TCP].seq - backend_isn) % 2**32
        assert (ours[TCP].ack, str(ours[TCP].flags)) == (theirs[TCP].ack, str(theirs[TCP].flags))
        assert payload_length(ours) == payload_length(theirs)
        assert ours[TCP].window == rescaled(theirs[TCP].window, shift)
        (value, echo), (own_value, own_echo) = options(ours)["Timestamp"], options(theirs)["Timestamp"]
        assert ((value - own_value) % 2**32, echo) == (clock % 2**32, own_echo)
    newest_seen = options(syn_ack_of(legs.client))["Timestamp"][0]
    assert (options(served[0])["Timestamp"][0] - newest_seen) % 2**32 in range(1, 2**31)


def answer_of(found: list[Packet], server: str) -> list[Packet]:
    """All segments of the server behind its SYN-ACK and up to the last one with payload."""
    sent = [segment for segment in found if segment.src == server][1:]
    while not payload_length(sent[-1]):
        sent.pop()
    return sent


def window_scale(segment: Packet) -> int:
    return int(options(segment).get("WScale", 0))


def rescaled(window: int, shift: int) -> int:
    """Bytes are told in units of another size; 65535 units can be told at most."""
    return min(window << shift, 65535) if shift >= 0 else window >> -shift


# --- window scales that differ ---


@contextmanager
def narrow_receive_window(host: Host) -> Iterator[None]:
    """So narrow that a new socket needs no window scale."""
    route = host.run(["ip", "-4", "route", "show", "default"]).stdout.split()
    host.run(["ip", "route", "change", *route, "window", "60000"])
    try:
        yield
    finally:
        host.run(["ip", "route", "change", *route])


@contextmanager
def backend_scale(host: Host, kind: str) -> Iterator[None]:
    """Window scale of the backend against the promised 7: `none`, `equal` or `larger`."""
    if kind == "none":
        with narrow_receive_window(host):
            yield
        return
    most = {"equal": 6291456, "larger": 33554432}[kind]
    with sysctls(host, {"tcp_rmem": f"4096 131072 {most}"}):
        yield


@contextmanager
def client_scale(host: Host, kind: str) -> Iterator[None]:
    if kind == "none":
        with narrow_receive_window(host):
            yield
        return
    with sysctls(host, {"tcp_rmem": "4096 131072 33554432"}):
        yield


@pytest.mark.parametrize("client_kind", ["none", "larger"])
@pytest.mark.parametrize("backend_kind", ["none", "equal", "larger"])
def test_window_scales_may_differ_on_the_two_legs(
    running_lab: Lab, client_kind: str, backend_kind: str
) -> None:
    """/echo sends as much as it receives, so that both windows matter."""
    echo = running_lab.hosts[node_of(running_lab, "/echo")]
    with (
        backend_scale(echo, backend_kind),
        client_scale(running_lab.client, client_kind),
        both_legs(running_lab, echo) as legs,
    ):
        echoed = md5_of_echo(running_lab.client, running_lab.content.path("1m"))
    assert echoed == running_lab.content.md5("1m")
    promised, actual = window_scale(syn_ack_of(legs.client)), window_scale(syn_ack_of(legs.backend))
    assert promised == 7
    assert {"none": actual == 0, "equal": actual == 7, "larger": actual > 7}[backend_kind]
    asked = window_scale(syn_of(legs.client))
    assert asked == window_scale(syn_of(legs.backend))
    assert (asked == 0) == (client_kind == "none")
    backend = str(running_lab.topology.node(echo.name).backend)
    windows = [segment[TCP].window for segment in answer_of(legs.backend, backend)]
    told = [segment[TCP].window for segment in answer_of(legs.client, VIP_ADDRESS)]
    assert told == [rescaled(window, actual - promised) for window in windows]


def test_the_operator_chooses_the_window_scale_that_is_promised(running_lab: Lab, node: Host) -> None:
    with balancer_with(running_lab, "--window-scale=2"), both_legs(running_lab, node) as legs:
        assert md5_of_download(running_lab.client, VIP + TARGET) == running_lab.content.md5("1m")
    assert window_scale(syn_ack_of(legs.client)) == 2
    shift = window_scale(syn_ack_of(legs.backend)) - 2
    backend = str(running_lab.topology.node(node.name).backend)
    windows = [segment[TCP].window for segment in answer_of(legs.backend, backend)]
    told = [segment[TCP].window for segment in answer_of(legs.client, VIP_ADDRESS)]
    assert told == [rescaled(window, shift) for window in windows]
    assert shift > 0


# --- MSS ---


@pytest.mark.parametrize("mtu", [1500, 1300, 600])
def test_the_clients_mss_holds_on_the_backend_leg(running_lab: Lab, node: Host, mtu: int) -> None:
    running_lab.set_link_mtu("client", mtu)
    try:
        with both_legs(running_lab, node) as legs:
            assert md5_of_download(running_lab.client, VIP + TARGET) == running_lab.content.md5("1m")
    finally:
        running_lab.set_link_mtu("client", 1500)
    assert options(syn_of(legs.client))["MSS"] == mtu - 40
    assert options(syn_of(legs.backend))["MSS"] == mtu - 40


def test_a_smaller_mtu_to_a_node_makes_the_offered_mss_smaller(running_lab: Lab) -> None:
    way = ["192.168.33.22/32", "via", str(running_lab.topology.link("balancer").router)]
    running_lab.balancer.run(["ip", "route", "add", *way, "mtu", "1300"])
    daemon_of(running_lab.balancer).stop()
    narrow = running_lab.start_balancer()
    try:
        with running_lab.client.capture(filter_expression="tcp", snap_bytes=HEADERS_ONLY) as path:
            echoed = md5_of_echo(running_lab.client, running_lab.content.path("64k"))
    finally:
        narrow.stop()
        running_lab.balancer.run(["ip", "route", "delete", *way])
        running_lab.start_balancer()
    assert options(syn_ack_of(segments(path)))["MSS"] == 1300 - 40 - 36 + 12
    assert echoed == running_lab.content.md5("64k")
