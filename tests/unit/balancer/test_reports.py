"""What the core says of one connection, in each state that it may be in."""

from common.reports import FlowReport
from tests.unit.balancer.scene import CLIENT, INDEX, VIP, Client, Scene, connected, packed


def found(client: Client, index: int = INDEX) -> FlowReport | None:
    return client.scene.core.find(packed(CLIENT), client.port, index, client.scene.now)


def negotiated(client: Client) -> dict[str, object]:
    return {
        "service": f"{VIP}:80",
        "client_isn": client.isn,
        "isn": client.server_isn,
        "mss": 1460,
        "window_scale": 7,
        "sack": True,
        "timestamps": True,
    }


def without_node(client: Client, state: str, **details: object) -> FlowReport:
    details = negotiated(client) | details
    return FlowReport(CLIENT, client.port, INDEX, "", state, None, None, details)  # type: ignore[arg-type]


def test_a_flow_is_told_with_its_node() -> None:
    client = connected(Scene())
    client.scene.pass_time(2)
    said = found(client)
    assert said is not None
    assert (said.node, said.state, said.age, said.idle) == (client.node_address(), "established", 2.0, 2.0)
    assert said.details.items() >= negotiated(client).items()


def test_a_client_that_has_said_nothing_is_told_without_a_node() -> None:
    client = Client(Scene()).connect()
    assert found(client) == without_node(client, "verified")


def test_a_client_whose_first_bytes_do_not_tell_the_key_is_told_with_what_is_held() -> None:
    client = Client(Scene()).connect()
    client.send(b"GET /fi")
    client.send(b"ts", at=9)
    assert found(client) == without_node(client, "collecting", segments_held=2, bytes_in_order=7)


def test_a_client_that_the_balancer_has_answered_is_told_with_the_answer() -> None:
    client = Client(Scene()).connect()
    client.send(b"GET nowhere\r\n\r\n")
    assert found(client) == without_node(client, "answered", answer="HTTP/1.1 400 Bad Request")


def test_a_half_open_connection_and_one_of_another_service_are_unknown() -> None:
    client = Client(Scene()).greet()
    assert found(client) is None
    assert found(client.connect(), INDEX + 1) is None
