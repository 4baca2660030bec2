"""Connections that the balancer answers by itself, and how they end."""

import pytest
from scapy.layers.inet import IP, TCP

from balancer.core.service import Limits, make_nodes
from tests.unit.balancer.scene import (
    ACK,
    FIN,
    GET,
    INDEX,
    NODES,
    PORT,
    PSH,
    RST,
    VIP,
    WINDOW,
    Client,
    Scene,
    connected,
    echoed,
    from_vip,
    handoff_packet,
    make_service,
    packed,
    reset_of,
)
from tests.unit.wire.packets import with_field

COMMON = b"Content-Type: text/plain\r\nContent-Length: %d\r\nCache-Control: no-store\r\nConnection: close\r\n"
HEAD_400 = b"HTTP/1.1 400 Bad Request\r\n" + COMMON % 16 + b"\r\n"
HEAD_414 = b"HTTP/1.1 414 URI Too Long\r\n" + COMMON % 17 + b"\r\n"
HEAD_503 = b"HTTP/1.1 503 Service Unavailable\r\n" + COMMON % 24 + b"Retry-After: 5\r\n\r\n"
BODY_503 = b"503 Service Unavailable\n"
ANSWER_400 = HEAD_400 + b"400 Bad Request\n"
BAD = b"GET\r\n"
LONG = b"GET /" + b"a" * 9300
NO_NODES = make_service()._replace(table=None)


def answer(client: Client, payload: bytes, acked: int, window: int = WINDOW >> 7) -> bytes:
    """An answer with its FIN that acknowledges ``acked`` of the client's numbers."""
    return from_vip(
        client,
        seq=client.server_isn + 1,
        ack=client.isn + 1 + acked,
        flags=ACK | PSH | FIN,
        window=window,
        options=echoed(client),
        payload=payload,
    )


def acknowledgment(client: Client, sent: int, acked: int) -> bytes:
    return from_vip(
        client,
        seq=client.server_isn + 1 + sent,
        ack=client.isn + 1 + acked,
        flags=ACK,
        window=WINDOW >> 7,
        options=echoed(client),
    )


@pytest.fixture
def client() -> Client:
    return Client(Scene()).connect()


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (BAD, ANSWER_400),
        (b"SSH-2.0-x\r\n", ANSWER_400),
        (b"GET nonsense HTTP/1.1\r\n", ANSWER_400),
        (b"HEAD nonsense HTTP/1.1\r\n", HEAD_400),
    ],
)
def test_malformed_request_line_is_answered_with_400(
    client: Client, request_: bytes, expected: bytes
) -> None:
    assert client.send(request_) == [answer(client, expected, len(request_))]
    assert client.scene.counters["answered_400"] == 1


@pytest.mark.parametrize(
    ("offered", "window"),
    [({"stamps": False}, WINDOW >> 7), ({"scale": None}, WINDOW), ({"sack": False}, WINDOW >> 7)],
)
def test_answer_has_the_options_of_its_connection(offered: dict[str, object], window: int) -> None:
    client = Client(Scene(), **offered).connect()  # type: ignore[arg-type]
    assert client.send(BAD) == [answer(client, ANSWER_400, len(BAD), window)]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_key_over_its_limit_is_answered_with_414_that_acknowledges_all_contiguous_bytes(
    client: Client, method: bytes
) -> None:
    request = method + LONG[3:]
    sizes = [1424] * 6 + [len(request) - 6 * 1424]
    made: list[bytes] = []
    at = 0
    for size in sizes:
        made += client.send(request[at : at + size], at=at)
        at += size
    body = b"" if method == b"HEAD" else b"414 URI Too Long\n"
    assert made == [answer(client, HEAD_414 + body, len(request))]
    assert client.scene.counters["answered_414"] == 1


@pytest.mark.parametrize(("request_", "body"), [(GET, BODY_503), (b"HEAD" + GET[3:], b"")])
def test_no_node_is_answered_with_503_and_retry_after(request_: bytes, body: bytes) -> None:
    client = Client(Scene(NO_NODES)).connect()
    assert client.send(request_) == [answer(client, HEAD_503 + body, len(request_))]
    assert client.scene.counters["answered_503"] == 1


@pytest.mark.parametrize(
    ("request_", "body"), [(b"GET /", BODY_503), (b"\r\nHEAD /", b""), (b"HEA", BODY_503)]
)
def test_no_node_for_a_request_whose_key_never_came_is_answered_with_503(
    request_: bytes, body: bytes
) -> None:
    client = Client(Scene(NO_NODES)).connect()
    assert client.send(request_) == []
    assert client.scene.pass_time(0.06) == [answer(client, HEAD_503 + body, len(request_))]


@pytest.mark.parametrize(("request_", "body"), [(GET, BODY_503), (b"HEAD" + GET[3:], b"")])
def test_full_flow_table_is_answered_with_503(request_: bytes, body: bytes) -> None:
    scene = Scene(limits=Limits(flows=1))
    connected(scene, port=50000)
    client = Client(scene).connect()
    assert client.send(request_) == [answer(client, HEAD_503 + body, len(request_))]
    assert scene.counters["flow_table_full"] == 1
    assert scene.core.sizes["flows"] == 1


def test_fin_of_the_request_is_acknowledged_with_the_answer(client: Client) -> None:
    assert client.send(BAD, flags=ACK | FIN) == [answer(client, ANSWER_400, len(BAD) + 1)]


def test_bytes_behind_a_gap_are_not_acknowledged(client: Client) -> None:
    assert client.send(b"tail", at=len(BAD) + 10) == []
    assert client.send(BAD) == [answer(client, ANSWER_400, len(BAD))]


def test_answer_is_made_again_for_each_retransmission(client: Client) -> None:
    expected = [answer(client, ANSWER_400, len(BAD))]
    assert [client.send(BAD) for _ in range(3)] == [expected] * 3
    client.clock += 400
    assert client.send(BAD) == [answer(client, ANSWER_400, len(BAD))]


def test_longer_retransmission_has_more_of_it_acknowledged(client: Client) -> None:
    client.send(BAD)
    assert client.send(BAD + b"more") == [answer(client, ANSWER_400, len(BAD) + 4)]


def test_body_that_keeps_coming_is_acknowledged_and_the_answer_repeated_until_it_is_acknowledged(
    client: Client,
) -> None:
    client.send(BAD)
    at, closed = len(BAD), len(ANSWER_400) + 1
    assert client.send(b"x" * 1000, at=at) == [answer(client, ANSWER_400, at + 1000)]
    assert client.send(b"x" * 1000, at=at + 1000, ack=closed) == [acknowledgment(client, closed, at + 2000)]
    assert client.send(b"x" * 1000, at=at + 3000, ack=closed) == [acknowledgment(client, closed, at + 2000)]


def test_fin_of_the_client_is_acknowledged_and_its_repetition_too(client: Client) -> None:
    client.send(BAD)
    closed = len(ANSWER_400) + 1
    assert client.send(at=len(BAD), ack=closed) == []
    last = acknowledgment(client, closed, len(BAD) + 1)
    assert client.send(at=len(BAD), ack=closed, flags=ACK | FIN) == [last]
    assert client.send(at=len(BAD), ack=closed, flags=ACK | FIN) == [last]
    assert client.send(at=len(BAD) + 1, ack=closed) == []
    assert "resets_sent" not in client.scene.counters


def test_keepalive_probe_of_an_answered_client_is_answered(client: Client) -> None:
    client.send(BAD)
    assert client.send(at=len(BAD) - 1) == [answer(client, ANSWER_400, len(BAD))]


def test_rst_forgets_an_answered_connection_only_at_the_expected_number(client: Client) -> None:
    client.send(BAD)
    assert client.send(at=len(BAD) - 1, flags=RST) == []
    assert client.scene.core.sizes["answered"] == 1
    assert client.send(at=len(BAD), flags=RST) == []
    assert client.scene.core.sizes["answered"] == 0


@pytest.mark.parametrize(("at", "ack"), [(0, len(ANSWER_400) + 2), (0, -1), (20_000, 0), (-20_000, 0)])
def test_segment_that_cannot_belong_to_the_answered_connection_is_ignored(
    client: Client, at: int, ack: int
) -> None:
    client.send(BAD)
    assert client.send(b"x", at=at, ack=ack) == []
    assert client.send(BAD) == [answer(client, ANSWER_400, len(BAD))]


def test_answered_connection_is_forgotten_after_a_minute(client: Client) -> None:
    client.send(BAD)
    client.scene.pass_time(59.9)
    assert client.send(at=len(BAD), ack=1, flags=ACK | FIN) == [answer(client, ANSWER_400, len(BAD) + 1)]
    client.scene.pass_time(0.2)
    assert client.send(at=len(BAD), ack=1) == [reset_of(client, ack=1)]


@pytest.mark.parametrize("first", [(BAD, ACK), (b"", ACK | FIN)])
def test_connection_for_whose_answer_there_is_no_room_is_reset(first: tuple[bytes, int]) -> None:
    scene = Scene(limits=Limits(answered=1))
    Client(scene, port=50000).connect().send(BAD)
    client = Client(scene).connect()
    assert client.send(first[0], flags=first[1]) == [reset_of(client)]
    assert scene.counters["answered_table_full"] == 1
    assert scene.core.sizes["answered"] == 1
    assert scene.core.sizes["verified"] == 0


def test_syn_of_an_answered_port_begins_another_connection(client: Client) -> None:
    client.send(BAD)
    newer = Client(client.scene, isn=123).connect()
    assert newer.send(GET) == [handoff_packet(newer, GET, window=64256)]


def test_number_of_the_answer_wraps() -> None:
    client = Client(Scene(), isn=2**32 - 3).connect()
    (made,) = client.send(BAD)
    assert made == answer(client, ANSWER_400, len(BAD))
    assert IP(made)[TCP].ack == 3


def test_nodes_of_weight_0_are_known_and_take_no_connections() -> None:
    given = {name: (packed(address), 0) for name, address in NODES.items()}
    nodes, table = make_nodes(packed(VIP), PORT, INDEX, given)
    assert (set(nodes), table) == (set(NODES), None)


@pytest.mark.parametrize("request_", [BAD, b"\x16\x03\x01\x02\x00\x01\x00"])
def test_damaged_first_payload_is_dropped_rather_than_answered_and_its_repetition_judged_anew(
    client: Client, request_: bytes
) -> None:
    packet = with_field(client.segment(request_), 36, 0xBAD)
    assert client.scene.receive(packet) == []
    assert client.scene.counters["dropped_bad_checksum"] == 1
    assert client.send(GET) == [handoff_packet(client, GET, window=64256)]
