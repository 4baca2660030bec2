"""Flows that are forgotten with their node, and how their clients learn of it."""

import pytest

from common.wire import tcp
from tests.unit.balancer.scene import (
    ACK,
    GET,
    INDEX,
    NODES,
    RST,
    Client,
    Scene,
    connected,
    forwarded,
    from_vip,
    packed,
    reset_of,
)
from tests.unit.wire.packets import Described, ScapyOption, built

YOUNG_SECONDS = 60.0
"""A cookie is good for at least as long."""


def forget(client: Client) -> list[bytes]:
    packets = client.scene.core.forget_node(INDEX, packed(client.node_address()), client.scene.now)
    return [packet.data for packet in packets]


def probe(client: Client, stamped: bool) -> bytes:
    """One byte from before what the client expects; our timestamp's clock is in milliseconds."""
    stamps: tuple[ScapyOption, ...] = ()
    if stamped:
        value = int(client.scene.now * 1000)
        stamps = (("NOP", None), ("NOP", None), ("Timestamp", (value, 0)))
    return from_vip(
        client, seq=client.server_isn, ack=client.isn + 1, flags=ACK, window=0, options=stamps, payload=b"\0"
    )


def rst_to_node(client: Client, *, at: int = len(GET)) -> bytes:
    """As from the client, where its stream has got to."""
    sent = built(
        Described(
            server=client.vip,
            server_port=client.service_port,
            client_port=client.port,
            seq=client.isn + 1 + at,
            ack=0,
            flags=RST,
            window=0,
        )
    )
    return forwarded(sent, client.node_address())


def rst(client: Client) -> bytes:
    return from_vip(client, seq=client.server_isn + 1, ack=0, flags=RST, window=0)


@pytest.mark.parametrize("stamps", [True, False])
def test_a_young_flow_is_reset_where_nothing_was_heard_and_probed_where_something_was(stamps: bool) -> None:
    client = connected(Scene(), stamps=stamps)
    to_node = rst_to_node(client)
    assert forget(client) == [to_node, rst(client), probe(client, stamps)]


def test_a_flow_whose_handshake_counts_no_more_is_only_probed() -> None:
    client = connected(Scene())
    client.scene.pass_time(3 * YOUNG_SECONDS)
    to_node = rst_to_node(client)
    assert forget(client) == [to_node, probe(client, stamped=True)]


def test_clients_that_may_still_speak_come_first_and_those_that_have_reset_are_left_alone() -> None:
    scene = Scene()
    finished, reset, open_one = (connected(scene, port=port) for port in (50001, 50002, 50003))
    finished.send(at=len(GET), flags=tcp.FIN | ACK)
    reset.send(at=len(GET), flags=RST)
    assert len({client.node_address() for client in (finished, reset, open_one)}) == 1
    to_first, to_second = rst_to_node(open_one), rst_to_node(finished, at=len(GET) + 1)
    assert forget(finished) == [
        *(to_first, rst(open_one), probe(open_one, True)),
        *(to_second, rst(finished), probe(finished, True)),
    ]


def test_client_that_has_another_flow_by_the_time_is_left_alone() -> None:
    client = connected(Scene())
    farewells = client.scene.core.forget_node(INDEX, packed(client.node_address()), client.scene.now)
    connected(client.scene, port=client.port)
    assert list(farewells) == []


def test_what_the_client_says_to_the_probe_is_answered_with_a_reset_where_it_stands() -> None:
    client = connected(Scene())
    forget(client)
    assert client.send(at=len(GET), ack=5000) == [reset_of(client, ack=5000)]


def test_flows_of_other_nodes_and_services_are_left_alone() -> None:
    scene = Scene()
    clients = [connected(scene, GET.replace(b"film", b"%d" % port), port=port) for port in range(1000, 1050)]
    nodes = {client.port: client.node_address() for client in clients}
    assert set(nodes.values()) == set(NODES.values())
    assert list(scene.core.forget_node(INDEX + 1, packed(NODES["node1"]), scene.now)) == []
    scene.core.forget_node(INDEX, packed(NODES["node1"]), scene.now)
    left = {flow.client_port: flow.node for flow in scene.core.flows(scene.now)}
    assert left == {port: node for port, node in nodes.items() if node != NODES["node1"]}
