"""Packets of a spliced flow, by plan and by the state machine."""

import pytest

from common.wire.offload import Packet
from tests.unit.packetbridge.scene import (
    CI,
    CLIENT_SCALE,
    LI,
    NOP,
    PARTIAL,
    REQUEST,
    SI,
    SIZE,
    TS,
    B,
    Scene,
    X,
    add,
    at_backend,
    at_client,
    from_backend,
    from_client,
    handoff,
    stamps,
    syn_ack,
)
from tests.unit.wire.packets import (
    ACK,
    BACKEND,
    FIN,
    PSH,
    RST,
    Described,
    ScapyOption,
    built,
    tcp_checksum_error,
    with_field,
    with_partial_checksum,
    word,
)


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
def test_client_segment_has_a_plan_that_keeps_ecn_and_clears_dscp(scene: Scene, ecn: int) -> None:
    scene.settle()
    segment = from_client(b"more", ecn=ecn)
    assert scene.fast_balancer(segment) == built(at_backend(segment))


@pytest.mark.parametrize("tos", [0x00, 0xB8, 0x02, 0xFF])
def test_backend_segment_has_a_plan_that_keeps_ecn_and_clears_dscp(scene: Scene, tos: int) -> None:
    scene.settle()
    segment = from_backend(b"HTTP/1.1 200 OK\r\n", flags=ACK | PSH, tos=tos)
    assert scene.fast_backend(segment) == built(at_client(segment))


def test_plan_and_state_machine_make_the_same_packet(scene: Scene) -> None:
    scene.settle()
    for segment in (from_client(b"x"), from_client(b"", got=5), from_client(window=0)):
        assert scene.balancer(segment) == [scene.fast_balancer(segment)]
    for reply in (from_backend(b"x"), from_backend(window=0), from_backend(sent=-1)):
        assert scene.backend(reply) == [scene.fast_backend(reply)]


def test_sack_blocks_of_the_client_move_with_its_acknowledgment(scene: Scene) -> None:
    scene.settle()
    blocks = (add(LI, 101), add(LI, 201), add(LI, 301), add(LI, 401))
    segment = from_client(options=(*stamps(TS + 5, X + 6), NOP, NOP, ("SAck", blocks)))
    there = (SI + 101, SI + 201, SI + 301, SI + 401)
    expected = at_backend(segment, (*stamps(TS + 5, B + 5), NOP, NOP, ("SAck", there)))
    assert scene.fast_balancer(segment) == built(expected)


def test_sack_blocks_of_the_backend_are_in_the_clients_numbers_already(scene: Scene) -> None:
    scene.settle()
    sack: tuple[ScapyOption, ...] = (NOP, NOP, ("SAck", (CI + 50, CI + 60)))
    reply = from_backend(options=(*stamps(B + 10, TS), *sack))
    assert scene.fast_backend(reply) == built(at_client(reply, (*stamps(X + 11, TS), *sack)))


@pytest.mark.parametrize(
    ("backend_scale", "promised", "window", "expected"),
    [
        (7, 7, 509, 509),
        (9, 7, 509, 2036),
        (9, 7, 60_000, 65_535),
        (5, 7, 511, 127),
        (None, 7, 6400, 50),
        (7, 0, 509, 65_152),
        (2, 9, 1000, 7),
        (None, 2, 6400, 1600),
    ],
)
def test_backends_window_is_rescaled_to_what_was_promised(
    scene: Scene, backend_scale: int | None, promised: int, window: int, expected: int
) -> None:
    scene.open(handoff(promised=promised), syn_ack(scale=backend_scale))
    reply = from_backend(b"x", window=window)
    assert scene.fast_backend(reply) == built(at_client(reply)._replace(window=expected))


@pytest.mark.parametrize(("window", "expected"), [(10, 10 << CLIENT_SCALE), (502, 65_535)])
def test_clients_window_is_expanded_for_a_backend_that_does_not_scale(
    scene: Scene, window: int, expected: int
) -> None:
    scene.open(answer=syn_ack(scale=None))
    scene.balancer(from_client())
    segment = from_client(b"x", window=window)
    assert scene.fast_balancer(segment) == built(at_backend(segment)._replace(window=expected))


def test_without_window_scale_both_windows_stay(scene: Scene) -> None:
    scene.open(handoff(scale=None, promised=0), syn_ack(scale=None))
    scene.balancer(from_client())
    assert scene.fast_balancer(from_client(window=65_000)) == built(at_backend(from_client(window=65_000)))
    assert scene.fast_backend(from_backend(window=65_000)) == built(at_client(from_backend(window=65_000)))


def test_without_timestamps_both_plans_are_there_at_once(scene: Scene) -> None:
    scene.open(handoff(timestamps=None), syn_ack(timestamps=None))
    segment, reply = from_client(b"x", options=()), from_backend(b"y", options=())
    assert scene.fast_balancer(segment) == built(at_backend(segment, ()))
    assert scene.fast_backend(reply) == built(at_client(reply, ()))


def test_both_sequence_spaces_wrap_around_inside_a_transfer(scene: Scene) -> None:
    scene.open(
        handoff(client_isn=2**32 - 20, balancer_isn=2**32 - 10), syn_ack(client_isn=2**32 - 20, isn=100)
    )
    scene.balancer(from_client()._replace(seq=SIZE - 19, ack=2**32 - 9))
    for number in (2**32 - 9, 2**32 - 1, 0, 50):
        segment = from_client(b"x")._replace(seq=30, ack=number)
        expected = at_backend(segment)._replace(ack=(number + 110) % 2**32)
        assert scene.fast_balancer(segment) == built(expected)
    for number in (101, 109, 110, 2**32 - 1):
        reply = from_backend(b"y" * 20)._replace(seq=number)
        expected = at_client(reply)._replace(seq=(number - 110) % 2**32)
        assert scene.fast_backend(reply) == built(expected)


def test_timestamp_through_the_splice_is_one_above_what_the_client_has_seen(scene: Scene) -> None:
    scene.open()
    reply = from_backend(b"x", options=stamps(B, TS))
    assert scene.fast_backend(reply) == built(at_client(reply, stamps(X + 1, TS)))


def test_client_that_echoes_the_balancer_is_translated_with_the_backends_first_time(scene: Scene) -> None:
    scene.open()
    for echo in (X, X - 10):
        segment = from_client(b"more", options=stamps(TS + 1, echo))
        assert scene.fast_balancer(segment) is None
        assert scene.balancer(segment) == [built(at_backend(segment, stamps(TS + 1, B)))]


def test_clients_first_echo_of_the_backend_settles_the_flow(scene: Scene) -> None:
    scene.open()
    assert scene.fast_balancer(from_client()) is None
    segment = from_client(options=stamps(TS + 1, X + 1))
    assert scene.balancer(segment) == [built(at_backend(segment, stamps(TS + 1, B)))]
    late = from_client(options=stamps(TS, X))
    assert scene.fast_balancer(late) == built(at_backend(late, stamps(TS, B - 1)))


def test_clamped_segment_keeps_its_partial_checksum(scene: Scene) -> None:
    scene.open()
    segment = from_client(b"more", options=stamps(TS + 1, X))
    received = Packet(with_partial_checksum(built(segment)), PARTIAL)
    sent = scene.core.from_balancer(received, scene.now)
    expected = with_partial_checksum(built(at_backend(segment, stamps(TS + 1, B))))
    assert sent == [Packet(expected, PARTIAL)]


def test_damage_stays_visible_on_every_way(scene: Scene) -> None:
    scene.open()

    def damaged(described: Described) -> bytes:
        whole = built(described)
        return with_field(whole, len(whole) - 4, word(whole, len(whole) - 4) ^ 0x0110)

    error = tcp_checksum_error(damaged(from_client(b"1234")))
    for echo in (X, X + 1, X + 2):
        (sent,) = scene.balancer(damaged(from_client(b"1234", options=stamps(TS, echo))))
        assert tcp_checksum_error(sent) == error
    (reply,) = scene.backend(damaged(from_backend(b"1234", flags=ACK | FIN)))
    assert tcp_checksum_error(reply) == error


def test_malformed_options_do_not_stop_a_segment(scene: Scene) -> None:
    scene.open()
    segment = from_client(b"x")._replace(options=(), raw_options=b"\x08\x00\x01\x01")
    assert scene.balancer(segment) == [built(at_backend(segment, ()))]


def test_same_handoff_is_plain_data_of_an_established_flow(scene: Scene) -> None:
    scene.open()
    again = handoff(timestamps=(TS + 300, X), window=10_000)
    expected = Described(
        server=BACKEND,
        server_port=8080,
        seq=CI + 1,
        ack=SI + 1,
        flags=ACK | PSH,
        window=10_000 >> CLIENT_SCALE,
        options=stamps(TS + 300, B),
        payload=REQUEST,
    )
    assert scene.balancer(again) == [built(expected)]
    scene.balancer(from_client())
    later = handoff(timestamps=(TS + 300, X + 40), window=10_000)
    assert scene.balancer(later) == [built(expected._replace(options=stamps(TS + 300, B + 39)))]


def test_repeated_syn_ack_is_acknowledged_and_kept_from_the_client(scene: Scene) -> None:
    scene.open()
    again = syn_ack(timestamps=(B + 1000, TS))
    expected = Described(
        server=BACKEND,
        server_port=8080,
        seq=CI + 1,
        ack=SI + 1,
        window=0,
        options=stamps(TS, B + 1000),
    )
    assert scene.backend(again) == [built(expected)]


def test_syn_ack_with_another_number_is_reset_and_kept_from_the_client(scene: Scene) -> None:
    scene.open()
    expected = Described(server=BACKEND, server_port=8080, seq=CI + 1, ack=0, flags=RST, window=0)
    assert scene.backend(syn_ack(isn=SI + 9)) == [built(expected)]
    assert scene.fast_backend(from_backend()) is not None


def test_syn_ack_of_a_direct_connection_ends_the_flow_and_passes(scene: Scene) -> None:
    scene.settle()
    direct = syn_ack(client_isn=CI + 5)
    assert scene.backend(direct) == [built(direct)]
    assert scene.core.sizes["flows"] == 0
    assert scene.core.sizes["tombstones"] == 1


def test_keepalive_probe_challenge_ack_and_window_probe_are_translated(scene: Scene) -> None:
    scene.settle()
    probe = from_backend(sent=-1)
    assert scene.fast_backend(probe) == built(at_client(probe))
    challenge = from_client(got=0, sent=3)
    assert scene.fast_balancer(challenge) == built(at_backend(challenge))
    keepalive = from_client(b"\0", sent=SIZE - 1)
    assert scene.fast_balancer(keepalive) == built(at_backend(keepalive))


def test_odd_packets_have_no_plan(scene: Scene) -> None:
    scene.settle()
    for flags in (RST, RST | ACK, ACK | FIN):
        assert scene.fast_balancer(from_client(flags=flags)) is None
        assert scene.fast_backend(from_backend(flags=flags)) is None
    assert scene.fast_balancer(from_client()._replace(tos=2 << 2)) is None
    assert scene.fast_balancer(from_client()._replace(client_port=1)) is None
    assert scene.fast_backend(from_backend()._replace(client_port=1)) is None


def test_absurd_flags_of_either_side_are_dropped(scene: Scene) -> None:
    scene.settle()
    absurd = (0, FIN, PSH, FIN | RST, FIN | RST | ACK)
    assert [scene.balancer(from_client(flags=flags)) for flags in absurd] == [[]] * 5
    assert [scene.backend(from_backend(flags=flags)) for flags in (*absurd, 0x02)] == [[]] * 6
    assert scene.counters["absurd_flags"] == 11
