"""The packetbridge's programs with a spliced flow: the core's bytes both ways, to the flow's end."""

import pytest

from packetbridge.ebpf.abi import TOMBSTONE
from tests.root.bpf.packetbridge_twin import PASSED, REDIRECTED, Bridges, Programs, signed
from tests.unit.packetbridge.scene import (
    CI,
    CLIENT_SCALE,
    LI,
    NOP,
    SI,
    SIZE,
    TS,
    B,
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
    SYN,
    Described,
    ScapyOption,
    built,
    tcp_checksum_error,
    with_field,
    word,
)

pytestmark = pytest.mark.root


@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
def test_client_segment_keeps_ecn_and_loses_dscp(twins: Bridges, ecn: int) -> None:
    twins.settle()
    segment = from_client(b"more", ecn=ecn)
    assert twins.balancer(segment) == [built(at_backend(segment))]


@pytest.mark.parametrize("tos", [0x00, 0xB8, 0x02, 0xFF])
def test_backend_segment_keeps_ecn_and_loses_dscp(twins: Bridges, tos: int) -> None:
    twins.settle()
    segment = from_backend(b"HTTP/1.1 200 OK\r\n", flags=ACK | PSH, tos=tos)
    assert twins.backend(segment) == [built(at_client(segment))]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sack_blocks_of_the_client_move_with_its_acknowledgment(twins: Bridges, count: int) -> None:
    twins.settle()
    edges = range(101, 101 + 200 * count, 100)
    blocks, there = tuple(add(LI, at) for at in edges), tuple(SI + at for at in edges)
    segment = from_client(options=(*stamps(TS + 5, X + 6), NOP, NOP, ("SAck", blocks)))
    expected = at_backend(segment, (*stamps(TS + 5, B + 5), NOP, NOP, ("SAck", there)))
    assert twins.balancer(segment) == [built(expected)]


def test_four_sack_blocks_without_timestamps_move(twins: Bridges) -> None:
    twins.open(handoff(timestamps=None), syn_ack(timestamps=None))
    blocks = tuple(add(LI, at) for at in range(100, 900, 100))
    segment = from_client(options=(NOP, NOP, ("SAck", blocks)))
    expected = at_backend(segment, (NOP, NOP, ("SAck", tuple(SI + at for at in range(100, 900, 100)))))
    assert twins.balancer(segment) == [built(expected)]


def test_sack_blocks_of_the_backend_are_in_the_clients_numbers_already(twins: Bridges) -> None:
    twins.settle()
    sack: tuple[ScapyOption, ...] = (NOP, NOP, ("SAck", (CI + 50, CI + 60)))
    reply = from_backend(options=(*stamps(B + 10, TS), *sack))
    assert twins.backend(reply) == [built(at_client(reply, (*stamps(X + 11, TS), *sack)))]


@pytest.mark.parametrize(
    ("backend_scale", "promised", "window", "expected"),
    [
        (7, 7, 509, 509),
        (9, 7, 509, 2036),
        (9, 7, 60_000, 65_535),
        (5, 7, 511, 127),
        (None, 7, 6400, 50),
        (7, 0, 509, 65_152),
        (14, 0, 65_535, 65_535),
        (0, 14, 65_535, 3),
    ],
)
def test_backends_window_is_rescaled_to_what_was_promised(
    twins: Bridges, backend_scale: int | None, promised: int, window: int, expected: int
) -> None:
    twins.open(handoff(promised=promised), syn_ack(scale=backend_scale))
    reply = from_backend(b"x", window=window)
    assert twins.backend(reply) == [built(at_client(reply)._replace(window=expected))]


@pytest.mark.parametrize(("window", "expected"), [(10, 10 << CLIENT_SCALE), (502, 65_535)])
def test_clients_window_is_expanded_for_a_backend_that_does_not_scale(
    twins: Bridges, window: int, expected: int
) -> None:
    twins.open(answer=syn_ack(scale=None))
    segment = from_client(b"x", window=window)
    assert twins.balancer(segment) == [built(at_backend(segment)._replace(window=expected))]


def test_both_sequence_spaces_wrap_around_inside_a_transfer(twins: Bridges) -> None:
    top = 2**32
    twins.open(handoff(client_isn=top - 20, balancer_isn=top - 10), syn_ack(client_isn=top - 20, isn=100))
    twins.balancer(from_client()._replace(seq=SIZE - 19, ack=top - 9))
    for number in (top - 9, top - 1, 0, 50):
        segment = from_client(b"x")._replace(seq=30, ack=number)
        expected = at_backend(segment)._replace(ack=(number + 110) % top)
        assert twins.balancer(segment) == [built(expected)]
    for number in (101, 109, 110, top - 1):
        reply = from_backend(b"y" * 20)._replace(seq=number)
        expected = at_client(reply)._replace(seq=(number - 110) % top)
        assert twins.backend(reply) == [built(expected)]


def test_echo_of_the_balancer_is_raised_until_the_client_has_seen_the_backend(twins: Bridges) -> None:
    twins.open()
    for echo in (X, X - 10):
        segment = from_client(b"more", options=stamps(TS + 1, echo))
        assert twins.balancer(segment) == [built(at_backend(segment, stamps(TS + 1, B)))]
    segment = from_client(options=stamps(TS + 1, X + 1))
    assert twins.balancer(segment) == [built(at_backend(segment, stamps(TS + 1, B)))]
    late = from_client(options=stamps(TS, X))
    assert twins.balancer(late) == [built(at_backend(late, stamps(TS, B - 1)))]
    twins.expect(new_echo=1, client_segment=2)


@pytest.mark.parametrize(
    "options",
    [
        (("Timestamp", (TS, X)), NOP, NOP),
        (NOP, ("Timestamp", (TS, X)), NOP),
        (NOP, NOP, NOP, ("Timestamp", (TS, X)), NOP, NOP, NOP),
        (("Timestamp", (TS, X)), ("SAck", (LI, LI + 1)), ("Timestamp", (TS, X + 9)), NOP, NOP),
        (),
    ],
)
def test_options_in_any_place_are_translated(twins: Bridges, options: tuple[ScapyOption, ...]) -> None:
    twins.open()
    for flags in (ACK, ACK | FIN):
        twins.balancer(from_client(b"x", options=options, flags=flags))
        twins.backend(from_backend(b"x", options=options, flags=flags))


AREAS = [b"\x08\x00\x01\x01", b"\x08\x0a\x01\x01", b"\x01\x01\x01\x05", b"\0\x08\x0a\1"]


@pytest.mark.parametrize("area", AREAS)
def test_malformed_options_do_not_stop_a_segment(twins: Bridges, area: bytes) -> None:
    twins.open()
    segment = from_client(b"x")._replace(options=(), raw_options=area)
    assert twins.balancer(segment) == [built(at_backend(segment, ()))]


def test_damage_stays_visible_on_every_way(twins: Bridges) -> None:
    twins.open()

    def damaged(described: Described) -> bytes:
        whole = built(described)
        return with_field(whole, len(whole) - 4, word(whole, len(whole) - 4) ^ 0x0110)

    error = tcp_checksum_error(damaged(from_client(b"1234")))
    for echo in (X, X + 1, X + 2):
        (sent,) = twins.balancer(damaged(from_client(b"1234", options=stamps(TS, echo))))
        assert tcp_checksum_error(sent) == error
    (reply,) = twins.backend(damaged(from_backend(b"1234", flags=ACK | FIN)))
    assert tcp_checksum_error(reply) == error
    (again,) = twins.balancer(damaged(signed(handoff())))
    assert tcp_checksum_error(again) != 0


@pytest.mark.parametrize("payload", [b"G", b"GET", b"x" * 1423, b"x" * 1424])
@pytest.mark.parametrize("timestamps", [None, (TS, X)])
def test_same_handoff_is_plain_data_of_a_spliced_flow(
    twins: Bridges, timestamps: tuple[int, int] | None, payload: bytes
) -> None:
    offered = handoff(payload, timestamps=timestamps)
    twins.open(offered, syn_ack(timestamps=(B, TS) if timestamps else None))
    for fin in (False, True):
        again = handoff(payload, fin=fin, timestamps=timestamps and (TS + 300, X), window=10_000, ecn=2)
        assert len(twins.balancer(signed(again._replace(identification=7)))) == 1
    twins.balancer(from_client(options=stamps(TS, X + 50) if timestamps else ()))
    assert len(twins.balancer(signed(offered))) == 1
    twins.expect(same_handoff=3)


def test_repeated_syn_ack_is_acknowledged_and_kept_from_the_client(twins: Bridges) -> None:
    twins.open()
    expected = Described(
        server=BACKEND,
        server_port=8080,
        seq=CI + 1,
        ack=SI + 1,
        window=0,
        options=stamps(TS, B + 1000),
    )
    assert twins.backend(syn_ack(timestamps=(B + 1000, TS))) == [built(expected)]
    assert twins.backend(syn_ack(timestamps=None)) == [built(expected._replace(options=()))]
    assert twins.backend(syn_ack()._replace(options=(), raw_options=b"\x08\x00\x01\x01")) == []
    twins.expect(syn_ack_again=3, bad_tcp_options=1)


def test_syn_ack_with_another_number_is_reset_and_kept_from_the_client(twins: Bridges) -> None:
    twins.open()
    expected = Described(server=BACKEND, server_port=8080, seq=CI + 1, ack=0, flags=RST, window=0)
    assert twins.backend(syn_ack(isn=SI + 9)) == [built(expected)]
    assert len(twins.backend(from_backend())) == 1


def test_syn_ack_of_a_direct_connection_ends_the_flow_and_passes(twins: Bridges) -> None:
    twins.settle()
    direct = syn_ack(client_isn=CI + 5)
    assert twins.backend(direct) == [built(direct)]
    assert twins.backend(from_backend(b"x")) == [built(from_backend(b"x"))]
    twins.expect(flows_removed=1)


def test_flags_that_make_no_sense_are_dropped(twins: Bridges) -> None:
    twins.settle()
    for flags in (0, FIN, PSH, FIN | RST, FIN | RST | ACK):
        assert twins.balancer(from_client(flags=flags)) == []
        assert twins.backend(from_backend(flags=flags)) == []
    assert twins.backend(from_backend(flags=SYN)) == []
    twins.expect(absurd_flags=11)


def test_backend_rst_reaches_the_client_and_ends_the_flow(twins: Bridges) -> None:
    twins.settle()
    rst = from_backend(flags=RST, options=())
    assert twins.backend(rst) == [built(at_client(rst, ()))]
    assert twins.balancer(from_client(b"x")) == []
    twins.expect(flows_removed=1, strangers_passed_up=1)
    assert len(twins.balancer(signed(handoff()))) == 1
    twins.expect(replayed_handoff=1, stranger_reset=1)


def test_closed_flow_ends_after_a_minute(twins: Bridges) -> None:
    twins.settle()
    twins.backend(from_backend(b"bye", flags=ACK | FIN))
    twins.balancer(from_client(got=4, flags=ACK | FIN))
    twins.backend(from_backend(sent=4, got=SIZE + 1))
    assert twins.pass_time(59) == []
    assert twins.programs.flows.count() == 1
    assert twins.pass_time(2) == []
    assert twins.programs.flows.count() == 0
    twins.balancer(signed(handoff(time=twins.wall)))
    twins.expect(replayed_handoff=1)


def test_forged_fin_and_rst_only_make_the_idle_time_shorter(twins: Bridges) -> None:
    twins.settle()
    twins.balancer(from_client(flags=ACK | FIN, sent=SIZE + 100))
    twins.balancer(from_client(flags=RST, sent=SIZE + 5))
    twins.balancer(from_client(b"y" * 200))
    assert twins.pass_time(100) == []
    twins.balancer(from_client(flags=RST, sent=SIZE + 200))
    assert len(twins.pass_time(12)) == 1
    twins.expect(client_rst_in_order=1, client_rst_elsewhere=1)


def test_kernel_is_asked_about_a_flow_that_was_silent_for_7500_seconds(twins: Bridges) -> None:
    twins.settle()
    twins.pass_time(7000)
    twins.balancer(from_client(b"x"))
    assert twins.pass_time(7499) == []
    assert len(twins.pass_time(65)) == 1
    assert twins.programs.sweep().questions == 0
    assert twins.programs.questions.count() == 1


def test_opening_flow_ends_after_a_minute_without_a_tombstone(twins: Bridges) -> None:
    twins.balancer(signed(handoff()))
    assert twins.pass_time(59) == []
    assert twins.programs.flows.count() == 1
    twins.pass_time(2)
    assert twins.programs.flows.count() == 0
    assert len(twins.balancer(signed(handoff(time=twins.wall)))) == 1
    twins.expect(handoff=2)


@pytest.mark.parametrize("seconds", [120, 122])
def test_tombstone_lasts_as_long_as_a_handoff_may_be_believed(twins: Bridges, seconds: int) -> None:
    twins.settle()
    twins.backend(from_backend(flags=RST))
    twins.pass_time(seconds)
    twins.balancer(signed(handoff(time=twins.wall - 50)))
    twins.expect(replayed_handoff=1 if seconds < 121 else 0)


def test_newer_handoff_takes_the_flows_place_and_leaves_its_tombstone(twins: Bridges) -> None:
    twins.settle()
    newer = signed(handoff(client_isn=CI + 9000, balancer_isn=LI + 9000))
    assert len(twins.balancer(newer)) == 1
    assert twins.balancer(signed(handoff())) == []
    older = signed(handoff(client_isn=5, balancer_isn=6, time=twins.wall - 1))
    assert twins.balancer(older) == []
    twins.expect(newer_handoff=1, replayed_handoff=1, older_handoff=1, flows_added=1)


def test_nothing_of_the_client_overtakes_its_first_payload(bridge_programs: Programs) -> None:
    """That is on its way through this CPU's backlog, until the client has had an answer."""
    Bridges(bridge_programs).settle()
    assert bridge_programs.run("ingress", built(from_client(b"x"))).verdict == REDIRECTED
    assert bridge_programs.run("ingress", built(from_client(b"x", got=1))).verdict == PASSED


def test_ttl_is_kept_both_ways(bridge_programs: Programs) -> None:
    Bridges(bridge_programs).settle()
    inward = bridge_programs.run("ingress", built(from_client(b"x", got=1)._replace(ttl=9)))
    outward = bridge_programs.run("egress", built(from_backend(b"x")._replace(ttl=9)))
    assert (inward.verdict, inward.packet[8]) == (outward.verdict, outward.packet[8]) == (PASSED, 9)


def test_tombstones_are_named_as_python_names_them(twins: Bridges) -> None:
    twins.settle()
    twins.backend(from_backend(flags=RST))
    ((key, since),) = list(twins.programs.hash_map("tombstones").items())
    name = TOMBSTONE.unpack(key)
    assert (name.client, name.client_port, name.vip_index) == (bytes([203, 0, 113, 7]), b"\xc0\x00", 1)
    assert (name.client_isn, name.balancer_isn, int.from_bytes(since, "little")) == (CI, LI, 1000)
