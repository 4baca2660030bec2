"""Memory stays bounded, whatever comes."""

import gc
import itertools
import struct
import tracemalloc

from balancer.core.engine import BalancerCore
from balancer.core.flow_table import DictFlowTable
from balancer.core.service import Limits
from common.wire.offload import NEEDS_CHECKSUM, Offload, Packet
from tests.unit.balancer.scene import ACK, FIN, GET, RST, SYN, WINDOW, Client, Scene, connected
from tests.unit.wire.packets import Described, built, with_ip_checksum

FLOWS = 4_000
MAX_FLOW_BYTES = 900
UNFINISHED = Offload(flags=NEEDS_CHECKSUM, checksum_start=20, checksum_offset=16)


def stranger(packet: bytes, number: int) -> bytes:
    """The packet from another client, its TCP checksum left to be computed."""
    return with_ip_checksum(packet[:12] + struct.pack(">I", 0x0A00_0000 + number) + packet[16:])


def open_flows(core: BalancerCore, count: int, now: float) -> None:
    """Each with its own addresses and cookie."""
    syn = built(Described(seq=7, ack=0, flags=SYN, options=Client(Scene()).syn_options()))
    payload = built(
        Described(
            seq=8, flags=ACK, options=(("NOP", None), ("NOP", None), ("Timestamp", (9, 0))), payload=GET
        )
    )
    for number in range(count):
        now += 1e-5
        (syn_ack,) = core.receive(Packet(stranger(syn, number), UNFINISHED), now)
        isn, stamp = syn_ack.data[24:28], syn_ack.data[20 + 28 : 20 + 32]
        ack = (int.from_bytes(isn, "big") + 1) % 2**32
        first = payload[:28] + struct.pack(">I", ack) + payload[32:48] + stamp + payload[52:]
        assert len(core.receive(Packet(stranger(first, number), UNFINISHED), now)) == 1


def test_an_idle_flow_takes_less_than_a_kilobyte() -> None:
    scene = Scene()
    gc.collect()
    tracemalloc.start()
    try:
        open_flows(scene.core, FLOWS, scene.now)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert scene.core.sizes == {"half_open": 0, "verified": 0, "collecting": 0, "flows": FLOWS, "answered": 0}
    assert used / FLOWS < MAX_FLOW_BYTES


def test_deadlines_of_busy_flows_do_not_pile_up() -> None:
    client = connected(Scene())
    flows = client.scene.core._connections.flows
    assert isinstance(flows, DictFlowTable)
    deadlines = flows._idle
    fin = client.segment(at=len(GET), flags=ACK | FIN)
    acknowledgment = client.segment(at=len(GET) + 1)
    for _ in range(1000):
        client.scene.pass_time(1.5)
        client.scene.receive(fin)
        client.scene.receive(acknowledgment)
    assert len(deadlines._bucket_of) == 1
    assert len(deadlines._buckets) < 70
    assert len(deadlines._order) == len(deadlines._buckets)


def test_flow_that_was_replaced_leaves_no_deadline_behind() -> None:
    scene = Scene()
    connected(scene)
    newer = Client(scene, isn=77).greet()
    newer.send(b"GE")
    newer.send(at=2, flags=RST)
    assert scene.core.sizes == dict.fromkeys(scene.core.sizes, 0)
    assert scene.core.next_deadline() is None


def test_flood_of_syns_fills_the_half_open_table_and_nothing_else() -> None:
    scene = Scene(limits=Limits(half_open=50))
    syn = Client(scene).syn()
    assert all(len(scene.receive(stranger(syn, number), UNFINISHED)) == 1 for number in range(200))
    assert scene.core.sizes == {"half_open": 50, "verified": 0, "collecting": 0, "flows": 0, "answered": 0}
    scene.pass_time(60.0)
    assert scene.core.sizes["half_open"] == 0
    assert scene.core.next_deadline() is None


def test_bytes_that_are_held_are_counted_with_what_surrounds_them() -> None:
    scene = Scene(limits=Limits(collecting_bytes=100_000))
    clients = [Client(scene, port=port).connect() for port in range(50000, 50004)]
    for client, at in itertools.product(clients, range(10, 110)):
        assert client.send(b"x", at=at) == []
    assert scene.core._connections.collecting_bytes <= 100_000
    held = sum(
        len(collecting.segments)
        for client in clients
        if (collecting := scene.core._connections.collecting.get(client.key)) is not None
    )
    assert held == 100_000 // 513
    scene.pass_time(61.0)
    assert scene.core._connections.collecting_bytes == 0
    assert scene.core.next_deadline() is not None  # of the verified connections that were never collected


def test_connection_holds_no_more_segments_than_its_share() -> None:
    client = Client(Scene()).connect()
    for at in range(10, 10 + 400):
        client.send(b"x", at=at)
    collecting = client.scene.core._connections.collecting.get(client.key)
    assert collecting is not None
    assert len(collecting.segments) == 256
    assert sum(len(segment.payload) for segment in collecting.segments) <= WINDOW


def test_nothing_is_left_when_all_connections_are_over() -> None:
    scene = Scene()
    connected(scene)
    Client(scene, port=50001).greet()
    Client(scene, port=50002).connect()
    Client(scene, port=50003).connect().send(b"GE")
    Client(scene, port=50004).connect().send(GET[9:], at=9)
    Client(scene, port=50005).connect().send(b"GET\r\n")
    scene.pass_time(8000.0)
    assert scene.core.sizes == dict.fromkeys(scene.core.sizes, 0)
    assert scene.core._connections.collecting_bytes == 0
    assert scene.core.next_deadline() is None
