"""A connection's first payload, by the programs as by the core."""

from collections.abc import Iterator

import pytest
import xxhash
from scapy.layers.inet import IP, TCP

from balancer.core.service import Limits, NonHttp
from balancer.ebpf import abi
from common.bpf.abi import FLOW_ID, FlowId
from common.hashing.request_key import KeySpec
from tests.root.bpf.balancer_twin import LINK, REDIRECT, SHOT, Twin
from tests.unit.balancer.scene import (
    ACK,
    CLIENT,
    FIN,
    GET,
    NODES,
    PSH,
    Client,
    connected,
    forwarded,
    handoff_packet,
    make_service,
    packed,
    reset_of,
)
from tests.unit.wire.packets import with_field

pytestmark = pytest.mark.root

LIMITS = Limits(flows=1000, verified=1000, half_open=1000)


@pytest.fixture
def scene() -> Iterator[Twin]:
    with Twin() as twin:
        yield twin


@pytest.mark.parametrize("is_verified", [False, True])
@pytest.mark.parametrize("scale", [None, 0, 14])
def test_first_payload_becomes_a_handoff_with_what_was_negotiated(
    scene: Twin, scale: int | None, is_verified: bool
) -> None:
    for mss in (None, 536, 1433):
        for sack in (False, True):
            for stamps in (False, True):
                port = 50000 + (mss or 0) + 2 * sack + stamps
                client = Client(scene, port=port, mss=mss, scale=scale, sack=sack, stamps=stamps).greet()
                if is_verified:
                    client.send()
                window = min(502 << (scale or 0), 65535)
                assert client.send(GET) == [handoff_packet(client, GET, window=window)]
    scene.check_tables()


@pytest.mark.parametrize("tos", [0x00, 0x01, 0x02, 0x03, 0xB9])
def test_ecn_bits_go_with_the_handoff_and_the_dscp_does_not(scene: Twin, tos: int) -> None:
    client = Client(scene).connect()
    assert client.send(GET, tos=tos) == [handoff_packet(client, GET, window=502 << 7, ecn=tos & 3)]


@pytest.mark.parametrize("size", [4, 5, 100, 1424])
def test_payload_of_any_size_goes_whole(scene: Twin, size: int) -> None:
    payload = (b"GET /" + b"a" * 20 + b" HTTP/1.1\r\n" + b"x" * 1500)[: size if size > 99 else 99 + size]
    client = Client(scene).connect()
    assert client.send(payload, flags=ACK | PSH) == [handoff_packet(client, payload, window=502 << 7)]


def test_fin_behind_the_payload_is_told(scene: Twin) -> None:
    client = Client(scene).connect()
    assert client.send(GET, flags=ACK | FIN) == [handoff_packet(client, GET, window=502 << 7, fin=True)]
    scene.check_tables()


def test_wrong_tcp_checksum_stays_as_wrong_in_the_handoff(scene: Twin) -> None:
    client = Client(scene).connect()
    (made,) = scene.receive(with_field(client.segment(GET), 36, 0x1234))
    right = handoff_packet(client, GET, window=502 << 7)
    assert with_field(made, 36, 0) == with_field(right, 36, 0)
    assert made != right


@pytest.mark.parametrize("key", [KeySpec("path"), KeySpec("uri"), KeySpec("segments", 2)])
def test_node_is_that_of_the_key(key: KeySpec) -> None:
    service = make_service()._replace(key=key, hash_seed=0x0123_4567_89AB_CDEF)
    nodes = set()
    with Twin(service, limits=LIMITS) as scene:
        for port in range(50000, 50060):
            client = Client(scene, port=port).connect()
            target = (
                f"/a/%7eb//./{port}/c.ts?q={port}%2F" if key.kind == "uri" else f"/a/{port % 7}/%62?x={port}"
            )
            client.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            nodes.add(client.node)
        assert scene.programs.counters["passed_up"] == 0
    assert nodes == set(NODES)


def test_retransmission_is_handed_off_again_to_the_same_node(scene: Twin) -> None:
    client = connected(scene)
    scene.pass_time(3.0)
    client.clock += 3000
    assert client.send(GET[:50]) == [handoff_packet(client, GET[:50], window=502 << 7)]
    scene.pass_time(58.0)
    packet = client.segment(GET)
    assert scene.receive(packet) == [forwarded(packet, client.node_address())]


def test_payload_of_a_new_handshake_replaces_the_flow_and_an_ack_does_not(scene: Twin) -> None:
    old = connected(scene)
    new = Client(scene, isn=77_000, scale=2, stamps=False).greet()
    assert new.send() == []
    scene.check_tables()
    packet = old.segment(b"more", at=len(GET))
    assert scene.receive(packet) == [forwarded(packet, old.node_address())]
    assert new.send(GET) == [handoff_packet(new, GET, window=502 << 2)]
    scene.check_tables()


def test_flow_that_was_contested_is_ordinary_again_after_a_minute(scene: Twin) -> None:
    client = connected(scene)
    Client(scene, isn=77_000).greet()
    for seconds in (59.0, 2.0, 1.0):
        scene.pass_time(seconds)
        packet = client.segment(b"more", at=len(GET))
        assert scene.receive(packet) == [forwarded(packet, client.node_address())]
    assert scene.programs.counters["forward_plain"] == 1
    scene.check_tables()


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0"])
def test_what_is_not_http_is_reset_if_its_checksum_is_right(scene: Twin, first: bytes) -> None:
    client = Client(scene).connect()
    assert scene.receive(with_field(client.segment(first), 36, 0x1234)) == []
    client.connect()
    assert client.send(first) == [reset_of(client)]
    scene.check_tables()


def test_what_is_not_http_goes_to_the_node_of_its_4_tuple_by_option() -> None:
    with Twin(make_service()._replace(non_http=NonHttp.HASH), limits=LIMITS) as scene:
        for port in range(50000, 50010):
            client = Client(scene, port=port).connect()
            assert client.send(b"\x16\x03\x01") == [handoff_packet(client, b"\x16\x03\x01", window=502 << 7)]
        assert scene.programs.counters["passed_up"] == 0


# What Python decides


@pytest.mark.parametrize(
    "first",
    [
        b"GET /film",
        b"GET http://v/film HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"CONNECT v:443 HTTP/1.1\r\n",
        b"GET \x01 HTTP/1.1\r\n",
        b"GET /film\r\n",
        b"GET /" + b"a" * 1419,
    ],
)
def test_what_the_programs_do_not_read_is_passed_up_as_it_came(scene: Twin, first: bytes) -> None:
    client = Client(scene).connect()
    client.send(first)
    assert scene.programs.counters["passed_up"] == 1
    scene.pass_time(1.0)
    client.send(first)
    scene.release()
    assert scene.claims.count() == (0 if client.node else 1)
    scene.check_tables()


def test_every_segment_of_a_claimed_connection_is_passed_up_until_it_has_its_node(scene: Twin) -> None:
    client = Client(scene).connect()
    assert client.send(GET[:10]) == []
    assert client.send() == []
    scene.receive(Client(scene, isn=77_000).syn())
    assert scene.programs.counters["passed_up"] == 3
    assert len(client.send(GET[10:], at=10)) == 2
    assert scene.claims.count() == 0
    packet = client.segment(at=len(GET))
    assert scene.receive(packet) == [forwarded(packet, client.node_address())]
    assert scene.programs.counters["passed_up"] == 4


def test_payload_too_large_for_a_handoff_that_is_no_superpacket_is_cut_by_python(scene: Twin) -> None:
    client = Client(scene).connect()
    first = GET + b"x" * 1400
    assert len(client.send(first)) == 2
    assert len(client.send(first)) == 2
    assert scene.programs.counters["passed_up"] == 2


def test_without_a_node_python_answers() -> None:
    with Twin(make_service()._replace(table=None), limits=LIMITS) as scene:
        (answer,) = Client(scene).connect().send(GET)
        assert bytes(IP(answer)[TCP].payload).startswith(b"HTTP/1.1 503 ")


def test_full_flow_table_is_answered_by_python() -> None:
    with Twin(limits=Limits(flows=1, verified=10, half_open=10)) as scene:
        connected(scene)
        (answer,) = Client(scene, port=50000).connect().send(GET)
        assert bytes(IP(answer)[TCP].payload).startswith(b"HTTP/1.1 503 ")


def node_of_4_tuple(client: Client) -> str:
    service = client.scene.core.services.of_client(client.key)
    assert service is not None
    table = service.table
    assert table is not None
    return table.lookup(xxhash.xxh64(client.key, 0).intdigest())


def test_beyond_the_rate_of_claims_the_node_is_that_of_the_4_tuple() -> None:
    with Twin(claims_per_second=0) as scene:
        clients = [Client(scene, port=port).connect() for port in range(50000, 50008)]
        out_of_order = Client(scene, port=51000).connect().segment(b"film", at=5)
        for client in clients:
            done = scene.programs.run(client.segment(b"GET /film"))
            node = NODES[node_of_4_tuple(client)]
            expected = handoff_packet(client, b"GET /film", window=502 << 7, node=node)
            assert (done.verdict, done.packet[len(LINK) :]) == (REDIRECT, expected)
        assert scene.programs.run(out_of_order).verdict == SHOT
        assert scene.programs.counters["passed_up_limited"] == 9
        assert scene.programs.counters["passed_up"] == 0


def test_node_that_python_chose_first_is_adopted(scene: Twin) -> None:
    client = Client(scene).connect()
    other = Client(scene).connect()
    assert other.send(GET) == [handoff_packet(client, GET, window=502 << 7)]
    key = FLOW_ID.pack(FlowId(packed(CLIENT), client.port.to_bytes(2, "big"), 5))
    flows = scene.programs.map("flows")
    row = abi.FLOW.unpack(flows.lookup(key) or b"")
    address = next(address for name, address in NODES.items() if name != client.node)
    flows.update(key, abi.FLOW.pack(row._replace(node=packed(address))))
    done = scene.programs.run(client.segment(GET))
    assert done.packet[len(LINK) :] == handoff_packet(client, GET, window=502 << 7, node=address)


def test_without_a_key_nothing_is_handed_off(scene: Twin) -> None:
    client = Client(scene).connect()
    scene.programs.map("handoff_keys").delete(bytes(4))
    assert scene.programs.run(client.segment(GET)).verdict == SHOT
    assert scene.programs.counters["dropped_unsigned"] == 1
