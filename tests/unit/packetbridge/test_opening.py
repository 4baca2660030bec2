"""From the handoff to the backend's SYN-ACK."""

import pytest

from common.wire.offload import Packet
from packetbridge.core.service import Limits
from tests.unit.packetbridge.scene import (
    CI,
    CLIENT_SCALE,
    FIRST,
    LI,
    NOP,
    PARTIAL,
    REQUEST,
    SI,
    SIZE,
    TS,
    WALL,
    B,
    Scene,
    X,
    add,
    at_backend,
    from_backend,
    from_client,
    handoff,
    refusal,
    stamps,
    syn,
    syn_ack,
)
from tests.unit.wire.packets import (
    ACK,
    BACKEND,
    FIN,
    PSH,
    RST,
    SYN,
    Described,
    ScapyOption,
    built,
    tcp_checksum_error,
    with_field,
    with_partial_checksum,
    word,
)

TO_BACKEND = Described(server=BACKEND, server_port=8080, window=0, ack=0)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_handoff_opens_backend_leg_as_the_client_would(scene: Scene) -> None:
    assert scene.balancer(handoff()) == [built(syn())]


@pytest.mark.parametrize(
    ("offered", "options"),
    [
        (
            handoff(sack=False),
            (("MSS", 1400), NOP, NOP, ("Timestamp", (TS, 0)), NOP, ("WScale", CLIENT_SCALE)),
        ),
        (
            handoff(timestamps=None),
            (("MSS", 1400), NOP, NOP, ("SAckOK", b""), NOP, ("WScale", CLIENT_SCALE)),
        ),
        (handoff(scale=None, promised=0), (("MSS", 1400), ("SAckOK", b""), ("Timestamp", (TS, 0)))),
        (handoff(sack=False, timestamps=None, scale=None, promised=0), (("MSS", 1400),)),
    ],
    ids=["sack", "timestamps", "window_scale", "all"],
)
def test_option_that_the_client_lacks_stays_off(
    scene: Scene, offered: Described, options: tuple[ScapyOption, ...]
) -> None:
    assert scene.balancer(offered) == [built(syn(options))]


def test_syn_ack_is_answered_with_the_payload_and_nothing_reaches_the_client(scene: Scene) -> None:
    assert scene.open() == [built(FIRST)]


@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
def test_first_payload_keeps_ecn_and_loses_dscp(scene: Scene, ecn: int) -> None:
    assert scene.open(handoff(ecn=ecn)) == [built(FIRST._replace(tos=ecn))]


def test_fin_of_the_first_payload_is_given_to_the_backend(scene: Scene) -> None:
    assert scene.open(handoff(fin=True)) == [built(FIRST._replace(flags=ACK | PSH | FIN))]


def test_first_payload_without_timestamps_has_no_options(scene: Scene) -> None:
    sent = scene.open(handoff(timestamps=None), syn_ack(timestamps=None))
    assert sent == [built(FIRST._replace(options=()))]


def test_window_of_a_client_without_scale_is_taken_as_it_is(scene: Scene) -> None:
    sent = scene.open(handoff(scale=None, promised=0), syn_ack(scale=None))
    assert sent == [built(FIRST._replace(window=64_240))]


def test_windows_are_expanded_for_a_backend_that_does_not_scale(scene: Scene) -> None:
    sent = scene.open(handoff(window=20_000), syn_ack(scale=None))
    assert sent == [built(FIRST._replace(window=20_000 >> CLIENT_SCALE << CLIENT_SCALE))]


def test_partial_checksum_of_a_handoff_stays_partial(scene: Scene) -> None:
    received = Packet(with_partial_checksum(built(handoff())), PARTIAL._replace(header_length=76))
    scene.core.from_balancer(received, scene.now)
    sent = scene.core.from_backend(Packet(built(syn_ack())), scene.now)
    assert sent == [Packet(with_partial_checksum(built(FIRST)), PARTIAL)]


def test_damaged_handoff_payload_stays_visibly_damaged(scene: Scene) -> None:
    right = built(handoff())
    scene.balancer(with_field(right, len(right) - 2, word(right, len(right) - 2) ^ 0x0101))
    (sent,) = scene.backend(syn_ack())
    assert tcp_checksum_error(sent) != 0


def test_same_handoff_sends_the_same_syn_again(scene: Scene) -> None:
    scene.balancer(handoff())
    scene.now += 1
    again = handoff(timestamps=(TS + 1000, X), time=WALL + 1)
    assert scene.balancer(again) == [built(syn())]
    assert scene.backend(syn_ack()) == [built(FIRST)]


def test_longer_retransmission_waits_behind_the_first(scene: Scene) -> None:
    scene.balancer(handoff(b"GE"))
    assert scene.balancer(handoff(REQUEST, time=WALL + 1)) == [built(syn())]
    assert scene.backend(syn_ack()) == [built(FIRST._replace(payload=b"GE")), built(FIRST)]


def test_shorter_retransmission_does_not_wait(scene: Scene) -> None:
    scene.balancer(handoff(REQUEST))
    scene.balancer(handoff(b"GE"))
    assert scene.backend(syn_ack()) == [built(FIRST)]


def test_early_segments_wait_and_go_in_sequence_order_with_the_backends_time(scene: Scene) -> None:
    scene.balancer(handoff())
    second = from_client(b"2" * 100, options=stamps(TS + 1, X))
    third = from_client(b"3" * 50, sent=SIZE + 100, options=stamps(TS + 1, X))
    assert scene.balancer(third) == []
    assert scene.balancer(second) == []
    translated = [at_backend(early, stamps(TS + 1, B)) for early in (second, third)]
    assert scene.backend(syn_ack()) == [built(FIRST), *map(built, translated)]
    assert scene.core.sizes["waiting_bytes"] == 0


def test_waiting_segments_never_have_another_echo_than_the_syn_ack(scene: Scene) -> None:
    """Newer Linux ends no handshake with an echo that lies outside of its SYN-ACKs."""
    scene.balancer(handoff())
    early = from_client(b"2", options=stamps(TS + 1, X + 50))
    scene.balancer(early)
    assert scene.backend(syn_ack())[1] == built(at_backend(early, stamps(TS + 1, B)))


def test_what_waits_for_one_flow_is_bounded(scene: Scene) -> None:
    bound = len(built(from_client(b"x" * 1000))) * 2 + len(built(at_backend(from_client(REQUEST))))
    scene = Scene(limits=Limits(waiting_per_flow=bound))
    scene.balancer(handoff())
    for index in range(3):
        scene.balancer(from_client(b"x" * 1000, sent=SIZE + 1000 * index))
    assert scene.counters["waiting_full"] == 1
    assert scene.core.sizes["waiting_bytes"] == bound
    assert len(scene.backend(syn_ack())) == 3


def test_what_waits_in_all_is_bounded_and_given_back() -> None:
    scene = Scene(limits=Limits(waiting_in_all=100))
    assert scene.balancer(handoff()) == [built(syn())]
    other = handoff()._replace(client_port=50_000)
    assert scene.balancer(other) == []
    assert scene.counters["waiting_full"] == 1
    scene.backend(syn_ack())
    assert len(scene.balancer(other)) == 1


def test_client_rst_in_order_ends_an_opening_flow_at_the_backend(scene: Scene) -> None:
    scene.balancer(handoff())
    rst = from_client(flags=RST, options=())
    assert scene.balancer(rst) == [built(TO_BACKEND._replace(seq=CI + 1, flags=RST))]
    assert scene.core.sizes["flows"] == 0
    scene.balancer(handoff())
    assert scene.core.sizes["flows"] == 0


def test_forged_client_rst_does_not_end_an_opening_flow(scene: Scene) -> None:
    scene.balancer(handoff())
    assert scene.balancer(from_client(flags=RST, options=(), sent=SIZE + 1)) == []
    assert scene.backend(syn_ack()) == [built(FIRST)]


def test_closed_backend_port_resets_the_client_at_once_as_the_vip(scene: Scene) -> None:
    scene.balancer(handoff())
    closed = syn_ack()._replace(seq=0, flags=RST | ACK, window=0, options=())
    assert scene.backend(closed) == [built(refusal())]
    assert scene.core.sizes == {"flows": 0, "tombstones": 1, "strangers": 0, "waiting_bytes": 0}


def test_rst_of_an_older_connection_is_not_passed_to_the_client(scene: Scene) -> None:
    scene.balancer(handoff())
    assert scene.backend(from_backend(flags=RST, options=())) == []
    assert scene.backend(syn_ack()) == [built(FIRST)]


def test_challenge_ack_is_answered_as_in_syn_sent_and_the_syn_sent_again(scene: Scene) -> None:
    scene.balancer(handoff())
    challenge = from_backend(got=123_456)
    expected = [built(TO_BACKEND._replace(seq=challenge.ack, flags=RST)), built(syn())]
    assert scene.backend(challenge) == expected


def test_older_connection_is_reset_at_most_three_times_a_flow(scene: Scene) -> None:
    scene.balancer(handoff())
    answers = [len(scene.backend(from_backend(b"old data", got=123_456))) for _ in range(5)]
    assert answers == [2, 2, 2, 0, 0]
    assert scene.counters["opening_retries_exhausted"] == 2


def test_syn_ack_of_the_replaced_flow_is_reset_and_the_syn_sent_again(scene: Scene) -> None:
    scene.balancer(handoff())
    newer = handoff(client_isn=CI + 900_000, balancer_isn=LI + 5, time=WALL + 1)
    assert scene.balancer(newer) == [built(syn(client_isn=CI + 900_000))]
    expected = [
        built(TO_BACKEND._replace(seq=CI + 1, flags=RST)),
        built(syn(client_isn=CI + 900_000)),
    ]
    assert scene.backend(syn_ack()) == expected
    assert scene.core.sizes["flows"] == 1


def test_syn_ack_of_a_direct_connection_passes_untouched_and_the_client_may_try_again(scene: Scene) -> None:
    scene.balancer(handoff())
    direct = syn_ack(client_isn=CI + 777)
    assert scene.backend(direct) == [built(direct)]
    assert scene.core.sizes["flows"] == 0
    assert scene.balancer(handoff()) == [built(syn())]


def test_backend_without_the_clients_timestamps_is_reset_on_both_sides(scene: Scene) -> None:
    scene.balancer(handoff())
    to_backend = built(TO_BACKEND._replace(seq=CI + 1, flags=RST))
    assert scene.backend(syn_ack(timestamps=None)) == [to_backend, built(refusal())]
    assert scene.counters["syn_ack_lacks_timestamps"] == 1
    assert scene.core.sizes == {"flows": 0, "tombstones": 1, "strangers": 0, "waiting_bytes": 0}


def test_backends_timestamps_are_no_use_without_the_clients(scene: Scene) -> None:
    sent = scene.open(handoff(timestamps=None), syn_ack())
    assert sent == [built(FIRST._replace(options=()))]


def test_opening_flow_ends_after_a_minute_of_silence(scene: Scene) -> None:
    scene.balancer(handoff())
    scene.pass_time(59)
    assert scene.core.sizes["flows"] == 1
    scene.pass_time(2)
    assert scene.core.sizes == {"flows": 0, "tombstones": 0, "strangers": 0, "waiting_bytes": 0}


def test_sequence_numbers_wrap_around_while_opening(scene: Scene) -> None:
    top = 2**32 - 1
    scene.balancer(handoff(client_isn=top, balancer_isn=top))
    sent = scene.backend(syn_ack(client_isn=top, isn=top))
    assert sent == [built(FIRST._replace(seq=0, ack=0))]
    late = from_client(b"x")._replace(seq=SIZE, ack=10)
    assert scene.balancer(late) == [built(at_backend(late)._replace(ack=10))]


def test_timestamps_wrap_around_while_opening(scene: Scene) -> None:
    scene.open(handoff(timestamps=(TS, 2**32 - 1)), syn_ack(timestamps=(2**32 - 1, TS)))
    reply = from_backend(b"x", options=stamps(2, TS))
    assert scene.backend(reply)[0] == built(
        reply._replace(
            server="192.168.33.10", server_port=80, seq=add(reply.seq, LI - SI), options=stamps(3, TS)
        )
    )
    still = from_client(options=stamps(TS, 2**32 - 1))
    assert scene.balancer(still) == [built(at_backend(still, stamps(TS, 2**32 - 1)))]
    later = from_client(options=stamps(TS, 3))
    assert scene.balancer(later) == [built(at_backend(later, stamps(TS, 2)))]


def test_syn_flag_with_others_is_absurd(scene: Scene) -> None:
    for flags in (SYN | ACK, SYN | FIN, SYN | RST, 0, FIN, PSH):
        assert scene.balancer(handoff()._replace(flags=flags)) == []
    assert scene.counters == {"absurd_flags": 6}
