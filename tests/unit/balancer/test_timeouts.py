"""What the configured timeouts change."""

from balancer.core.service import Timeouts
from tests.unit.balancer.scene import ACK, FIN, GET, Client, Scene, connected


def test_an_open_flow_may_be_idle_for_as_long_as_configured() -> None:
    client = connected(Scene(timeouts=Timeouts(idle=400.0)))
    client.scene.pass_time(395.0)
    assert client.node is not None
    client.scene.pass_time(10.0)
    assert client.node is None


def test_a_flow_that_has_ended_is_not_kept_longer_than_an_open_one() -> None:
    client = connected(Scene(timeouts=Timeouts(idle=30.0)))
    for _ in range(10):
        client.scene.pass_time(20.0)
        client.send(at=len(GET))
    client.send(at=len(GET), flags=FIN | ACK)
    client.scene.pass_time(25.0)
    assert client.node is not None
    client.scene.pass_time(10.0)
    assert client.node is None


def test_a_client_may_be_silent_for_as_long_as_configured() -> None:
    scene = Scene(timeouts=Timeouts(verified=20.0))
    Client(scene).connect()
    scene.pass_time(19.0)
    assert scene.core.sizes["verified"] == 1
    scene.pass_time(2.0)
    assert scene.core.sizes["verified"] == 0


def test_a_first_payload_is_waited_for_as_long_as_configured() -> None:
    client = Client(Scene(timeouts=Timeouts(preamble=0.5))).connect()
    assert client.send(GET[:10]) == []
    assert client.scene.pass_time(0.45) == []
    assert len(client.scene.pass_time(0.1)) == 1
