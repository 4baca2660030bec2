"""What the packetbridge answers to a datagram, byte by byte."""

import logging
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from common.counters import Counters
from common.keyring import KeySource
from common.net.errors import HostError
from common.reports import FlowReport
from common.wire.channel import MAX_DETAILS, NodeFacts, ServedVip, parse_flow_untrusted
from packetbridge.channel import ANSWERS_PER_SECOND, REFUSALS_PER_SECOND, Server
from tests.unit.wire import channel_messages as bytes_of
from tests.unit.wire.channel_messages import HANDOFF_KEY, NODE, NONCE, TIME, refusal, tagged, untagged

LOOPBACK = bytes([127, 19, 5, 7])
FACTS = NodeFacts(
    "0.1.0",
    "ebpf",
    3600.9,
    65536,
    (
        ServedVip(1, bytes([192, 168, 33, 10]), 80, 12),
        ServedVip(7, bytes([192, 168, 33, 11]), 443, 0),
    ),
)
FLOW = FlowReport(
    client="203.0.113.7",
    client_port=49152,
    vip_index=1,
    node="127.19.5.7",
    state="established",
    age=1.5,
    idle=0.25,
    details={"seq_delta": 0xFFFFFFFF, "adopted": True},
)


class Bench:
    """A server at a loopback address whose clock says TIME and 500 ms."""

    def __init__(self, directory: Path, *keys: bytes) -> None:
        self.counters = Counters[str]()
        self.wall_ns = TIME * 10**9 + 500_999_999
        self.facts = FACTS
        self.flow: FlowReport | None = FLOW
        self.asked: list[tuple[bytes, int, int]] = []
        path = directory / "handoff.key"
        path.touch(0o600)
        path.write_text("\n".join(key.hex() for key in keys or (HANDOFF_KEY,)))
        self.server = Server(
            IPv4Address(LOOPBACK),
            KeySource(path, is_insecure=False),
            lambda: self.facts,
            self.find,
            self.counters,
            logging.getLogger("channel-test"),
            port=0,
            wall_ns=lambda: self.wall_ns,
        )

    def find(self, client: bytes, port: int, vip_index: int) -> FlowReport | None:
        self.asked.append((client, port, vip_index))
        return self.flow

    def answer(self, data: bytes, tos: int = 0x1C, now: float = 1000.0) -> bytes | None:
        return self.server.answer(data, tos, now)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with made(tmp_path) as bench:
        yield bench


@contextmanager
def made(directory: Path, *keys: bytes) -> Iterator[Bench]:
    bench = Bench(directory, *keys)
    with closing(bench.server):
        yield bench


def asking(kind: int = bytes_of.ASK_REPORT, body: bytes = b"", **fields: int) -> bytes:
    return tagged(untagged(kind, body, node=LOOPBACK, **fields))


ASKING_FLOW = asking(bytes_of.ASK_FLOW, bytes_of.QUESTION_BODY)


def refused(reason: int, nonce: int = NONCE) -> bytes:
    return refusal(reason, nonce=nonce).replace(NODE, LOOPBACK)


def test_a_request_for_a_report_is_answered_with_the_tos_that_it_had(bench: Bench) -> None:
    body = bytes_of.REPORT_BODY + bytes_of.VIPS
    assert bench.answer(asking()) == tagged(untagged(bytes_of.REPORT, body, node=LOOPBACK))
    assert bench.answer(asking(), tos=0) == tagged(untagged(bytes_of.REPORT, b"\0" + body[1:], node=LOOPBACK))
    assert bench.counters == {"channel_reports": 2}


def test_a_flow_that_is_known_is_told(bench: Bench) -> None:
    expected = tagged(untagged(bytes_of.FLOW, bytes_of.FLOW_BODY, node=LOOPBACK))
    assert bench.answer(ASKING_FLOW) == expected
    assert bench.asked == [(bytes([203, 0, 113, 7]), 49152, 1)]


def test_a_flow_that_is_not_known_is_told_as_such(bench: Bench) -> None:
    bench.flow = None
    assert bench.answer(ASKING_FLOW) == tagged(untagged(bytes_of.FLOW, bytes(24), node=LOOPBACK))


def test_details_beyond_a_datagram_are_left_out_from_the_end(bench: Bench) -> None:
    bench.flow = FlowReport(
        client="203.0.113.7",
        client_port=49152,
        vip_index=1,
        node="127.19.5.7",
        state="established",
        age=0,
        idle=0,
        details={"first": 1, **{f"detail_{number}": "x" * 50 for number in range(100)}},
    )
    answer = bench.answer(ASKING_FLOW)
    assert answer is not None
    details = parse_flow_untrusted(answer[20:-8]).details
    assert MAX_DETAILS - 70 < len(details) <= MAX_DETAILS
    assert details.startswith(b'{"first":1,"detail_0":"')
    assert details.endswith(b'"}')


def test_an_answer_is_never_larger_than_its_request(bench: Bench) -> None:
    vips = tuple(ServedVip(index, NODE, 80, 1) for index in range(1, 64))
    bench.facts = FACTS._replace(vips=vips)
    wrong_tag = asking()[:-1] + b"\0"
    other_version = asking()[:2] + b"\x21" + bytes(21)
    for data in (asking(), ASKING_FLOW, wrong_tag, other_version, asking(time=TIME - 100)):
        answer = bench.answer(data)
        assert answer is not None
        assert len(answer) <= len(data)


def test_a_wrong_tag_is_refused_whatever_the_rest(bench: Bench) -> None:
    other = tagged(untagged(bytes_of.ASK_REPORT, b"", node=LOOPBACK), bytes(15) + b"\x01")
    assert bench.answer(other) == refused(1)
    assert bench.counters == {"channel_bad_tag": 1}


@pytest.mark.parametrize("seconds", [-61, 61])
def test_a_request_of_another_minute_is_refused(bench: Bench, seconds: int) -> None:
    assert bench.answer(asking(time=TIME + seconds)) == refused(2)
    assert bench.counters == {"channel_too_old": 1}


@pytest.mark.parametrize("seconds", [-60, 60])
def test_a_clock_may_be_off_by_a_minute(bench: Bench, seconds: int) -> None:
    assert bench.answer(asking(time=TIME + seconds)) is not None
    assert bench.counters == {"channel_reports": 1}


def test_another_version_is_told_which_one_is_spoken_here(bench: Bench) -> None:
    data = asking()[:2] + b"\x21" + asking()[3:100]
    assert bench.answer(data) == refused(3)
    assert bench.counters == {"channel_unknown_version": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_a_channel_message"),
        (bytes(1200), "not_a_channel_message"),
        (asking()[:600], "bad_channel_message"),
        (tagged(untagged(bytes_of.REPORT, bytes_of.REPORT_BODY, node=LOOPBACK)), "bad_channel_message"),
        (refused(1), "bad_channel_message"),
        (asking(bytes_of.ASK_FLOW, bytes(8)), "bad_channel_message"),
        (tagged(untagged(bytes_of.ASK_REPORT, b"", node=NODE)), "channel_other_node"),
    ],
)
def test_what_is_no_request_to_this_node_is_dropped_and_counted(
    bench: Bench, data: bytes, reason: str
) -> None:
    assert bench.answer(data) is None
    assert bench.counters == {reason: 1}


@pytest.mark.parametrize("used", [0, 1], ids=["current", "previous"])
def test_while_keys_change_an_answer_has_the_key_of_its_request(tmp_path: Path, used: int) -> None:
    keys = (bytes(15) + b"\x03", HANDOFF_KEY)
    with made(tmp_path, *keys) as bench:
        answer = bench.answer(tagged(untagged(bytes_of.ASK_REPORT, b"", node=LOOPBACK), keys[used]))
    assert answer is not None
    assert answer == tagged(answer[:-8], keys[used])


def test_refusals_are_bounded_and_come_again_later(bench: Bench) -> None:
    burst = int(2 * REFUSALS_PER_SECOND)
    data = asking(time=TIME - 100)
    answers = [bench.answer(data) for _ in range(burst + 5)]
    assert answers == [refused(2)] * burst + [None] * 5
    assert bench.answer(asking()) is not None
    assert bench.answer(data, now=1001.0) == refused(2)
    assert bench.counters["channel_too_old"] == burst + 6


def test_answers_are_bounded(bench: Bench) -> None:
    burst = int(ANSWERS_PER_SECOND)
    answers = [bench.answer(asking()) for _ in range(burst + 1)]
    assert [answer is None for answer in answers] == [False] * burst + [True]
    assert bench.counters["channel_limited"] == 1


def test_a_bug_costs_the_answer_and_is_logged_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.facts = FACTS._replace(vips=(ServedVip(1, b"long address", 80, 0), ServedVip(2, NODE, -1, 0)))
    for _ in range(2):
        assert bench.answer(asking()) is None
    assert bench.counters["channel_bugs"] == 2
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert bench.answer(ASKING_FLOW) is not None


def test_a_port_in_use_is_one_line_for_the_operator(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.19.5.7", 0))
        port = other.getsockname()[1]
        with pytest.raises(HostError, match=f"UDP port {port} .* in use.*--channel-port") as caught:
            Server(
                IPv4Address("127.19.5.7"),
                KeySource(tmp_path, is_insecure=True),
                lambda: FACTS,
                lambda *_: None,
                Counters(),
                logging.getLogger("channel-test"),
                port=port,
            )
    assert "\n" not in str(caught.value)
