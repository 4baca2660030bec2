"""Which handoffs are believed."""

import pytest

from packetbridge.core.service import Limits
from tests.unit.packetbridge.scene import (
    CI,
    FIRST,
    LI,
    OTHER_SERVICE,
    SERVICE,
    TS,
    WALL,
    Scene,
    X,
    add,
    from_backend,
    from_client,
    handoff,
    stamps,
    syn,
    syn_ack,
)
from tests.unit.wire.packets import (
    RST,
    Described,
    built,
    with_field,
    with_ip_checksum,
)

REPLAY_RESET = built(Described(from_client=False, seq=add(LI, 1), ack=0, flags=RST, window=0))


def later_connection(time: int = WALL) -> Described:
    """With the same addresses and ports."""
    return handoff(client_isn=CI + 900_000, balancer_isn=LI + 5, time=time)


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (handoff(tag=b"evil tag"), "handoff_bad_tag"),
        (handoff(time=WALL - 61), "handoff_too_old"),
        (handoff(time=WALL + 61), "handoff_too_old"),
        (handoff(index=9), "unknown_dscp"),
        (handoff(index=0), "unknown_dscp"),
        (handoff()._replace(server="192.168.33.21"), "wrong_destination"),
        (handoff()._replace(server_port=81), "wrong_port"),
        (handoff()._replace(options=()), "not_a_handoff"),
        (handoff(b""), "bad_handoff_payload"),
    ],
)
def test_handoff_that_cannot_be_believed_is_dropped_and_counted(
    scene: Scene, offered: Described, reason: str
) -> None:
    assert scene.balancer(offered) == []
    assert scene.counters == {reason: 1}
    assert scene.core.sizes["flows"] == 0


@pytest.mark.parametrize("time", [WALL - 60, WALL + 60])
def test_handoff_of_a_minute_is_believed(scene: Scene, time: int) -> None:
    assert scene.balancer(handoff(time=time)) == [built(syn())]


def test_tag_of_a_duplicate_is_checked_too(scene: Scene) -> None:
    scene.balancer(handoff())
    assert scene.balancer(handoff(tag=b"evil tag")) == []
    assert scene.counters["handoff_bad_tag"] == 1


def test_age_of_a_duplicate_is_checked_too(scene: Scene) -> None:
    scene.settle()
    scene.wall += 61
    assert scene.balancer(handoff()) == []
    assert scene.counters["handoff_too_old"] == 1


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (with_ip_checksum(with_field(built(from_client()), 6, 0x2000)), "fragment"),
        (with_ip_checksum(with_field(built(from_client()), 6, 0x00B9)), "fragment"),
        (with_field(built(from_client()), 10, 0x1234), "bad_ip_checksum"),
        (with_ip_checksum(b"\x46" + built(from_client())[1:]), "ip_options"),
        (with_field(built(from_client()), 32, 0x4010), "bad_data_offset"),
        (with_field(built(from_client()), 32, 0xF010), "bad_data_offset"),
        (built(from_client())[:30], "truncated"),
        (b"", "truncated"),
    ],
)
def test_hostile_packet_is_dropped_and_counted(scene: Scene, packet: bytes, reason: str) -> None:
    assert scene.balancer(packet) == []
    assert scene.counters == {reason: 1}


def test_late_duplicate_of_an_ended_flow_gives_the_server_nothing_and_the_client_a_rst(
    scene: Scene,
) -> None:
    scene.settle()
    scene.backend(from_backend(flags=RST))
    scene.now += 120
    assert scene.balancer(handoff()) == [REPLAY_RESET]
    assert scene.counters["replayed_handoff"] == 1
    assert scene.core.sizes["flows"] == 0


def test_tombstone_lasts_as_long_as_its_handoff_may_be_believed(scene: Scene) -> None:
    scene.settle()
    scene.backend(from_backend(flags=RST))
    scene.now += 121.5
    assert scene.balancer(handoff()) == [built(syn())]


def test_each_replay_makes_the_tombstone_last_longer(scene: Scene) -> None:
    scene.settle()
    scene.backend(from_backend(flags=RST))
    for _ in range(3):
        scene.now += 100
        assert scene.balancer(handoff()) == [REPLAY_RESET]


def test_resets_of_replays_are_limited() -> None:
    scene = Scene(limits=Limits(resets_per_second=1))
    scene.settle()
    scene.backend(from_backend(flags=RST))
    assert scene.balancer(handoff()) == [REPLAY_RESET]
    assert scene.balancer(handoff()) == []
    assert scene.counters["stranger_reset_limited"] == 1


def test_tombstones_do_not_pile_up(scene: Scene) -> None:
    for port in (50_000, 50_001, 50_002):
        scene.balancer(handoff()._replace(client_port=port))
        scene.balancer(from_client(flags=RST)._replace(client_port=port))
        scene.now += 122
    assert scene.core.sizes["tombstones"] == 1


def test_new_connection_with_the_same_ports_is_no_replay(scene: Scene) -> None:
    scene.settle()
    scene.backend(from_backend(flags=RST))
    assert scene.balancer(later_connection()) == [built(syn(client_isn=CI + 900_000))]


def test_tombstones_are_bounded_and_the_oldest_goes_first() -> None:
    scene = Scene(limits=Limits(tombstones=2))
    for port in (50_000, 50_001, 50_002):
        scene.balancer(handoff()._replace(client_port=port))
        scene.balancer(from_client(flags=RST)._replace(client_port=port))
    assert scene.core.sizes["tombstones"] == 2
    scene.balancer(handoff()._replace(client_port=50_000))
    assert scene.counters["replayed_handoff"] == 0
    scene.balancer(handoff()._replace(client_port=50_001))
    assert scene.counters["replayed_handoff"] == 1


def test_newer_handoff_replaces_a_flow_and_leaves_its_tombstone(scene: Scene) -> None:
    scene.settle()
    assert scene.balancer(later_connection(WALL)) == [built(syn(client_isn=CI + 900_000))]
    assert scene.balancer(handoff()) == []
    assert scene.counters["replayed_handoff"] == 1
    assert scene.core.sizes["flows"] == 1
    answer = scene.backend(syn_ack(client_isn=CI + 900_000))
    assert answer == [built(FIRST._replace(seq=CI + 900_001))]


def test_older_handoff_changes_nothing(scene: Scene) -> None:
    scene.settle()
    assert scene.balancer(later_connection(WALL - 1)) == []
    assert scene.counters["older_handoff"] == 1
    assert scene.fast_balancer(from_client()) is not None


def test_handoff_is_newer_than_a_flow_of_half_a_day(scene: Scene) -> None:
    """The handoff's time has 16 bits, which wrap around after 18 hours; a flow may live longer."""
    scene.settle()
    scene.wall += 40_000
    assert scene.balancer(later_connection(scene.wall)) == [built(syn(client_isn=CI + 900_000))]


def test_handoff_finds_no_room_among_live_flows_and_is_dropped() -> None:
    scene = Scene(limits=Limits(flows=1))
    scene.open()
    assert scene.balancer(handoff()._replace(client_port=50_000)) == []
    assert scene.counters["flows_full"] == 1
    assert scene.fast_backend(from_backend()) is not None


def test_closed_flow_makes_room() -> None:
    scene = Scene(limits=Limits(flows=1))
    scene.open(handoff(fin=True))
    scene.backend(from_backend(flags=0x11))
    assert len(scene.balancer(handoff()._replace(client_port=50_000))) == 1
    assert scene.core.sizes["flows"] == 1
    assert scene.core.sizes["tombstones"] == 1


def test_each_closed_flow_makes_room_in_its_turn() -> None:
    scene = Scene(limits=Limits(flows=1))
    for port in (50_000, 50_001, 50_002):
        assert len(scene.balancer(handoff(fin=True)._replace(client_port=port))) == 1
        scene.backend(syn_ack()._replace(client_port=port))
        scene.backend(from_backend(flags=0x11)._replace(client_port=port))
        if port == 50_000:
            scene.pass_time(61)
    assert scene.core.sizes["flows"] == 1


def test_flow_that_only_seemed_closed_makes_no_room() -> None:
    scene = Scene(limits=Limits(flows=1))
    scene.settle()
    scene.balancer(from_client(flags=0x11))
    scene.backend(from_backend(flags=0x11))
    scene.balancer(from_client(b"alive"))
    assert scene.balancer(handoff()._replace(client_port=50_000)) == []
    assert scene.counters["flows_full"] == 1


def test_one_client_port_talks_to_two_vips_of_one_bridge() -> None:
    scene = Scene(SERVICE, OTHER_SERVICE)
    scene.settle()
    sent = scene.balancer(handoff(client_isn=5, balancer_isn=6, index=2))
    assert sent == [built(syn(client_isn=5)._replace(server="192.168.33.31"))]
    answer = syn_ack(client_isn=5, isn=8)._replace(server="192.168.33.31")
    scene.backend(answer)
    reply = from_backend(b"hello")._replace(seq=9, server="192.168.33.31", ack=6)
    expected = reply._replace(
        server="192.168.33.11",
        server_port=80,
        seq=7,
        options=stamps(X + 11, TS),
    )
    assert scene.fast_backend(reply) == built(expected)
    assert scene.core.sizes["flows"] == 2
