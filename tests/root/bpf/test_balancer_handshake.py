"""SYNs, and who has been answered, by the programs as by the core."""

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP

from balancer.core.service import Limits
from tests.root.bpf.balancer_twin import Twin
from tests.unit.balancer.scene import (
    ACK,
    FIN,
    GET,
    RST,
    SYN,
    Client,
    echoed,
    from_vip,
    handoff_packet,
    reset_of,
)
from tests.unit.wire.packets import tcp_checksum, with_field

pytestmark = pytest.mark.root


@pytest.fixture
def scene() -> Iterator[Twin]:
    with Twin(now=1000.0) as twin:
        yield twin


@pytest.mark.parametrize("mss", [None, 0, 40, 536, 1411, 1460, 65535])
@pytest.mark.parametrize("scale", [None, 0, 9, 14])
def test_syn_ack_offers_what_the_client_offered(scene: Twin, mss: int | None, scale: int | None) -> None:
    for sack in (False, True):
        for stamps in (False, True):
            client = Client(scene, mss=mss, scale=scale, sack=sack, stamps=stamps)
            (answer,) = scene.receive(client.syn())
            offered = dict(IP(answer)[TCP].options)
            assert IP(answer)[TCP].ack == client.isn + 1
            assert offered["MSS"] == (1436 if stamps else 1424)
            assert offered.get("WScale") == (None if scale is None else 7)
            assert ("SAckOK" in offered, "Timestamp" in offered) == (sack, stamps)
            assert not stamps or offered["Timestamp"][1] == client.clock


@pytest.mark.parametrize(
    "area",
    [
        "",
        "020405b4010103",  # window scale cut off
        "0204050002040578",  # two of a kind: the last counts
        "0203050001030310",  # wrong lengths; a shift above 14
        "00020405b4030307",  # behind the end of the list
        "0204000103030f010402080a000000010000000200",
        "fd104c33000000000000000000000000020405b4",
        "0100",
        "0201",
        "ff00",
        "0101080affffffff00000000",
    ],
)
def test_syn_with_odd_options_is_answered_alike(scene: Twin, area: str) -> None:
    padded = bytes.fromhex(area) + bytes(-len(area) // 2 % 4)
    assert len(scene.receive(Client(scene).syn(raw_options=padded))) == 1


@pytest.mark.parametrize("flags", [SYN, SYN | 0x40, SYN | 0x80 | 0x40, SYN | 0x08])
def test_data_and_ecn_in_a_syn_are_ignored(scene: Twin, flags: int) -> None:
    client = Client(scene)
    (answer,) = scene.receive(client.syn(flags=flags, payload=b"odd"))
    assert (IP(answer)[TCP].ack, IP(answer)[TCP].flags) == (client.isn + 1, "SA")
    assert tcp_checksum(answer) == IP(answer)[TCP].chksum


def test_syn_with_a_wrong_checksum_is_dropped(scene: Twin) -> None:
    assert scene.receive(with_field(Client(scene).syn(), 36, 0x1234)) == []
    assert scene.programs.counters["dropped_bad_checksum"] == 1


def test_bare_ack_is_remembered_and_not_answered(scene: Twin) -> None:
    client = Client(scene, mss=1433, stamps=False).greet()
    assert client.send() == []
    assert client.send() == []
    scene.check_tables()
    scene.pass_time(250.0)
    assert client.send(GET) == [handoff_packet(client, GET, window=502 << 7)]
    scene.check_tables()


@pytest.mark.parametrize("payload", [b"", b"x"])
@pytest.mark.parametrize("options", [{}, {"stamps": False}, {"scale": None}])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_keepalive_probe_is_answered_with_an_ack_of_nothing(
    scene: Twin, payload: bytes, options: dict[str, bool | None], is_damaged: bool
) -> None:
    client = Client(scene, **options).connect()  # type: ignore[arg-type]
    probe = client.segment(payload, at=-1)
    expected = from_vip(
        client,
        seq=client.server_isn + 1,
        ack=client.isn + 1,
        flags=ACK,
        window=14240 if client.scale is None else 14240 >> 7,
        options=echoed(client),
    )
    assert scene.receive(with_field(probe, 36, 0x4711) if is_damaged else probe) == [expected]


@pytest.mark.parametrize("flags", [RST, RST | ACK])
def test_rst_forgets_a_verified_client_at_its_expected_number_only(scene: Twin, flags: int) -> None:
    client = Client(scene).connect()
    client.send(at=1, flags=flags)
    assert scene.core.sizes["verified"] == 1
    client.send(flags=flags)
    assert scene.core.sizes["verified"] == 0
    scene.check_tables()


@pytest.mark.parametrize("seconds", [29.0, 59.0, 60.0, 61.0])
def test_cookie_is_good_as_long_as_the_core_says(scene: Twin, seconds: float) -> None:
    clients = [Client(scene, port=port, stamps=bool(port % 2)).greet() for port in range(50000, 50004)]
    scene.pass_time(seconds)
    for client in clients:
        assert client.send(GET) == (
            [handoff_packet(client, GET, window=502 << 7)] if client.node else [reset_of(client)]
        )


def test_where_half_open_is_full_scale_and_sack_are_offered_with_timestamps_only() -> None:
    with Twin(limits=Limits(flows=10, verified=10, half_open=1)) as scene:
        Client(scene, port=50000).greet()
        (bare,) = scene.receive(Client(scene, port=50001, stamps=False).syn())
        assert IP(bare)[TCP].options == [("MSS", 1424)]
        stamped = Client(scene, port=50002, mss=1411).greet()
        assert stamped.send(GET) == [handoff_packet(stamped, GET, mss=1400, window=502 << 7)]
        scene.pass_time(61.0)
        later = Client(scene, port=50003, stamps=False).greet()
        assert later.send(GET) == [handoff_packet(later, GET, window=502 << 7)]


def test_where_verified_is_full_the_cookie_serves_those_beyond() -> None:
    with Twin(limits=Limits(flows=10, verified=1, half_open=10)) as scene:
        Client(scene, port=50000).connect()
        beyond = Client(scene, port=50001, stamps=False).connect()
        assert scene.programs.counters["verified_table_full"] == 1
        assert beyond.send(GET) == [handoff_packet(beyond, GET, window=502 << 7)]


def test_fin_of_a_client_that_said_nothing_is_answered_by_python(scene: Twin) -> None:
    client = Client(scene).connect()
    assert len(client.send(flags=ACK | FIN)) == 1
    assert scene.programs.counters["passed_up"] == 1
    assert scene.claims.count() == 1
    scene.pass_time(61.0)
    scene.release()
    assert scene.claims.count() == 0
