"""The packetbridge's programs from handoff to splice: what the core does, byte for byte."""

import pytest

from tests.root.bpf.packetbridge_twin import DROPPED, Bridges, Programs, signed
from tests.unit.packetbridge.scene import (
    CI,
    CLIENT_SCALE,
    FIRST,
    LI,
    REQUEST,
    SIZE,
    TS,
    WALL,
    B,
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
    built,
    with_field,
    word,
)

pytestmark = pytest.mark.root

TO_BACKEND = Described(server=BACKEND, server_port=8080, window=0, ack=0)
MAX_PAYLOAD = 1424


OFFERED = [
    (handoff(sack=sack, timestamps=timestamps, scale=scale, promised=promised if scale else 0))
    for sack in (False, True)
    for timestamps in (None, (TS, X))
    for scale, promised in ((None, 0), (0, 0), (8, 7), (14, 14), (1, 0))
]


@pytest.mark.parametrize("backend_scale", [None, 0, 7, 14])
@pytest.mark.parametrize("backend_stamps", [None, (B, TS)])
def test_backend_leg_has_the_options_of_client_and_backend(
    twins: Bridges, backend_stamps: tuple[int, int] | None, backend_scale: int | None
) -> None:
    for port, offered in enumerate(OFFERED, start=50_000):
        twins.balancer(signed(offered._replace(client_port=port)))
        answer = syn_ack(scale=backend_scale, timestamps=backend_stamps)._replace(client_port=port)
        assert 1 <= len(twins.backend(answer)) <= 2
        options = stamps(B + 10, TS) if backend_stamps else ()
        for window in (0, 509, 65_535):
            reply = from_backend(b"x", options=options, window=window)
            twins.backend(reply._replace(client_port=port))
            segment = from_client(b"x", options=options, window=window)
            twins.balancer(segment._replace(client_port=port))


def test_handoff_becomes_the_syn_and_the_syn_ack_becomes_the_payload(twins: Bridges) -> None:
    assert twins.balancer(signed(handoff())) == [built(syn())]
    assert twins.backend(syn_ack()) == [built(FIRST)]
    twins.expect(handoff=1, syn_ack_with_timestamps=1, flows_added=1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 511, 512, 513, 1023, 1024, 1025, MAX_PAYLOAD - 1, MAX_PAYLOAD])
def test_payload_of_any_size_reaches_the_backend(twins: Bridges, size: int) -> None:
    payload = bytes(index * 7 % 251 for index in range(size))
    assert twins.open(handoff(payload)) == [built(FIRST._replace(payload=payload))]


def test_payload_that_is_too_long_is_refused(twins: Bridges) -> None:
    twins.balancer(signed(handoff())._replace(payload=bytes(MAX_PAYLOAD + 1)))
    twins.expect(bad_handoff_payload=1)


@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
def test_first_payload_keeps_ecn_and_fin_and_identification(twins: Bridges, ecn: int) -> None:
    sent = twins.open(handoff(ecn=ecn, fin=True)._replace(identification=0xBEEF))
    assert sent == [built(FIRST._replace(flags=ACK | PSH | FIN, tos=ecn, identification=0xBEEF))]


def test_same_handoff_sends_the_same_syn_again(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    again = handoff(timestamps=(TS + 1000, X + 3), time=WALL + 1, window=100)
    assert twins.balancer(signed(again)) == [built(syn())]
    assert twins.backend(syn_ack()) == [built(FIRST)]


def test_longer_retransmission_takes_the_place_of_what_waits(bridge_programs: Programs) -> None:
    """The core sends both, one behind the other, to the same effect."""
    Bridges(bridge_programs)
    longer = handoff(time=WALL + 1, timestamps=(TS + 1000, X + 3), window=256)
    for offered in (handoff(b"GE"), longer):
        assert bridge_programs.run("ingress", built(signed(offered))).packet == built(syn())
    done = bridge_programs.run("egress", built(syn_ack()))
    assert done.packet == built(FIRST._replace(options=stamps(TS + 1000, B), window=1))


def test_retransmission_brings_back_what_waited_and_was_lost(bridge_programs: Programs) -> None:
    """Where a flow takes another one's place, a splice on a second CPU may take its stash away."""
    Bridges(bridge_programs)
    bridge_programs.run("ingress", built(signed(handoff())))
    ((key, _),) = list(bridge_programs.hash_map("stash").items())
    bridge_programs.hash_map("stash").delete(key)
    assert bridge_programs.run("egress", built(syn_ack())).verdict == DROPPED
    assert bridge_programs.run("ingress", built(signed(handoff()))).packet == built(syn())
    assert bridge_programs.run("egress", built(syn_ack())).packet == built(FIRST)


def test_shorter_retransmission_changes_nothing(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    twins.balancer(signed(handoff(b"GE")))
    assert twins.backend(syn_ack()) == [built(FIRST)]


def test_early_segments_follow_the_payload(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    third = from_client(b"3" * 50, sent=SIZE + 100, options=stamps(TS + 1, X))
    second = from_client(b"2" * 100, options=stamps(TS + 1, X))
    assert twins.balancer(third) == twins.balancer(second) == []
    twins.expect(early=2)
    translated = [built(at_backend(early, stamps(TS + 1, B))) for early in (second, third)]
    assert twins.backend(syn_ack()) == [built(FIRST), *translated]


def test_what_waited_never_has_another_echo_than_the_syn_ack(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    for echo in (X - 1, X, X + 50):
        twins.balancer(from_client(b"2", options=stamps(TS + 1, echo)))
    expected = at_backend(from_client(b"2"), stamps(TS + 1, B))
    assert twins.backend(syn_ack()) == [built(FIRST), *[built(expected)] * 3]
    twins.expect(new_echo=0)


def test_rst_in_order_ends_an_opening_flow_at_the_backend(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    assert twins.balancer(from_client(flags=RST, options=(), sent=SIZE + 1)) == []
    rst = from_client(flags=RST | ACK)
    assert twins.balancer(rst) == [built(TO_BACKEND._replace(seq=CI + 1, flags=RST))]
    twins.expect(flows_removed=1)
    assert twins.balancer(signed(handoff())) == [
        built(Described(from_client=False, seq=add(LI, 1), ack=0, flags=RST, window=0))
    ]


def test_rst_behind_early_segments_is_in_order(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    twins.balancer(from_client(b"more"))
    rst = from_client(flags=RST, sent=SIZE + 4)
    assert twins.balancer(rst) == [built(TO_BACKEND._replace(seq=CI + 1, flags=RST))]


def test_closed_port_resets_the_client_as_the_vip(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    closed = syn_ack()._replace(seq=0, flags=RST | ACK, window=0, options=())
    assert twins.backend(closed) == [built(refusal())]
    twins.expect(backend_refusal=1, flows_removed=1)


def test_rst_of_an_older_connection_is_kept_from_the_client(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    assert twins.backend(from_backend(flags=RST, options=())) == []
    assert twins.backend(syn_ack()) == [built(FIRST)]


@pytest.mark.parametrize("older", [from_backend(got=123_456), from_backend(b"old data", flags=ACK | FIN)])
def test_older_connection_is_reset_and_asked_again_three_times(twins: Bridges, older: Described) -> None:
    twins.balancer(signed(handoff()))
    reset = built(TO_BACKEND._replace(seq=older.ack, flags=RST))
    for _ in range(3):
        assert twins.backend(older) == [reset, built(syn())]
    assert twins.backend(older) == []
    twins.expect(opening_retries_exhausted=1)


def test_syn_ack_of_the_replaced_flow_is_reset_and_the_syn_sent_again(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    newer = handoff(client_isn=CI + 900_000, balancer_isn=LI + 5, time=WALL + 1)
    again = built(syn(client_isn=CI + 900_000))
    assert twins.balancer(signed(newer)) == [again]
    assert twins.backend(syn_ack()) == [built(TO_BACKEND._replace(seq=CI + 1, flags=RST)), again]
    assert len(twins.backend(syn_ack(client_isn=CI + 900_000))) == 1
    twins.expect(newer_handoff=1, flows_added=1)


def test_syn_ack_of_a_direct_connection_passes_and_the_client_may_try_again(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    direct = syn_ack(client_isn=CI + 777)
    assert twins.backend(direct) == [built(direct)]
    assert twins.balancer(signed(handoff())) == [built(syn())]


def test_backend_without_the_clients_timestamps_is_reset_on_both_sides(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    to_backend = built(TO_BACKEND._replace(seq=CI + 1, flags=RST))
    assert twins.backend(syn_ack(timestamps=None)) == [to_backend, built(refusal())]
    twins.expect(syn_ack_lacks_timestamps=1, flows_removed=1)


def test_numbers_wrap_around(twins: Bridges) -> None:
    top = 2**32 - 1
    twins.balancer(signed(handoff(client_isn=top, balancer_isn=top, timestamps=(top, top))))
    sent = twins.backend(syn_ack(client_isn=top, isn=top, timestamps=(top, top)))
    assert sent == [built(FIRST._replace(seq=0, ack=0, options=stamps(top, top)))]
    twins.balancer(from_client(b"x", options=stamps(0, top))._replace(seq=SIZE, ack=10))
    twins.balancer(from_client(b"x", options=stamps(1, 0))._replace(seq=SIZE, ack=10))
    twins.backend(from_backend(b"y", options=stamps(0, 1))._replace(seq=0))
    twins.expect(new_echo=1)


@pytest.mark.parametrize("flags", [SYN | ACK, SYN | FIN, SYN | RST, 0, FIN, PSH, SYN | 0x800])
def test_flags_that_make_no_sense_are_dropped(twins: Bridges, flags: int) -> None:
    packet = with_field(built(handoff()), 32, 14 << 12 | flags)
    assert twins.balancer(packet) == []
    twins.expect(absurd_flags=1)


def test_handoff_with_a_damaged_payload_is_dropped(bridge_programs: Programs) -> None:
    """The core lets the damage show at the backend; the programs put the payload into another packet."""
    Bridges(bridge_programs)
    right = built(signed(handoff()))
    done = bridge_programs.run("ingress", with_field(right, 80, word(right, 80) ^ 0x0101))
    assert done.verdict == 2
    assert bridge_programs.counts()["bad_checksum"] == 1


def test_partial_checksum_of_a_handoff_is_taken_for_whole(bridge_programs: Programs) -> None:
    """Between namespaces the field holds the pseudo-header's sum, and the kernel adds the rest later."""
    Bridges(bridge_programs)
    right = built(signed(handoff()))
    pseudo = sum(word(right, at) for at in (12, 14, 16, 18)) + 6 + len(right) - 20
    while pseudo >> 16:
        pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    assert bridge_programs.run("ingress", with_field(right, 36, pseudo)).verdict == -1
    assert bridge_programs.run("egress", built(syn_ack())).packet == built(FIRST)


def test_window_of_the_payload_is_expanded_for_a_backend_that_does_not_scale(twins: Bridges) -> None:
    sent = twins.open(handoff(window=20_000), syn_ack(scale=None))
    assert sent == [built(FIRST._replace(window=20_000 >> CLIENT_SCALE << CLIENT_SCALE))]


def test_request_that_is_split_at_any_place_is_the_same_for_the_backend(twins: Bridges) -> None:
    for at in range(1, SIZE):
        twins.open(
            handoff(REQUEST[:at], client_isn=CI + at, time=WALL + at % 60), syn_ack(client_isn=CI + at)
        )
