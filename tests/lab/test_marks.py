"""The TOS byte: ECN bits go through; the DSCP is ours between balancer and node, and 0 everywhere else.
And the TTL, which becomes smaller with every hop, the balancer's too: no packet goes round for ever.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import Host, Lab
from tests.lab.backend_leg import backend_leg
from tests.lab.conversation import VIP, VIP_ADDRESS
from tests.lab.fetch import curl, md5_of_download
from tests.lab.observed import node_of, segments, syn_ack_of, syn_of

pytestmark = pytest.mark.root

TARGET = "/64k"
VIP_INDEX = 1
ECN_BITS = {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3}


@pytest.fixture(scope="module")
def running_lab(spliced_lab: Lab) -> Lab:
    """What is seen of the backend's handshake is compared with the client's."""
    return spliced_lab


@contextmanager
def marked(host: Host, condition: str, ecn: str, dscp: str) -> Iterator[None]:
    """All matching IPv4 packets that the host sends have these marks."""
    lines = [
        "table ip marks {",
        "chain marking {",
        "type filter hook output priority mangle;",
        f"{condition} ip dscp set {dscp} ip ecn set {ecn}",
        "}",
        "}",
    ]
    host.run(["nft", "-f", "-"], input="\n".join(lines) + "\n")
    try:
        yield
    finally:
        host.run(["nft", "delete", "table", "ip", "marks"])


@pytest.fixture
def node(running_lab: Lab) -> Host:
    """The one that serves TARGET."""
    return running_lab.hosts[node_of(running_lab, TARGET)]


def backend_of(lab: Lab, node: Host) -> str:
    return str(lab.topology.node(node.name).backend)


@pytest.mark.parametrize("ecn", ECN_BITS)
def test_ecn_bits_of_the_client_reach_the_server_and_its_dscp_does_not(
    running_lab: Lab, node: Host, ecn: str
) -> None:
    before = node.counters()
    with (
        marked(running_lab.client, f"ip daddr {VIP_ADDRESS}", ecn, "cs5"),
        running_lab.balancer.capture(filter_expression="tcp dst port 80", snap_bytes=96) as at_balancer,
        node.capture(filter_expression="tcp dst port 80", snap_bytes=96) as at_node,
        backend_leg(running_lab, node) as at_backend,
    ):
        assert md5_of_download(running_lab.client, VIP + TARGET) == running_lab.content.md5("64k")
    bits = ECN_BITS[ecn]
    from_client = [segment.tos for segment in segments(at_balancer) if segment.dst == VIP_ADDRESS]
    assert set(from_client) == {40 << 2 | bits}
    bridge = str(running_lab.topology.node(node.name).bridge)
    tagged = [segment.tos for segment in segments(at_node) if segment.dst == bridge]
    assert tagged == [VIP_INDEX << 2 | bits] * len(tagged)
    assert len(tagged) >= 3
    delivered = [segment for segment in at_backend if segment.dst == backend_of(running_lab, node)]
    assert syn_of(delivered).tos == 0
    behind_syn = [segment.tos for segment in delivered if not segment["TCP"].flags.S]
    assert behind_syn == [bits] * len(behind_syn)
    assert len(behind_syn) >= 3
    changes = node.counters_since(before)
    assert changes.get("TcpInCsumErrors", 0) == 0
    assert changes.get("IpInHdrErrors", 0) == 0


@pytest.mark.parametrize("ecn", ECN_BITS)
def test_ecn_bits_of_the_server_reach_the_client_and_its_dscp_does_not(
    running_lab: Lab, node: Host, ecn: str
) -> None:
    backend = backend_of(running_lab, node)
    before = running_lab.client.counters()
    with (
        marked(node, f"ip saddr {backend}", ecn, "af31"),
        running_lab.client.capture(filter_expression="tcp src port 80", snap_bytes=96) as at_client,
        backend_leg(running_lab, node) as at_backend,
    ):
        assert md5_of_download(running_lab.client, VIP + TARGET) == running_lab.content.md5("64k")
    bits = ECN_BITS[ecn]
    sent = [segment.tos for segment in at_backend if segment.src == backend]
    assert set(sent) == {26 << 2 | bits}
    received = segments(at_client)
    assert syn_ack_of(received).tos == 0
    behind_syn = [segment.tos for segment in received if not segment["TCP"].flags.S]
    assert behind_syn == [bits] * len(behind_syn)
    assert len(behind_syn) >= 3
    changes = running_lab.client.counters_since(before)
    assert changes.get("TcpInCsumErrors", 0) == 0
    assert changes.get("IpInHdrErrors", 0) == 0


def test_a_client_that_asks_for_ecn_is_served_without(running_lab: Lab, node: Host) -> None:
    running_lab.client.sysctl("net.ipv4.tcp_ecn", 1)
    try:
        with (
            running_lab.client.capture(filter_expression="tcp port 80", snap_bytes=96) as at_client,
            backend_leg(running_lab, node) as at_backend,
        ):
            curl(running_lab.client, "-o", "/dev/null", VIP + TARGET)
    finally:
        running_lab.client.sysctl("net.ipv4.tcp_ecn", 2)
    first, *others = segments(at_client)
    assert str(first["TCP"].flags) == "SEC"
    assert str(others[0]["TCP"].flags) == "SA"
    for segment in (*others, *at_backend):
        assert not segment["TCP"].flags.E
        assert not segment["TCP"].flags.C
        assert segment.tos == 0


TTL = 64
"""What every kernel of the lab begins with."""


ROUTED_BY_KERNEL = {"raw": 1, "ebpf": 0}
"""What Python sends enters the kernel by a TUN and is routed; what programs send leaves at once."""


def test_router_and_balancer_take_one_off_the_ttl(running_lab: Lab, node: Host, engine: str) -> None:
    """Two routers stand between client and node where there are three: the balancer is one as well. The
    handoff and the server's segments begin where they are sent.
    """
    bridge = str(running_lab.topology.node(node.name).bridge)
    with (
        running_lab.client.capture(filter_expression="tcp src port 80", snap_bytes=96) as at_client,
        node.capture(filter_expression="tcp dst port 80", snap_bytes=96) as at_node,
    ):
        assert md5_of_download(running_lab.client, VIP + TARGET) == running_lab.content.md5("64k")
    handoff, *others = [segment for segment in segments(at_node) if segment.dst == bridge]
    assert handoff["TCP"].flags.S
    assert handoff.ttl == TTL - len(("router",)) - ROUTED_BY_KERNEL[engine]
    assert {segment.ttl for segment in others} == {TTL - len(("router", "balancer", "router"))}
    assert {segment.ttl for segment in segments(at_client)} == {handoff.ttl}
