"""Services that come, go and change while the core has flows, and what it says of these."""

import pytest

from common.config import ConfigError
from common.reports import FlowReport
from packetbridge.core.record import Ended
from packetbridge.core.service import Service, Timeouts
from packetbridge.reload import refuse_changes
from tests.unit.packetbridge.scene import (
    CI,
    LI,
    OTHER_BACKEND,
    OTHER_SERVICE,
    PORT,
    REQUEST,
    SERVICE,
    SI,
    SIZE,
    B,
    Scene,
    X,
    add,
    from_backend,
    from_client,
    handoff,
    syn_ack,
)
from tests.unit.wire.packets import ACK, CLIENT, FIN, RST

CLIENT_BYTES = bytes(map(int, CLIENT.split(".")))
OTHER_PORT_OF_CLIENT = PORT + 1


def settled(scene: Scene, scale: int = 7) -> None:
    """``scale`` is the backend's, which the balancer took for 7."""
    scene.balancer(handoff())
    scene.backend(syn_ack(scale=scale))
    scene.balancer(from_client())


def finish(scene: Scene) -> None:
    scene.balancer(from_client(flags=ACK | FIN))
    scene.backend(from_backend(flags=ACK | FIN, got=SIZE + 1))


def test_service_that_is_added_is_served() -> None:
    scene = Scene(SERVICE)
    assert scene.balancer(handoff(index=2)) == []
    scene.core.serve([SERVICE, OTHER_SERVICE], scene.now)
    (syn,) = scene.balancer(handoff(index=2))
    assert syn[16:20] == bytes(map(int, OTHER_BACKEND.split(".")))


def test_flows_of_services_that_stay_go_on() -> None:
    scene = Scene(SERVICE, OTHER_SERVICE)
    settled(scene)
    assert scene.core.serve([SERVICE], scene.now) == 0
    assert scene.fast_balancer(from_client(b"x")) is not None
    assert scene.fast_backend(from_backend(b"y")) is not None


def test_flows_of_a_service_that_is_gone_are_forgotten_on_both_sides_and_in_the_journal() -> None:
    scene = Scene(SERVICE, OTHER_SERVICE)
    settled(scene)
    scene.core.journal.clear()
    assert scene.core.serve([OTHER_SERVICE], scene.now) == 1
    assert scene.core.sizes["flows"] == 0
    assert [type(event) for event in scene.core.journal] == [Ended]
    assert scene.fast_balancer(from_client(b"x")) is None
    assert scene.balancer(from_client(b"x")) == []
    assert scene.counters["unknown_dscp"] == 1
    untouched = from_backend(b"y")
    assert scene.backend(untouched) == scene.backend(untouched) != []


def test_handoff_of_a_flow_that_was_forgotten_does_not_open_it_again() -> None:
    scene = Scene(SERVICE, OTHER_SERVICE)
    settled(scene)
    scene.core.serve([OTHER_SERVICE], scene.now)
    scene.core.serve([OTHER_SERVICE, SERVICE], scene.now)
    scene.balancer(handoff())
    assert scene.counters["replayed_handoff"] == 1
    assert scene.core.sizes["flows"] == 0


def test_services_that_cannot_be_told_apart_are_refused_and_nothing_changes() -> None:
    scene = Scene(SERVICE)
    settled(scene)
    with pytest.raises(ValueError, match="share the backend"):
        scene.core.serve([SERVICE, SERVICE._replace(vip_index=2)], scene.now)
    assert scene.core.flows_of_vips() == {1: 1}
    assert scene.fast_balancer(from_client(b"x")) is not None


def test_open_flows_are_counted_for_each_vip_and_closed_ones_not() -> None:
    scene = Scene(SERVICE, OTHER_SERVICE)
    assert scene.core.flows_of_vips() == {1: 0, 2: 0}
    scene.balancer(handoff())
    assert scene.core.flows_of_vips() == {1: 1, 2: 0}
    scene.backend(syn_ack())
    scene.balancer(handoff(index=2))
    scene.balancer(handoff()._replace(client_port=OTHER_PORT_OF_CLIENT))
    assert scene.core.flows_of_vips() == {1: 2, 2: 1}
    finish(scene)
    assert scene.core.flows_of_vips() == {1: 1, 2: 1}
    scene.pass_time(200)
    assert scene.core.flows_of_vips() == {1: 0, 2: 0}


def test_flow_that_its_client_has_reset_counts_again_only_when_it_goes_on() -> None:
    scene = Scene(SERVICE)
    settled(scene)
    scene.balancer(from_client(flags=RST))
    assert scene.core.flows_of_vips() == {1: 0}
    scene.balancer(from_client(b"x"))
    assert scene.core.flows_of_vips() == {1: 1}


def test_flow_in_the_place_of_a_closed_one_is_counted() -> None:
    scene = Scene(SERVICE)
    settled(scene)
    finish(scene)
    scene.wall += 1
    scene.balancer(handoff(client_isn=add(CI, 5000), time=scene.wall))
    assert scene.counters["newer_handoff"] == 1
    assert scene.core.flows_of_vips() == {1: 1}


def test_bytes_that_go_either_way_are_counted_by_plan_and_without() -> None:
    scene = Scene(SERVICE)
    assert scene.core.counts == {"bytes_to_backends": 0, "bytes_to_clients": 0}
    settled(scene)
    options = 12
    first = 40 + options + len(REQUEST)
    assert scene.core.counts["bytes_to_backends"] == first + 40 + options
    assert scene.fast_balancer(from_client(b"four")) is not None
    assert scene.core.counts["bytes_to_backends"] == first + 2 * (40 + options) + 4
    assert scene.fast_backend(from_backend(b"eight...")) is not None
    scene.backend(from_backend(b"eight...", flags=ACK | FIN))
    assert scene.core.counts["bytes_to_clients"] == 2 * (40 + options + 8)


def test_open_flow_is_asked_for_after_the_idle_time_that_is_configured() -> None:
    scene = Scene(SERVICE, timeouts=Timeouts(idle=300.0))
    settled(scene)
    _, questions = scene.pass_time(299)
    assert questions == []
    _, questions = scene.pass_time(66)  # idle flows are looked at once in 64 seconds
    assert len(questions) >= 1


def test_idle_time_shorter_than_that_of_closed_flows_holds_for_these_too() -> None:
    scene = Scene(SERVICE, timeouts=Timeouts(idle=20.0))
    settled(scene)
    finish(scene)
    scene.pass_time(25)
    assert scene.core.sizes["flows"] == 0


def test_flow_is_reported_with_what_splices_it() -> None:
    scene = Scene(SERVICE)
    settled(scene, scale=9)
    scene.now += 2
    scene.wall += 3
    report = FlowReport(
        client=CLIENT,
        client_port=PORT,
        vip_index=1,
        node="192.168.33.20",
        state="established",
        age=3.0,
        idle=2.0,
        details={
            "vip": "192.168.33.10:80",
            "backend": "192.168.33.30:8080",
            "client_isn": CI,
            "balancer_isn": LI,
            "client_phase": "open",
            "client_next_seq": CI + 1 + SIZE,
            "backend_phase": "open",
            "backend_next_seq": SI + 1,
            "seq_delta": (LI - SI) % 2**32,
            "tsval_delta": (X + 1 - B) % 2**32,
            "backend_window_shift": 2,
            "client_window_shift": 0,
        },
    )
    assert list(scene.core.flows(scene.now)) == [report]
    assert scene.core.find(CLIENT_BYTES, PORT, 1, scene.now) == report
    assert scene.core.find(CLIENT_BYTES, PORT, 2, scene.now) is None
    assert scene.core.find(CLIENT_BYTES, PORT + 1, 1, scene.now) is None


def test_flow_that_opens_is_reported_without_what_is_not_known_yet() -> None:
    scene = Scene(SERVICE)
    scene.balancer(handoff())
    (report,) = scene.core.flows(scene.now)
    assert report.state == "opening"
    unknown = {name for name, value in report.details.items() if value is None}
    assert unknown == {
        "backend_phase",
        "backend_next_seq",
        "seq_delta",
        "tsval_delta",
        "backend_window_shift",
        "client_window_shift",
    }


DRAIN_IT = "of VIP 192.168.33.10:80 to 192.168.33.30:8080: drain it first, or use another DSCP"
MOVED = SERVICE._replace(backend_port=9000)


@pytest.mark.parametrize(
    ("new", "flows", "refusal"),
    [
        ([SERVICE], 5, None),
        ([SERVICE, OTHER_SERVICE], 5, None),
        ([OTHER_SERVICE], 5, None),
        ([MOVED], 0, None),
        (
            [MOVED],
            12,
            f"DSCP 1 has 12 flows {DRAIN_IT}",
        ),
        (
            [SERVICE._replace(vip_port=81)],
            1,
            f"DSCP 1 has 1 flow {DRAIN_IT}",
        ),
        (
            [SERVICE._replace(bridge=bytes(4))],
            0,
            "the bridge address cannot be changed while the packetbridge runs: restart it",
        ),
        ([], 0, "a packetbridge serves at least one VIP, and all at one bridge address"),
        ([SERVICE._replace(vip_index=64)], 0, "VIP index 64 is not within 1 to 63"),
    ],
)
def test_change_of_a_service_is_refused_as_long_as_it_has_flows(
    new: list[Service], flows: int, refusal: str | None
) -> None:
    if refusal is None:
        refuse_changes([SERVICE], new, lambda _: flows)
        return
    with pytest.raises(ConfigError) as refused:
        refuse_changes([SERVICE], new, lambda _: flows)
    assert str(refused.value) == refusal
