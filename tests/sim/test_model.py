"""The model endpoints themselves: client straight to server, with no daemon's part but passing packets on."""

import random

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPerror

from common.wire.offload import Packet
from tests.sim import expect, icmp
from tests.sim.endpoint import Profile
from tests.sim.link import Line, Weather, every, nth
from tests.sim.network import CLIENT, PROMISED, ROUTER, VIPS, Network, destination_of
from tests.sim.segment import ACK, PSH, Options, Segment, emit, parse
from tests.sim.timeline import Alarm, Timeline

STORM = Weather(loss=0.03, duplication=0.03, reordering=0.05)


def direct(network: Network) -> bytes:
    return network.node.backends[0]


@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
def test_scapy_reads_what_the_model_emits(payload: bytes) -> None:
    options = Options(stamps=(7, 9), blocks=((100, 200), (300, 400)))
    segment = Segment(
        (CLIENT, 40000), (VIPS[0], 80), 0xFFFFFFFF, 5, ACK | PSH, 512, options, payload, tos=0b101
    )
    packet = IP(emit(segment).data)
    assert (packet.src, packet.dst, packet.tos, packet.ttl) == ("203.0.113.7", "192.168.33.10", 5, 64)
    tcp = packet[TCP]
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack, tcp.window) == (40000, 80, 0xFFFFFFFF, 5, 512)
    assert ("Timestamp", (7, 9)) in tcp.options
    assert ("SAck", (100, 200, 300, 400)) in tcp.options
    assert bytes(tcp.payload) == payload
    checksums = (packet.chksum, tcp.chksum)
    del packet.chksum, tcp.chksum
    made = IP(bytes(packet))
    assert (made.chksum, made[TCP].chksum) == checksums


def test_the_model_reads_what_scapy_emits_and_notices_damage() -> None:
    options = [("MSS", 1400), ("WScale", 9), ("SAckOK", b"")]
    tcp = TCP(sport=1, dport=2, seq=3, ack=4, flags="SA", options=options)
    data = bytes(IP(src="203.0.113.7", dst="192.168.33.10") / tcp)
    read = parse(Packet(data))
    assert read == Segment((CLIENT, 1), (VIPS[0], 2), 3, 4, 0x12, 8192, Options(1400, 9, True))
    assert parse(Packet(data[:-1] + b"\x55")).damaged


def test_a_partial_checksum_is_whole_only_with_its_pseudo_header() -> None:
    segment = Segment((CLIENT, 1), (VIPS[0], 2), 3, 4, ACK, 5, payload=b"x" * 4000, gso_size=1400)
    packet = emit(segment)
    assert parse(packet) == segment
    moved = Packet(packet.data[:12] + VIPS[1] + packet.data[16:], packet.offload)
    assert parse(moved).damaged


def test_scapy_reads_the_routers_error() -> None:
    packet = emit(Segment((VIPS[0], 80), (CLIENT, 40000), 77, 4, ACK, 5, payload=b"x" * 1400))
    error = icmp.fragmentation_needed(ROUTER, packet, 1300)
    read = IP(error.data)
    assert (read[ICMP].type, read[ICMP].code, read[ICMP].nexthopmtu) == (3, 4, 1300)
    assert read[IPerror].src == "192.168.33.10"
    assert icmp.parse(error) == ((VIPS[0], 80), (CLIENT, 40000), 77, 1300, True)


def test_an_alarm_that_was_moved_rings_once_at_its_last_time() -> None:
    timeline, rung = Timeline(0.0), list[float]()
    alarm = Alarm(timeline, lambda: rung.append(timeline.now))
    for at in (3.0, 1.0, 2.0):
        alarm.set(at)
    timeline.run(10.0)
    alarm.set(11.0)
    alarm.set(None)
    timeline.run(10.0)
    assert rung == [2.0]


def test_a_line_drops_and_delays_what_its_faults_say() -> None:
    timeline, arrived = Timeline(0.0), list[tuple[float, bytes]]()
    line = Line(timeline, random.Random(1), 1.0, lambda packet: arrived.append((timeline.now, packet.data)))
    line.add(nth(2, lambda _: True, ()))
    line.add(nth(1, lambda packet: packet.data == b"c", (0.0, 5.0)))
    line.add(every(lambda packet: packet.data == b"d", (2.0,)))
    for name in (b"a", b"b", b"c", b"d"):
        line.send(Packet(name))
    timeline.run(10.0)
    assert arrived == [(1.0, b"a"), (1.0, b"c"), (3.0, b"d"), (6.0, b"c")]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("profile", [Profile(), Profile(sack=False, timestamps=False, scale=None)])
def test_both_ends_agree_in_a_storm(seed: int, profile: Profile) -> None:
    network = Network(seed, server=profile)
    network.keep_no_order()
    network.client_to_node.have(STORM)
    network.node_to_client.have(STORM)
    body = random.Random(seed).randbytes(50_000)
    fetch = network.fetch(method="POST", body=body, vip=direct(network), profile=profile)
    network.finish(fetch)
    expect.posted(network, fetch, body)
    again = network.fetch("/object/90000", vip=direct(network), profile=profile)
    network.finish(again)
    expect.answered(again, "/object/90000")
    expect.clean(network)
    assert network.retransmissions() > 0


def test_a_lossless_path_needs_no_retransmission() -> None:
    network = Network()
    fetch = network.fetch("/object/500000", vip=direct(network))
    network.finish(fetch)
    expect.answered(fetch, "/object/500000")
    expect.lossless(network)


def test_one_lost_segment_is_repaired_by_fast_retransmit_alone() -> None:
    for profile in (PROMISED, PROMISED._replace(sack=False)):
        network = Network(server=profile)
        network.node_to_client.add(nth(9, lambda packet: len(packet.data) > 1000, ()))
        fetch = network.fetch("/object/100000", vip=direct(network))
        network.finish(fetch)
        expect.answered(fetch, "/object/100000")
        assert network.retransmissions() == 1
        assert network.timeline.now < 5001.0
        expect.clean(network)


def test_nagle_holds_a_small_segment_back_and_not_without() -> None:
    for nagle, parts in ((True, 2), (False, 3)):
        network = Network()
        writes = [(0.0, b"GET /object"), (0.001, b"/10 HTTP/1.1\r\n"), (0.002, b"Connection: close\r\n\r\n")]
        fetch = network.fetch(writes=writes, vip=direct(network), profile=Profile(nagle=nagle))
        network.finish(fetch)
        expect.answered(fetch, "/object/10")
        sent = [parse(packet) for _, packet in network.client_to_node.carried]
        assert sum(bool(segment.payload) for segment in sent) == parts
        expect.lossless(network)


def test_a_foreign_packet_and_a_wrong_window_are_reported() -> None:
    network = Network()
    fetch = network.fetch("/object/1000", close=False, vip=direct(network))
    network.run(1.0)
    connection = fetch.connection
    start = connection.receiver.wire(connection.receiver.edge)
    stamps = (network.node.host.ticks(), network.client.ticks())
    forged = Segment(
        connection.remote, connection.local, start, connection.sender.wire(connection.sender.nxt), ACK, 1
    )
    network.client.receive(emit(forged._replace(payload=b"beyond", options=Options(stamps=stamps), tos=4)))
    network.client.receive(emit(forged._replace(source=(ROUTER, 80))))
    found = " ".join(network.client.violations)
    for word in ("DSCP 1", "beyond the window", "was never sent", "packet from 203.0.113.1"):
        assert word in found
    assert destination_of(network.client_to_node.carried[-1][1]) == ROUTER
