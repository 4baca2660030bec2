"""Reading the first bytes: what waits, what for, and what becomes of it."""

import itertools
import random
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP

from balancer.core.service import Limits, NonHttp
from common.hashing.xxh64 import xxh64
from tests.unit.balancer.scene import (
    ACK,
    CLIENT,
    FIN,
    GET,
    NODES,
    PSH,
    RST,
    VIP,
    WINDOW,
    Client,
    Scene,
    forwarded,
    handoff_packet,
    make_service,
    packed,
    reset_of,
)

REQUEST_LINE = b"GET /film/1.ts HTTP/1.1\r\n"
KEY_KNOWN_AT = len(b"GET /film/1.ts HTTP/1.1")
WINDOW_BYTES = 502 << 7


def node_of_key(key: bytes) -> str:
    table = make_service().table
    assert table is not None
    return table.lookup(xxh64(key))


def node_of_ports(client: Client) -> str:
    return node_of_key(client.key)


def port_whose_node_differs(path: bytes) -> int:
    """A client port whose 4-tuple belongs to another node than the path."""
    wanted = node_of_key(path)
    return next(port for port in range(49152, 65536) if node_of_ports(Client(Scene(), port=port)) != wanted)


PORT = port_whose_node_differs(b"/film/1.ts")


@pytest.fixture
def client() -> Client:
    """Verified, and told apart from its request by the node of its 4-tuple."""
    return Client(Scene(), port=PORT).connect()


def test_whole_request_goes_to_the_node_of_its_path(client: Client) -> None:
    assert client.send(GET) == [
        handoff_packet(client, GET, window=WINDOW_BYTES, node=NODES[node_of_key(b"/film/1.ts")])
    ]
    assert client.scene.core.sizes == {
        "half_open": 0,
        "verified": 0,
        "collecting": 0,
        "flows": 1,
        "answered": 0,
    }


@pytest.mark.parametrize("cut", range(1, len(REQUEST_LINE)))
@pytest.mark.parametrize("in_order", [True, False])
def test_request_line_cut_anywhere_goes_to_the_node_of_its_path(cut: int, in_order: bool) -> None:
    client = Client(Scene(), port=PORT).connect()
    head = client.segment(GET[:cut], flags=ACK | PSH)
    tail = client.segment(GET[cut:], at=cut, flags=ACK | PSH)
    made = [
        packet for one in ((head, tail) if in_order else (tail, head)) for packet in client.scene.receive(one)
    ]
    address = NODES[node_of_key(b"/film/1.ts")]
    handed_over = handoff_packet(client, GET[:cut], window=WINDOW_BYTES, node=address)
    assert made == [handed_over, forwarded(tail, address)]
    assert client.scene.core.sizes["collecting"] == 0
    assert client.scene.core._connections.collecting_bytes == 0


def test_client_that_sends_every_byte_by_itself_keeps_its_affinity(client: Client) -> None:
    made = [client.send(REQUEST_LINE[at : at + 1], at=at) for at in range(len(REQUEST_LINE))]
    assert made[: KEY_KNOWN_AT - 1] == [[]] * (KEY_KNOWN_AT - 1)
    assert len(made[KEY_KNOWN_AT - 1]) == KEY_KNOWN_AT
    assert client.node == node_of_key(b"/film/1.ts")


@pytest.mark.parametrize("seed", range(5))
def test_pieces_in_any_order_are_all_sent_behind_the_handoff(seed: int) -> None:
    client = Client(Scene(), port=PORT).connect()
    cuts = [0, 3, 9, 15, 20, len(GET)]
    pieces = [(start, GET[start:end]) for start, end in itertools.pairwise(cuts)]
    random.Random(seed).shuffle(pieces)
    made = [packet for at, payload in pieces for packet in client.send(payload, at=at)]
    assert client.node == node_of_key(b"/film/1.ts")
    sent = {IP(packet)[TCP].seq - client.isn - 1: bytes(IP(packet)[TCP].payload) for packet in made}
    assert sent.pop(-1) == GET[:3]
    assert sent == {at: payload for at, payload in pieces if at}


def test_client_that_waits_for_an_ack_is_handed_over_at_its_first_retransmission(client: Client) -> None:
    assert client.send(b"GE") == []
    assert client.send(b"GE") == [
        handoff_packet(client, b"GE", window=WINDOW_BYTES, node=NODES[node_of_ports(client)])
    ]
    assert client.scene.counters["key_unread_at_retransmission"] == 1


def test_partial_overlap_without_a_key_is_a_retransmission_too(client: Client) -> None:
    assert client.send(b"GET /") == []
    overlapping = client.segment(b"T /fi", at=2)
    assert client.scene.receive(overlapping) == [
        handoff_packet(client, b"GET /", window=WINDOW_BYTES, node=NODES[node_of_ports(client)]),
        forwarded(overlapping, NODES[node_of_ports(client)]),
    ]


def test_client_whose_key_does_not_come_is_handed_over_after_50_milliseconds(client: Client) -> None:
    assert client.send(b"GE") == []
    assert client.scene.pass_time(0.049) == []
    assert client.scene.pass_time(0.007) == [
        handoff_packet(client, b"GE", window=WINDOW_BYTES, node=NODES[node_of_ports(client)])
    ]
    assert client.scene.counters["key_unread_in_time"] == 1
    rest = client.segment(GET[2:], at=2)
    assert client.scene.receive(rest) == [forwarded(rest, client.node_address())]


def test_patience_is_counted_from_the_first_byte_and_not_from_the_newest(client: Client) -> None:
    client.send(b"G")
    client.scene.pass_time(0.04)
    client.send(b"E", at=1)
    assert len(client.scene.pass_time(0.016)) == 2


def test_longer_retransmission_that_brings_the_key_goes_to_the_node_of_the_path(client: Client) -> None:
    client.send(b"GE")
    assert client.send(GET) == [handoff_packet(client, GET, window=WINDOW_BYTES)]
    assert client.node == node_of_key(b"/film/1.ts")


def test_shorter_retransmission_is_what_is_forwarded(client: Client) -> None:
    client.send(b"GET /fi")
    assert client.send(b"GE") == [handoff_packet(client, b"GE", window=WINDOW_BYTES)]
    assert client.node == node_of_ports(client)


def test_overlapping_retransmission_is_forwarded_as_it_came(client: Client) -> None:
    head = client.segment(GET[:6])
    assert client.scene.receive(head) == []
    overlapping = client.segment(GET[4:], at=4)
    assert client.scene.receive(overlapping) == [
        handoff_packet(client, GET[:6], window=WINDOW_BYTES),
        forwarded(overlapping, client.node_address()),
    ]
    assert client.node == node_of_key(b"/film/1.ts")


def test_bytes_that_came_first_count_for_the_key_and_the_newest_are_forwarded(client: Client) -> None:
    client.send(b"GET /film/1")
    changed = b"GET /FILM/9.ts HTTP/1.1\r\n"
    assert client.send(changed) == [handoff_packet(client, changed, window=WINDOW_BYTES)]
    assert client.node == node_of_key(b"/film/1.ts")


def test_bytes_that_came_first_count_even_if_they_came_ahead_of_the_start() -> None:
    paths = (b"/film/%d.ts" % number for number in range(100))
    path = next(path for path in paths if node_of_key(path) != node_of_key(b"/XXXX" + path[5:]))
    client = Client(Scene()).connect()
    request = b"GET " + path + b" HTTP/1.1\r\n"
    client.send(request[4:], at=4)
    client.send(request[:4] + b"/XXXX" + request[9:])
    assert client.node == node_of_key(path)


def test_fin_on_the_whole_request_goes_with_the_handoff(client: Client) -> None:
    assert client.send(GET, flags=ACK | FIN) == [handoff_packet(client, GET, window=WINDOW_BYTES, fin=True)]


def test_fin_behind_an_unfinished_request_is_handed_over_at_once(client: Client) -> None:
    assert client.send(b"GET /", flags=ACK | FIN) == [
        handoff_packet(client, b"GET /", window=WINDOW_BYTES, fin=True, node=NODES[node_of_ports(client)])
    ]
    assert client.scene.counters["key_unread_at_end"] == 1


def test_fin_in_a_segment_of_its_own_follows_the_handoff(client: Client) -> None:
    assert client.send(b"GET /") == []
    fin = client.segment(at=5, flags=ACK | FIN)
    handed_over, follower = client.scene.receive(fin)
    assert handed_over == handoff_packet(client, b"GET /", window=WINDOW_BYTES)
    assert follower == forwarded(fin, client.node_address())


def test_early_fin_waits_for_the_bytes_before_it(client: Client) -> None:
    fin = client.segment(at=len(GET), flags=ACK | FIN)
    assert client.scene.receive(fin) == []
    assert client.send(GET) == [
        handoff_packet(client, GET, window=WINDOW_BYTES),
        forwarded(fin, client.node_address()),
    ]


def test_segment_beyond_the_window_is_not_kept(client: Client) -> None:
    assert client.send(b"x" * 1000, at=WINDOW - 999) == []
    assert client.send(b"x" * 1000, at=-1) == []
    assert client.scene.core.sizes["collecting"] == 0
    assert client.send(b"x" * 1000, at=WINDOW - 1000) == []
    assert client.scene.core.sizes["collecting"] == 1


def test_window_full_of_a_request_without_end_goes_to_the_node_of_the_4_tuple() -> None:
    client = Client(Scene(make_service()._replace(target_limit=100_000)), port=PORT).connect()
    request = b"GET /" + b"a" * WINDOW
    made = [client.send(request[at : at + 1424], at=at) for at in range(0, WINDOW, 1424)]
    assert made[:-1] == [[]] * 9
    assert len(made[-1]) == 10
    assert client.node == node_of_ports(client)
    assert client.scene.counters["key_unread_at_end"] == 1


def test_segments_wait_a_minute_for_the_start_and_are_then_forgotten(client: Client) -> None:
    client.send(GET[10:], at=10)
    client.scene.pass_time(59.9)
    assert client.scene.core.sizes["collecting"] == 1
    client.scene.pass_time(0.2)
    assert client.scene.core.sizes["collecting"] == 0
    assert client.scene.core._connections.collecting_bytes == 0


def test_repetitions_while_the_start_is_missing_take_no_memory(client: Client) -> None:
    client.send(GET[10:], at=10)
    held = client.scene.core._connections.collecting_bytes
    for _ in range(10):
        assert client.send(GET[10:], at=10) == []
    assert client.scene.core._connections.collecting_bytes == held
    assert len(client.send(GET[:10])) == 2


@pytest.mark.parametrize("limits", [Limits(collecting=1), Limits(collecting_bytes=600)])
def test_connection_that_finds_no_room_to_wait_goes_to_the_node_of_its_4_tuple(limits: Limits) -> None:
    scene = Scene(limits=limits)
    assert Client(scene, port=50000).connect().send(b"GE") == []
    client = Client(scene, port=PORT).connect()
    assert client.send(b"GE") == [handoff_packet(client, b"GE", window=WINDOW_BYTES)]
    assert client.node == node_of_ports(client)
    assert scene.counters["preamble_no_room"] == 1
    assert scene.counters["key_unread_for_want_of_room"] == 1


def test_later_segment_that_finds_no_room_is_dropped_and_the_connection_stays_verified() -> None:
    client = Client(Scene(limits=Limits(collecting=0)), stamps=False).connect()
    assert client.send(GET[10:], at=10) == []
    assert client.scene.core.sizes["verified"] == 1
    assert client.send(GET) == [handoff_packet(client, GET, window=WINDOW_BYTES)]


def test_more_segments_than_are_held_for_one_connection_end_the_waiting(client: Client) -> None:
    scene = Scene()
    client = replace(client, scene=scene).connect()
    request = b"GET /" + b"a" * 400
    made = [client.send(request[at : at + 1], at=at) for at in range(257)]
    assert made[:-1] == [[]] * 256
    assert len(made[-1]) == 257
    assert client.node == node_of_ports(client)


@pytest.mark.parametrize("at", [0, 3])
def test_rst_of_a_client_whose_bytes_are_held_forgets_them(client: Client, at: int) -> None:
    client.send(b"GET")
    assert client.send(at=at, flags=RST) == []
    assert client.scene.core.sizes["collecting"] == 0
    assert client.scene.pass_time(0.1) == []


def test_rst_elsewhere_changes_nothing_while_bytes_are_held(client: Client) -> None:
    client.send(b"GET")
    assert client.send(at=2, flags=RST) == []
    assert len(client.scene.pass_time(0.1)) == 1


def test_probe_of_a_client_whose_bytes_are_held_acknowledges_none_of_them(client: Client) -> None:
    client.send(b"GET")
    (answer,) = client.send(at=-1)
    assert (IP(answer)[TCP].ack, IP(answer)[TCP].flags) == (client.isn + 1, "A")


def test_bare_ack_and_syn_leave_the_held_bytes_alone(client: Client) -> None:
    client.send(GET[:5])
    assert client.send() == []
    assert len(client.scene.receive(client.syn())) == 1
    assert len(client.send(GET[5:], at=5)) == 2
    assert client.node == node_of_key(b"/film/1.ts")


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x02\x00\x01", b"\0", b"PRI * HTTP/2.0\r\n\r\nSM"])
def test_what_is_not_http_is_reset(client: Client, first: bytes) -> None:
    assert client.send(first) == [reset_of(client)]
    assert client.scene.core.sizes == dict.fromkeys(client.scene.core.sizes, 0)


def test_what_is_not_http_goes_to_the_node_of_its_4_tuple_by_option() -> None:
    client = Client(Scene(make_service()._replace(non_http=NonHttp.HASH)), port=PORT).connect()
    hello = b"\x16\x03\x01\x02\x00\x01"
    assert client.send(hello) == [handoff_packet(client, hello, window=WINDOW_BYTES)]
    assert client.node == node_of_ports(client)
    assert client.scene.counters["not_http"] == 1


def test_4_tuple_is_hashed_as_it_stands_on_the_wire() -> None:
    scene = Scene()
    for port in range(40_000, 40_012):
        client = Client(scene, port=port).connect()
        client.send(b"GE")
        client.send(b"GE")
        assert client.node == node_of_key(packed(CLIENT) + packed(VIP) + port.to_bytes(2, "big") + b"\0\x50")
