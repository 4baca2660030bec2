"""How flows end, and what keeps them."""

import pytest

from tests.unit.packetbridge.scene import (
    BACKEND_KEY,
    CI,
    SIZE,
    Scene,
    at_backend,
    at_client,
    from_backend,
    from_client,
    handoff,
)
from tests.unit.wire.packets import ACK, FIN, RST, built

END = FIN | ACK


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.settle()
    return made


def close_both(scene: Scene) -> None:
    scene.balancer(from_client(flags=END))
    scene.backend(from_backend(flags=END, got=SIZE + 1))


def test_backend_rst_reaches_the_client_and_ends_the_flow_at_once(scene: Scene) -> None:
    rst = from_backend(flags=RST | ACK)
    assert scene.backend(rst) == [built(at_client(rst))]
    assert scene.core.sizes == {"flows": 0, "tombstones": 1, "strangers": 0, "waiting_bytes": 0}
    assert scene.pass_time(10_000) == ([], [])


def test_fin_of_both_sides_is_translated_and_ends_the_flow_after_a_minute(scene: Scene) -> None:
    fin, answer = from_client(flags=END), from_backend(flags=END, got=SIZE + 1)
    assert scene.balancer(fin) == [built(at_backend(fin))]
    assert scene.backend(answer) == [built(at_client(answer))]
    last = from_client(sent=SIZE + 1, got=1)
    assert scene.balancer(last) == [built(at_backend(last))]
    assert scene.pass_time(59) == ([], [])
    assert scene.core.sizes["flows"] == 1
    assert scene.pass_time(2) == ([], [])
    assert scene.core.sizes == {"flows": 0, "tombstones": 1, "strangers": 0, "waiting_bytes": 0}


def test_retransmitted_fin_keeps_a_closed_flow(scene: Scene) -> None:
    close_both(scene)
    scene.pass_time(50)
    again = from_backend(flags=END, got=SIZE + 1)
    assert scene.backend(again) == [built(at_client(again))]
    scene.pass_time(50)
    assert scene.core.sizes["flows"] == 1


def test_half_closed_download_stays_on_its_plan(scene: Scene) -> None:
    scene.balancer(from_client(flags=END))
    reply = from_backend(b"x" * 1000, got=SIZE + 1)
    assert scene.fast_backend(reply) == built(at_client(reply))
    acknowledgment = from_client(sent=SIZE + 1, got=1000)
    assert scene.balancer(acknowledgment) == [built(at_backend(acknowledgment))]


def test_end_that_has_finished_has_no_plan_until_it_goes_on(scene: Scene) -> None:
    close_both(scene)
    assert scene.fast_balancer(from_client(sent=SIZE + 1)) is None
    assert scene.fast_backend(from_backend(sent=1)) is None
    scene.balancer(from_client(b"alive"))
    scene.backend(from_backend(b"alive"))
    assert scene.fast_balancer(from_client(sent=SIZE + 5)) is not None
    assert scene.fast_backend(from_backend(sent=5)) is not None


def test_data_on_the_plan_counts_for_what_is_in_order(scene: Scene) -> None:
    scene.fast_balancer(from_client(b"x" * 1000))
    scene.fast_backend(from_backend(b"y" * 2000))
    scene.balancer(from_client(flags=END, sent=SIZE + 1000))
    scene.backend(from_backend(flags=END, sent=2000))
    assert scene.pass_time(61) == ([], [])
    assert scene.core.sizes["flows"] == 0


def test_silent_half_closed_flow_is_asked_for_after_a_minute_and_kept(scene: Scene) -> None:
    scene.balancer(from_client(flags=END))
    assert scene.pass_time(61) == ([], [BACKEND_KEY])
    scene.core.socket_exists(BACKEND_KEY, True, scene.now)
    assert scene.pass_time(59) == ([], [])
    assert scene.core.sizes["flows"] == 1


def test_client_rst_in_order_is_translated_and_the_kernel_asked_after_ten_seconds(scene: Scene) -> None:
    rst = from_client(flags=RST)
    assert scene.balancer(rst) == [built(at_backend(rst))]
    assert scene.pass_time(9.5) == ([], [])
    assert scene.pass_time(1.5) == ([], [BACKEND_KEY])
    scene.core.socket_exists(BACKEND_KEY, False, scene.now)
    assert scene.core.sizes["flows"] == 0
    assert scene.core.sizes["tombstones"] == 1


def test_forged_client_rst_is_left_to_the_backend_to_judge(scene: Scene) -> None:
    rst = from_client(flags=RST, sent=SIZE + 500)
    assert scene.balancer(rst) == [built(at_backend(rst))]
    assert scene.pass_time(100) == ([], [])


def test_data_after_a_forged_rst_makes_the_idle_time_long_again(scene: Scene) -> None:
    scene.balancer(from_client(flags=RST))
    scene.pass_time(5)
    more = from_client(b"alive")
    assert scene.balancer(more) == [built(at_backend(more))]
    assert scene.pass_time(1000) == ([], [])
    assert scene.fast_balancer(from_client(sent=SIZE + 5)) is not None


def test_data_in_place_of_a_forged_fin_makes_the_idle_time_long_again(scene: Scene) -> None:
    close_both(scene)
    scene.balancer(from_client(b"alive"))
    assert scene.pass_time(61) == ([], [BACKEND_KEY])
    assert scene.core.sizes["flows"] == 1


def test_question_without_an_answer_is_asked_again(scene: Scene) -> None:
    scene.balancer(from_client(flags=RST))
    assert scene.pass_time(32) == ([], [BACKEND_KEY, BACKEND_KEY, BACKEND_KEY])


def test_packets_on_the_plan_keep_an_established_flow(scene: Scene) -> None:
    for _ in range(4):
        assert scene.pass_time(7000) == ([], [])
        assert scene.fast_backend(from_backend()) is not None
    for _ in range(4):
        assert scene.pass_time(7000) == ([], [])
        assert scene.fast_balancer(from_client()) is not None


def test_established_flow_is_asked_for_after_7500_silent_seconds(scene: Scene) -> None:
    assert scene.pass_time(7499) == ([], [])
    assert scene.pass_time(2) == ([], [BACKEND_KEY])
    scene.core.socket_exists(BACKEND_KEY, True, scene.now)
    assert scene.pass_time(7400) == ([], [])
    assert scene.pass_time(200)[1][0] == BACKEND_KEY


def test_answer_that_comes_after_new_packets_is_ignored(scene: Scene) -> None:
    scene.balancer(from_client(flags=RST))
    scene.pass_time(11)
    scene.balancer(from_client(b"alive"))
    scene.core.socket_exists(BACKEND_KEY, False, scene.now)
    assert scene.core.sizes["flows"] == 1


def test_answer_about_a_flow_that_is_gone_is_ignored(scene: Scene) -> None:
    scene.backend(from_backend(flags=RST))
    scene.core.socket_exists(BACKEND_KEY, True, scene.now)
    assert scene.core.sizes["flows"] == 0


def test_idle_core_has_no_deadline() -> None:
    scene = Scene()
    assert scene.core.next_deadline() is None
    scene.settle()
    scene.backend(from_backend(flags=RST))
    scene.pass_time(100)
    assert scene.core.next_deadline() is None


def test_port_that_is_used_again_and_again_costs_no_memory_of_timers(scene: Scene) -> None:
    for index in range(1, 300):
        scene.balancer(handoff(client_isn=CI + index * 100, time=scene.wall + index // 10))
        scene.wall += index % 10 == 0
        scene.pass_time(1)
    assert sum(len(turn) for turn in scene.core._rounds._turns) == 1
