"""The handoff's bytes, superpackets, and that one connection keeps its node."""

from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP

from balancer.core.connection import Flow
from balancer.core.service import Limits
from common.tcp.activity import Activity
from common.wire.offload import NO_OFFLOAD, Offload, Packet
from tests.unit.balancer.scene import (
    ACK,
    FIN,
    GET,
    INDEX,
    NODES,
    PSH,
    RST,
    Client,
    Scene,
    connected,
    forwarded,
    handoff_packet,
    make_service,
    packed,
)
from tests.unit.wire.packets import (
    finished_by_the_card,
    ip_checksum_error,
    tcp_checksum_error,
    with_field,
    with_partial_checksum,
)

POST = b"POST /up HTTP/1.1\r\nContent-Length: 4000\r\n\r\n" + bytes(range(256)) * 16


@pytest.mark.parametrize(
    "offered",
    [
        {},
        {"sack": False},
        {"scale": None},
        {"stamps": False},
        {"sack": False, "scale": None, "stamps": False},
        {"mss": None},
        {"mss": 1},
        {"mss": 65535, "scale": 14},
    ],
)
def test_handoff_says_exactly_what_the_client_offered(offered: dict[str, object]) -> None:
    client = replace(Client(Scene()), **offered).connect()  # type: ignore[arg-type]
    window = min(client.window << (client.scale or 0), 65535)
    assert client.send(GET) == [handoff_packet(client, GET, window=window)]


@pytest.mark.parametrize(
    ("window", "scale", "bytes_"),
    [(502, 7, 64256), (511, 7, 65408), (512, 7, 65535), (3, 14, 49152), (0, 7, 0)],
)
def test_window_of_the_handoff_is_in_bytes_and_capped(window: int, scale: int, bytes_: int) -> None:
    client = Client(Scene(), window=window, scale=scale).connect()
    assert client.send(GET) == [handoff_packet(client, GET, window=bytes_)]


def test_promised_scale_is_the_one_of_the_syn_ack() -> None:
    client = Client(Scene(make_service()._replace(promised_scale=3))).connect()
    assert dict(IP(client.scene.receive(client.syn())[0])[TCP].options)["WScale"] == 3
    assert client.send(GET) == [handoff_packet(client, GET, window=64256, promised_scale=3)]


@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
def test_ecn_bits_of_the_first_payload_are_kept_and_its_dscp_is_replaced(ecn: int) -> None:
    client = Client(Scene()).connect()
    assert client.send(GET, tos=46 << 2 | ecn) == [handoff_packet(client, GET, window=64256, ecn=ecn)]


def test_timestamps_of_the_handoff_are_the_newest() -> None:
    client = Client(Scene()).connect()
    client.clock += 777
    assert client.send(GET) == [handoff_packet(client, GET, window=64256)]


@pytest.mark.parametrize("isn", [0xFFFF_FFFF, 0xFFFF_FFFE, 0, 0xFFFF_FFF0])
def test_client_numbers_may_wrap_within_the_preamble(isn: int) -> None:
    client = Client(Scene(), isn=isn).connect()
    assert client.send(GET[7:], at=7) == []
    second = client.segment(GET[7:], at=7)
    assert client.send(GET[:7]) == [
        handoff_packet(client, GET[:7], window=64256),
        forwarded(second, client.node_address()),
    ]


def test_wrong_checksum_stays_exactly_as_wrong() -> None:
    client = Client(Scene()).connect()
    packet = client.segment(GET)
    damaged = with_field(packet, 36, int.from_bytes(packet[36:38], "big") ^ 0x0101)
    (made,) = client.scene.receive(damaged)
    assert tcp_checksum_error(made) == tcp_checksum_error(damaged) != 0
    assert ip_checksum_error(made) == 0


def superpacket(client: Client, payload: bytes, gso_size: int, flags: int = ACK | PSH) -> Packet:
    """As AF_PACKET delivers it: partial checksum, offsets from the IP header."""
    packet = with_partial_checksum(client.segment(payload, flags=flags))
    header = len(packet) - len(payload)
    return Packet(packet, Offload(1, 1, header, gso_size, 20, 16))


def finished(packet: Packet) -> bytes:
    """What leaves the device; it must not be cut any more."""
    assert (packet.offload.gso_type, packet.offload.gso_size) == (0, 0)
    if not packet.offload.needs_checksum:
        return packet.data
    assert (packet.offload.checksum_start, packet.offload.checksum_offset) == (20, 16)
    return finished_by_the_card(packet.data)


@pytest.mark.parametrize("gso_size", [1424, 1388, 700, 536])
@pytest.mark.parametrize("size", [1425, 2848, 2849, len(POST)])
def test_superpacket_is_handed_over_in_part_and_the_rest_follows_as_data(gso_size: int, size: int) -> None:
    client = Client(Scene(), mss=gso_size + 12).connect()
    payload = POST[:size]
    made = client.scene.receive_packet(superpacket(client, payload, gso_size, ACK | PSH | FIN))
    expected = [handoff_packet(client, payload[:1424], window=64256)]
    for at in range(1424, size, 1424):
        last = at + 1424 >= size
        piece = client.segment(payload[at : at + 1424], at=at, flags=ACK | PSH | FIN if last else ACK)
        expected.append(forwarded(piece, client.node_address()))
    assert [finished(packet) for packet in made] == expected


def test_small_superpacket_is_handed_over_in_one_packet_that_nobody_cuts() -> None:
    client = Client(Scene()).connect()
    (made,) = client.scene.receive_packet(superpacket(client, POST[:1400], 700))
    assert finished(made) == handoff_packet(client, POST[:1400], window=64256)


def test_partial_checksum_of_an_ordinary_first_payload_is_finished_by_the_card() -> None:
    client = Client(Scene()).connect()
    packet = Packet(with_partial_checksum(client.segment(GET)), Offload(1, 0, 0, 0, 20, 16))
    (made,) = client.scene.receive_packet(packet)
    assert made.offload.needs_checksum
    assert finished(made) == handoff_packet(client, GET, window=64256)


def test_whole_checksum_of_a_long_first_payload_is_right_on_each_piece() -> None:
    client = Client(Scene()).connect()
    made = client.scene.receive_packet(Packet(client.segment(POST[:3000])))
    assert [packet.offload for packet in made] == [NO_OFFLOAD] * 3
    assert [tcp_checksum_error(packet.data) for packet in made] == [0, 0, 0]
    assert b"".join(bytes(IP(packet.data)[TCP].payload) for packet in made) == POST[:3000]


def test_long_first_payload_with_a_wrong_checksum_is_dropped_rather_than_made_right() -> None:
    client = Client(Scene()).connect()
    packet = client.segment(POST[:3000])
    assert client.scene.receive(with_field(packet, 36, int.from_bytes(packet[36:38], "big") ^ 1)) == []
    assert client.scene.counters["dropped_bad_checksum"] == 1
    assert len(client.scene.receive(packet)) == 3


def test_smaller_path_to_the_nodes_makes_smaller_pieces() -> None:
    client = Client(Scene(make_service()._replace(max_payload=1000))).connect()
    made = client.send(POST[:2500])
    assert [len(IP(packet)[TCP].payload) for packet in made] == [1000, 1000, 500]


def test_retransmitted_first_payload_is_handed_off_again_to_the_same_node_whatever_the_table_says() -> None:
    scene = Scene()
    client = connected(scene)
    before = client.node
    scene.core.serve([make_service(*(name for name in NODES if name != before))])
    client.clock += 200
    assert client.send(GET) == [handoff_packet(client, GET, window=64256)]
    assert client.node == before


@pytest.mark.parametrize("payload", [GET[:10], GET + b"more", GET])
def test_retransmission_of_other_length_is_handed_off_as_it_came(payload: bytes) -> None:
    client = connected(Scene())
    assert client.send(payload, flags=ACK | FIN) == [handoff_packet(client, payload, window=64256, fin=True)]


def test_retransmission_as_a_superpacket_is_cut_again() -> None:
    client = Client(Scene()).connect()
    made = client.scene.receive_packet(superpacket(client, POST, 1424))
    again = client.scene.receive_packet(superpacket(client, POST, 1424))
    assert again == made
    assert len(again) == 3


def test_first_payload_that_comes_again_after_a_minute_is_plain_data() -> None:
    client = connected(Scene())
    client.scene.pass_time(60.0)
    assert client.send(GET) == [handoff_packet(client, GET, window=64256)]
    client.scene.pass_time(0.5)
    packet = client.segment(GET)
    assert client.scene.receive(packet) == [forwarded(packet, client.node_address())]


def test_first_payload_of_a_flow_that_is_over_opens_nothing_anew() -> None:
    """Either the flow is still known or its cookie has lost its worth, at any time."""
    for flags in (RST, FIN | ACK):
        client = connected(Scene())
        client.send(at=len(GET), flags=flags)
        for _ in range(300):
            client.scene.pass_time(0.5)
            client.send(GET)
            client.send(at=len(GET), flags=flags)
        assert client.scene.core.sizes["flows"] <= 1
        assert client.scene.counters["collect"] == 1


def test_first_payload_whose_answer_was_acknowledged_in_part_is_plain_data() -> None:
    client = connected(Scene())
    packet = client.segment(GET, ack=10)
    assert client.scene.receive(packet) == [forwarded(packet, client.node_address())]


def test_node_that_another_took_first_is_adopted() -> None:
    scene = Scene()
    client = Client(scene).connect()
    chosen = connected(Scene(), port=client.port).node
    other = next(name for name in NODES if name != chosen)
    table = scene.core._connections.flows
    put = table.put_if_absent

    def lose_the_race(key: bytes, value: Flow) -> Flow:
        node = make_service().nodes[other]
        put(
            key, Flow(value.handshake, node, Activity(value.handshake.first, scene.now), scene.now, node.plan)
        )
        return put(key, value)

    table.put_if_absent = lose_the_race  # type: ignore[method-assign]
    assert client.send(GET) == [handoff_packet(client, GET, window=64256, node=NODES[other])]
    assert client.node == other


def test_all_handoffs_are_counted_and_of_each_node_its_new_flows() -> None:
    scene = Scene(limits=Limits())
    client = connected(scene)
    client.send(GET)
    assert scene.counters["handoffs"] == 2
    assert scene.core.loads.of(INDEX, packed(client.node_address())).handed == 1
