from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP

from balancer.core.service import Limits
from tests.unit.balancer.scene import (
    ACK,
    CLIENT,
    COOKIE_KEY,
    FIN,
    GET,
    SYN,
    VIP,
    WINDOW,
    Client,
    Scene,
    echoed,
    from_vip,
    handoff_packet,
    make_service,
    packed,
    reset_of,
)
from tests.unit.wire.packets import ScapyOption, siphash, with_field

NOP: ScapyOption = ("NOP", None)
MSS_CLASSES = (48, 536, 1024, 1220, 1360, 1400, 1440, 1460)


def cookie(client: Client, mss_class: int, period: int) -> int:
    key = packed(CLIENT) + packed(VIP) + client.port.to_bytes(2, "big") + (80).to_bytes(2, "big")
    message = key + client.isn.to_bytes(4, "big") + period.to_bytes(4, "big") + bytes((mss_class,))
    hashed = int.from_bytes(siphash(COOKIE_KEY, message)[:3], "big")
    return period % 32 << 27 | mss_class << 24 | hashed


def stamp(now: float, scale: int, sack: bool) -> int:
    """The newest number up to now's milliseconds whose low six bits say the options."""
    bits = scale | sack << 4
    ticks = int(now * 1000) % 2**32
    return ticks - (ticks - bits) % 64


ANSWERED_OPTIONS: list[tuple[dict[str, object], list[ScapyOption]]] = [
    (
        {},
        [("MSS", 1436), ("SAckOK", b""), ("Timestamp", (stamp(1000.0, 7, True), 5000)), NOP, ("WScale", 7)],
    ),
    (
        {"sack": False},
        [("MSS", 1436), NOP, NOP, ("Timestamp", (stamp(1000.0, 7, False), 5000)), NOP, ("WScale", 7)],
    ),
    ({"scale": None}, [("MSS", 1436), ("SAckOK", b""), ("Timestamp", (stamp(1000.0, 15, True), 5000))]),
    (
        {"scale": 0},
        [("MSS", 1436), ("SAckOK", b""), ("Timestamp", (stamp(1000.0, 0, True), 5000)), NOP, ("WScale", 7)],
    ),
    ({"stamps": False}, [("MSS", 1424), NOP, NOP, ("SAckOK", b""), NOP, ("WScale", 7)]),
    ({"stamps": False, "sack": False}, [("MSS", 1424), NOP, ("WScale", 7)]),
    ({"stamps": False, "scale": None}, [("MSS", 1424), NOP, NOP, ("SAckOK", b"")]),
    ({"stamps": False, "scale": None, "sack": False}, [("MSS", 1424)]),
    ({"mss": None, "stamps": False, "scale": None, "sack": False}, [("MSS", 1424)]),
]


@pytest.mark.parametrize(("offered", "options"), ANSWERED_OPTIONS)
def test_syn_ack_answers_exactly_the_options_that_the_syn_offers(
    offered: dict[str, object], options: list[ScapyOption]
) -> None:
    client = replace(Client(Scene()), **offered)  # type: ignore[arg-type]
    (syn_ack,) = client.scene.receive(client.syn())
    mss_class = MSS_CLASSES.index(1460 if client.mss else 536)
    assert syn_ack == from_vip(
        client,
        seq=cookie(client, mss_class, 1000 // 30),
        ack=client.isn + 1,
        flags=SYN | ACK,
        window=WINDOW,
        options=options,
    )


def test_offered_mss_leaves_room_for_a_handoff_on_the_smallest_path() -> None:
    client = Client(Scene(make_service()._replace(max_payload=1304)), stamps=False).greet()
    (syn_ack,) = client.scene.receive(client.syn())
    assert (dict(IP(syn_ack)[TCP].options)["MSS"], IP(syn_ack)[TCP].window) == (1304, 13040)


@pytest.mark.parametrize("flags", [SYN | 0x40 | 0x80, SYN | 0x40 | 0x80 | 0x100, SYN | 0x08, SYN | 0x20])
def test_syn_that_asks_for_ecn_is_an_ordinary_syn(flags: int) -> None:
    client = Client(Scene())
    assert client.scene.receive(client.syn(flags=flags)) == client.scene.receive(client.syn())


def test_data_in_the_syn_is_neither_acknowledged_nor_remembered() -> None:
    client = Client(Scene())
    (with_data,) = client.scene.receive(client.syn(payload=GET))
    assert [with_data] == client.scene.receive(client.syn())
    assert IP(with_data)[TCP].ack == client.isn + 1


def test_fast_open_cookie_and_unknown_options_are_ignored() -> None:
    usual = bytes.fromhex("020405b4 0402 080a0000138800000000 01 030307")
    fast_open = bytes.fromhex("220a0102030405060708 0101")
    client = Client(Scene())
    assert client.scene.receive(client.syn(raw_options=usual + fast_open)) == client.scene.receive(
        client.syn()
    )


@pytest.mark.parametrize("area", ["020405b4 0402 0801", "ffffffff", "01010102", "0200 0000", "03"])
def test_syn_with_malformed_options_counts_as_one_without(area: str) -> None:
    options = bytes.fromhex(area)
    client = Client(Scene(), mss=None, scale=None, sack=False, stamps=False)
    malformed = client.syn(raw_options=options + bytes(-len(options) % 4))
    assert client.scene.receive(malformed) == client.scene.receive(client.syn())


def test_retransmitted_syn_gets_the_same_answer_and_takes_no_second_entry() -> None:
    client = Client(Scene())
    assert client.scene.receive(client.syn()) == client.scene.receive(client.syn())
    assert client.scene.core.sizes["half_open"] == 1


def test_bare_ack_moves_the_connection_from_half_open_to_verified() -> None:
    client = Client(Scene()).connect()
    assert client.scene.core.sizes == {
        "half_open": 0,
        "verified": 1,
        "collecting": 0,
        "flows": 0,
        "answered": 0,
    }


@pytest.mark.parametrize("stamps", [True, False])
def test_payload_alone_proves_the_handshake(stamps: bool) -> None:
    client = Client(Scene(), stamps=stamps).greet()
    made = client.send(GET)
    assert made == [handoff_packet(client, GET, window=502 << 7)]


@pytest.mark.parametrize("stamps", [True, False])
def test_second_segment_comes_first_after_a_lost_ack_and_waits(stamps: bool) -> None:
    client = Client(Scene(), stamps=stamps, mss=900).greet()
    second = client.segment(GET[10:], at=10)
    assert client.scene.receive(second) == []
    handed_over, rest = client.send(GET[:10])
    assert handed_over == handoff_packet(client, GET[:10], window=502 << 7)
    assert IP(rest)[TCP].seq == client.isn + 11
    assert bytes(IP(rest)[TCP].payload) == GET[10:]


def test_cookie_of_a_client_that_nobody_remembers_carries_its_options_and_mss_class() -> None:
    scene = Scene(limits=Limits(half_open=0))
    client = Client(scene, mss=1411, scale=9).greet()
    assert client.send(GET) == [handoff_packet(client, GET, mss=1400, window=min(502 << 9, 65535))]


def test_full_half_open_table_costs_scale_and_sack_only_without_timestamps() -> None:
    scene = Scene(limits=Limits(half_open=1))
    Client(scene, port=50000).greet()
    client = Client(scene, stamps=False)
    (syn_ack,) = scene.receive(client.syn())
    assert IP(syn_ack)[TCP].options == [("MSS", 1424)]
    client.greet()
    client.scale, client.sack = None, False
    assert client.send(GET) == [handoff_packet(client, GET, mss=1460, window=502)]
    assert scene.core.sizes["half_open"] == 1


def test_half_open_entry_lives_as_long_as_the_cookie_that_it_belongs_to() -> None:
    scene = Scene(now=30.0 * 20)
    client = Client(scene, stamps=False, mss=1433).greet()
    scene.pass_time(59.0)
    assert client.send(GET) == [handoff_packet(client, GET, window=502 << 7)]


def test_new_syn_of_the_same_port_gets_a_whole_life_in_the_half_open_table() -> None:
    scene = Scene(now=30.0 * 20)
    Client(scene, stamps=False).greet()
    scene.pass_time(50.0)
    client = Client(scene, stamps=False, isn=77, mss=1433).greet()
    scene.pass_time(30.0)
    assert client.send(GET) == [handoff_packet(client, GET, window=502 << 7)]


def test_ack_of_a_cookie_from_before_a_restart_is_reset_with_its_own_ack() -> None:
    client = Client(Scene()).greet()
    client.scene = Scene()
    client.scene.core._greeter._mac = lambda message: siphash(bytes(16), message)
    assert client.send(GET, ack=0) == [reset_of(client)]


def test_cookie_older_than_its_lifetime_is_reset() -> None:
    client = Client(Scene(now=30.0 * 20)).greet()
    client.scene.pass_time(60.0)
    assert client.send(GET) == [reset_of(client)]


def test_verified_connection_outlives_its_cookie_by_far_and_is_forgotten_after_five_minutes() -> None:
    scene = Scene()
    early, late = Client(scene).connect(), Client(scene, port=50000).connect()
    scene.pass_time(299.0)
    assert early.send(GET) == [handoff_packet(early, GET, window=502 << 7)]
    scene.pass_time(1.0)
    assert scene.core.sizes["verified"] == 0
    assert late.send(GET) == [reset_of(late)]


def test_verified_table_is_bounded_and_the_cookie_serves_those_beyond() -> None:
    scene = Scene(limits=Limits(verified=1))
    Client(scene).connect()
    beyond = Client(scene, port=50000, stamps=False).connect()
    assert (scene.core.sizes["verified"], scene.counters["verified_table_full"]) == (1, 1)
    assert beyond.send(GET) == [handoff_packet(beyond, GET, window=502 << 7)]


def ack_of_nothing(client: Client, window: int) -> bytes:
    return from_vip(
        client,
        seq=client.server_isn + 1,
        ack=client.isn + 1,
        flags=ACK,
        window=window,
        options=echoed(client),
    )


@pytest.mark.parametrize("probe", [b"", b"\0"])
@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize(("scale", "window"), [(7, WINDOW >> 7), (None, WINDOW)])
def test_keepalive_probe_is_answered_with_an_ack_of_nothing(
    probe: bytes, verified: bool, scale: int | None, window: int
) -> None:
    client = Client(Scene(), scale=scale).greet()
    if verified:
        client.send()
    assert client.send(probe, at=-1) == [ack_of_nothing(client, window)]


@pytest.mark.parametrize("probe", [b"", b"\0"])
def test_keepalive_probe_of_a_client_that_nobody_remembers_proves_its_handshake(probe: bytes) -> None:
    client = Client(Scene(limits=Limits(half_open=0, verified=0))).connect()
    assert client.send(probe, at=-1) == [ack_of_nothing(client, WINDOW >> 7)]


@pytest.mark.parametrize("payload", [b"", b"\0"])
def test_fin_below_the_stream_is_no_keepalive_probe_and_ends_nothing(payload: bytes) -> None:
    client = Client(Scene()).connect()
    assert client.send(payload, at=-1, flags=FIN | ACK) == []
    assert client.scene.core.sizes["verified"] == 1


@pytest.mark.parametrize("verified", [True, False])
def test_fin_before_any_byte_is_answered_with_a_fin_and_every_repetition_too(verified: bool) -> None:
    client = Client(Scene()).greet()
    if verified:
        client.send()
    fin_ack = from_vip(
        client,
        seq=client.server_isn + 1,
        ack=client.isn + 2,
        flags=FIN | ACK,
        window=WINDOW >> 7,
        options=echoed(client),
    )
    assert client.send(flags=FIN | ACK) == [fin_ack]
    assert client.send(flags=FIN | ACK) == [fin_ack]
    assert client.send(at=1, ack=1) == []
    assert (client.scene.core.sizes["verified"], client.scene.core.sizes["half_open"]) == (0, 0)


def test_rst_at_the_expected_number_forgets_a_verified_connection_and_elsewhere_does_not() -> None:
    client = Client(Scene()).connect()
    assert client.send(at=1, flags=0x04) == []
    assert client.scene.core.sizes["verified"] == 1
    assert client.send(flags=0x04) == []
    assert client.scene.core.sizes["verified"] == 0


def test_verified_connection_ignores_acks_of_what_was_never_sent() -> None:
    client = Client(Scene()).connect()
    assert client.send(GET, ack=1) == []
    assert client.send(GET) == [handoff_packet(client, GET, window=502 << 7)]


def test_later_handshake_of_a_verified_port_takes_its_place() -> None:
    scene = Scene()
    Client(scene).connect()
    second = Client(scene, isn=0xFFFF_FFFF, mss=1300, scale=3).connect()
    assert second.send(GET) == [handoff_packet(second, GET, window=502 << 3)]


def test_damaged_syn_is_not_answered() -> None:
    scene = Scene()
    assert scene.receive(with_field(Client(scene).syn(), 36, 0xBAD)) == []
    assert scene.counters["dropped_bad_checksum"] == 1
