"""A health check's packets, byte by byte, and what it makes of hostile ones."""

import random
from functools import partial
from ipaddress import IPv4Address

import pytest
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Raw

from balancer.core.answer import MAX_HEAD, Answer
from balancer.core.hearsay import Failure, Hearsay
from balancer.core.probe import WINDOW, Check, Probe, make_request
from common.wire import handoff, icmp, segment
from common.wire.handoff import Handoff
from common.wire.offload import Packet
from tests.unit.wire.handoffs import scapy_packet
from tests.unit.wire.packets import NODE, VIP, siphash

OWN = "192.168.33.1"
PORT = 61_234
ISN, BALANCER_ISN = 0xFFFFFFF0, 0xFFFFFFFE
WALL = 1_800_000_123
KEY = bytes(range(16))
REQUEST = (
    b"GET /health HTTP/1.1\r\nHost: www.example.com\r\n"
    b"User-Agent: l3dsr-health/1.2.3\r\nConnection: close\r\n\r\n"
)
NEXT = (ISN + 1 + len(REQUEST)) % 2**32
FIRST = (BALANCER_ISN + 1) % 2**32
OK = b"HTTP/1.1 200 OK\r\n\r\n"


def sign(message: Handoff) -> Handoff:
    return handoff.sign(message._replace(key_id=1), partial(siphash, KEY))


def started(timeout: float = 1.0, expect: tuple[range, ...] = (range(200, 400),)) -> Probe:
    vip, node, own = (IPv4Address(address).packed for address in (VIP, NODE, OWN))
    check = Check(vip, 80, 5, node, REQUEST, expect, timeout)
    probe = Probe(check, (own, PORT), (ISN, BALANCER_ISN), sign, lambda: WALL)
    probe.begin(100.0)
    return probe


def said(
    probe: Probe,
    payload: bytes = b"",
    at: int = 0,
    flags: str = "A",
    *,
    ack: int = NEXT,
    source: str = VIP,
    sport: int = 80,
    now: float = 100.1,
) -> list[bytes]:
    """Give it a segment from the node; ``at`` counts from the answer's first byte."""
    ends = TCP(sport=sport, dport=PORT, seq=(FIRST + at) % 2**32, ack=ack, flags=flags)
    packet = raw(IP(src=source, dst=OWN) / ends / Raw(payload))
    received = segment.parse_untrusted(Packet(packet))
    return [packet.data for packet in probe.receive(received, now)]


def ours(ack: int, flags: str) -> bytes:
    """A segment of the check, as scapy writes it."""
    return bytes(
        raw(
            IP(src=OWN, dst=NODE, tos=5 << 2, id=0, flags="DF", ttl=64)
            / TCP(sport=PORT, dport=80, seq=NEXT, ack=ack % 2**32, flags=flags, window=WINDOW)
        )
    )


def failed(probe: Probe) -> Failure | None:
    assert probe.result is not None
    assert not probe.result.ok
    return probe.result.failure


def test_request_names_path_host_and_who_asks() -> None:
    assert make_request("/health", "www.example.com", "1.2.3") == REQUEST
    with pytest.raises(ValueError, match=r"1\d+ bytes is longer than 1424"):
        make_request("/" + "a" * 1400, "www.example.com", "1.2.3")


def test_first_packet_is_a_handoff_of_an_ordinary_client() -> None:
    probe = started()
    (packet,) = Probe(
        probe.check, (IPv4Address(OWN).packed, PORT), (ISN, BALANCER_ISN), sign, lambda: WALL
    ).begin(0)
    message = Handoff(
        client=IPv4Address(OWN).packed,
        node=IPv4Address(NODE).packed,
        client_port=PORT,
        service_port=80,
        vip_index=5,
        seq=ISN,
        ack=BALANCER_ISN,
        window=8192,
        mss=1424,
        window_scale=None,
        sack_permitted=False,
        timestamps=None,
        promised_scale=0,
        fin=False,
        time=WALL % 65536,
        payload=REQUEST,
        key_id=1,
    )
    unsigned = scapy_packet(message)
    tag = siphash(KEY, unsigned[12:24] + b"\x05" + unsigned[24:32] + unsigned[40:68])
    assert packet.data == scapy_packet(message._replace(tag=tag))


def test_answer_is_acknowledged_and_its_end_reset_with_the_vips_dscp() -> None:
    probe = started()
    assert said(probe) == []
    assert said(probe, OK) == [ours(FIRST + len(OK), "A")]
    assert probe.result is not None
    assert (probe.result.ok, probe.is_closed) == (True, False)
    assert probe.result.seconds == pytest.approx(0.1)
    assert said(probe, at=len(OK), flags="FA") == [ours(FIRST + len(OK) + 1, "RA")]
    assert probe.is_closed


def test_what_comes_after_the_end_is_reset_again_unless_it_is_a_reset() -> None:
    probe = started()
    reset = ours(FIRST + len(OK) + 1, "RA")
    assert said(probe, OK, flags="FPA") == [reset]
    assert said(probe, OK, flags="FPA") == [reset]
    assert said(probe, at=len(OK) + 1, flags="R") == []


def test_segments_of_strangers_after_the_end_are_answered_by_nothing() -> None:
    probe = started()
    said(probe, OK, flags="FPA")
    assert said(probe, OK, ack=NEXT + 5) == []
    assert said(probe, OK, flags="P") == []
    assert said(probe, flags="S", ack=0, source="10.1.1.1", sport=8080) == []


def test_answer_in_any_order_is_put_together() -> None:
    pieces = [(at, OK[at : at + 4]) for at in range(0, len(OK), 4)]
    for seed in range(50):
        probe, chance = started(), random.Random(seed)
        mixed = pieces + chance.choices(pieces, k=3)
        chance.shuffle(mixed)
        for at, piece in mixed:
            said(probe, piece, at)
        assert probe.result is not None
        assert probe.result.ok


@pytest.mark.parametrize("ack", [NEXT + 1, NEXT - 1, (ISN + 1) % 2**32, 0])
def test_answer_that_does_not_acknowledge_exactly_the_request_is_not_believed(ack: int) -> None:
    probe = started()
    assert said(probe, OK, ack=ack % 2**32) == []
    assert said(probe, flags="RA", ack=(ack + 7) % 2**32) == []
    assert said(probe, flags="SA", ack=ack % 2**32) == []
    assert probe.result is None


@pytest.mark.parametrize(
    ("flags", "ack"), [("SA", (ISN + 1) % 2**32), ("SA", NEXT), ("PA", NEXT), ("RA", (ISN + 1) % 2**32)]
)
def test_another_source_that_knows_our_numbers_is_named(flags: str, ack: int) -> None:
    probe = started()
    assert said(probe, at=77_777, flags=flags, ack=ack, source="10.1.1.1", sport=8080) == [ours(FIRST, "RA")]
    assert failed(probe) is Failure.NOT_FROM_VIP
    probe = started()
    assert said(probe, at=77_777, flags=flags, ack=ack, source=NODE) == []
    assert (probe.is_silent, probe.result) == (True, None)
    probe.explain(Hearsay(problems=("DSCP 1 arrives as DSCP 0",)), 100.1)
    assert failed(probe) is Failure.BRIDGE_SILENT
    assert probe.result is not None
    assert probe.result.text.endswith("no packetbridge takes what is sent to it; DSCP 1 arrives as DSCP 0")


def test_other_source_without_our_numbers_is_nobody() -> None:
    probe = started()
    assert said(probe, OK, source="10.1.1.1", ack=NEXT + 5) == []
    assert said(probe, flags="R", source="10.1.1.1") == []
    assert probe.result is None


def test_reset_tells_a_refusal_from_a_broken_answer() -> None:
    for before, failure, text in (
        ([], Failure.BACKEND_REFUSED, "the backend refuses connections"),
        ([b""], Failure.BAD_ANSWER, "the backend took the request and reset the connection"),
        (
            [b"HTTP/"],
            Failure.BAD_ANSWER,
            "the backend sent 5 bytes without a status line and reset the connection",
        ),
    ):
        probe = started()
        for payload in before:
            said(probe, payload)
        assert said(probe, at=sum(map(len, before)), flags="R") == []
        assert probe.result is not None
        assert (probe.result.failure, probe.result.text, probe.is_closed) == (failure, text, True)


def test_reset_elsewhere_is_not_believed_and_explains_a_gap_at_most() -> None:
    probe = started()
    for at in (-1, 5, 70_000, 2**31):
        said(probe, at=at, flags="R")
    assert probe.result is None
    probe.on_timeout(101.0)
    assert failed(probe) is Failure.ANSWER_LOST


def test_handoff_is_sent_four_times_and_not_again_once_the_node_has_spoken() -> None:
    probe = started(timeout=2.0)
    times = []
    while (deadline := probe.next_deadline()) is not None:
        sent = probe.on_timeout(deadline)
        times.append((deadline - 100.0, len(sent)))
    assert times == [(0.5, 1), (1.0, 1), (1.5, 1), (2.0, 0)]
    assert probe.is_silent
    probe = started(timeout=2.0)
    said(probe)
    assert probe.next_deadline() == 102.0
    assert [packet.data for packet in probe.on_timeout(102.0)] == [ours(FIRST, "RA")]
    assert failed(probe) is Failure.BACKEND_SILENT


def icmp_error(kind: int, code: int, quoted: bytes) -> icmp.IcmpError:
    return icmp.parse_untrusted(raw(ICMP(type=kind, code=code) / Raw(quoted[:28])))


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        (3, 0, "there is no route to its network"),
        (3, 1, "there is no such host"),
        (3, 3, "it is refused"),
        (3, 4, "the way to it is too narrow for a handoff (path MTU)"),
        (3, 13, "a filter forbids it"),
        (11, 0, "the way to it is too long (a loop?)"),
    ],
)
def test_icmp_error_about_our_packet_is_a_verdict(kind: int, code: int, text: str) -> None:
    probe = started()
    probe.receive_error(icmp_error(kind, code, ours(0, "A")), bytes([10, 0, 0, 9]), 100.2)
    assert failed(probe) is Failure.NODE_UNREACHABLE
    assert probe.result is not None
    assert probe.result.text == f"{text}, says 10.0.0.9 (ICMP type {kind} code {code})"


def test_icmp_error_that_quotes_other_numbers_is_nobodys() -> None:
    probe = started()
    packet = bytearray(ours(0, "A"))
    packet[24] ^= 1
    assert probe.receive_error(icmp_error(3, 1, bytes(packet)), bytes(4), 100.2) == []
    assert probe.result is None


def test_hostile_segments_never_raise_and_are_bounded_in_memory() -> None:
    chance = random.Random(1)
    for _ in range(40):
        probe = started()
        for _ in range(50):
            said(
                probe,
                chance.randbytes(chance.choice((0, 1, 100, 9000))),
                chance.choice((0, 1, 5, 8191, 8192, -1, -9000, 2**31)) + chance.randrange(3),
                chance.choice(("A", "PA", "FA", "S", "SA", "R", "RA", "F", "FSRPA", "")),
                ack=chance.choice((NEXT, NEXT, NEXT, NEXT, (ISN + 1) % 2**32, 0)),
                source=chance.choice((VIP, VIP, VIP, VIP, NODE)),
            )
        assert len(probe._answer._head) <= MAX_HEAD
        assert sum(map(len, probe._answer._pieces.values())) <= 32 * WINDOW


def test_damaged_segment_is_not_read() -> None:
    probe = started()
    packet = bytearray(
        raw(IP(src=VIP, dst=OWN) / TCP(sport=80, dport=PORT, seq=FIRST, ack=NEXT, flags="A") / OK)
    )
    packet[-1] ^= 0xFF
    assert probe.receive(segment.parse_untrusted(Packet(bytes(packet))), 100.1) == []
    assert probe.result is None


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.0 204 \r\n", 204),
        (b"HTTP/1.1 599\r\n", 599),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nA: b\r\n\r\nHTTP/1.1 301 Moved\r\n", 301),
        (b"HTTP/1.1 600 \r\n", None),
        (b"HTTP/1.1  200\r\n", None),
        (b"HTTP/2.0 200 OK\r\n", None),
        (b"http/1.1 200 OK\r\n", None),
        (b"\x16\x03\x01", None),
    ],
)
def test_status_is_read_wherever_the_answer_is_cut(answer: bytes, status: int | None) -> None:
    for cut in range(len(answer)):
        read = Answer(WINDOW)
        read.take(0, answer[:cut], fin=False)
        read.take(cut, answer[cut:], fin=True)
        assert (read.status, read.is_malformed) == (status, status is None)
        assert read.is_finished
