"""Tagged packets of flows that are not known."""

import pytest

from packetbridge.core.service import Limits
from tests.unit.packetbridge.scene import (
    LI,
    OTHER_SERVICE,
    SERVICE,
    Scene,
    add,
    from_backend,
    from_client,
    handoff,
    syn,
)
from tests.unit.wire.packets import RST, Described, built

RESET = Described(from_client=False, seq=add(LI, 501), ack=0, flags=RST, window=0)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_stranger_is_reset_as_the_vip_three_seconds_later(scene: Scene) -> None:
    assert scene.balancer(from_client(b"data", got=500)) == []
    assert scene.pass_time(2.9) == ([], [])
    assert scene.pass_time(0.2) == ([built(RESET)], [])
    assert scene.pass_time(5) == ([], [])


def test_newest_acknowledgment_of_a_stranger_is_the_resets_number(scene: Scene) -> None:
    scene.balancer(from_client(b"data", got=100))
    scene.now += 0.5
    scene.balancer(from_client(b"data", got=500))
    assert scene.pass_time(2.6) == ([built(RESET)], [])


def test_stranger_whose_handoff_comes_within_three_seconds_is_not_reset(scene: Scene) -> None:
    scene.balancer(from_client(b"data"))
    scene.now += 2.8
    assert scene.balancer(handoff()) == [built(syn())]
    assert scene.pass_time(5) == ([], [])


def test_rst_of_a_stranger_is_answered_by_nothing(scene: Scene) -> None:
    assert scene.balancer(from_client(flags=RST)) == []
    assert scene.pass_time(5) == ([], [])


def test_client_of_a_flow_that_the_backend_reset_is_reset_like_any_stranger(scene: Scene) -> None:
    scene.settle()
    scene.backend(from_backend(flags=RST))
    scene.balancer(from_client(b"data", got=500))
    assert scene.pass_time(3.1) == ([built(RESET)], [])


def test_each_vip_resets_its_own_stranger() -> None:
    scene = Scene(SERVICE, OTHER_SERVICE)
    scene.balancer(from_client(got=500))
    scene.balancer(from_client(got=500)._replace(tos=2 << 2))
    expected = [built(RESET), built(RESET._replace(server="192.168.33.11"))]
    assert scene.pass_time(3.1) == (expected, [])


def test_strangers_are_bounded() -> None:
    scene = Scene(limits=Limits(strangers=2))
    for port in range(50_000, 50_005):
        scene.balancer(from_client()._replace(client_port=port))
    assert scene.core.sizes["strangers"] == 2
    assert scene.counters["strangers_full"] == 3


def test_resets_of_strangers_are_limited() -> None:
    scene = Scene(limits=Limits(resets_per_second=2))
    for port in range(50_000, 50_005):
        scene.balancer(from_client()._replace(client_port=port))
    packets, _ = scene.pass_time(3)
    assert len(packets) == 2
    assert scene.counters["stranger_reset_limited"] == 3
