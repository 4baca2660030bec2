"""docs/channel.md against the code and against the bytes of the tests."""

import re
from pathlib import Path

import pytest

from common.wire import channel
from common.wire.channel import FlowAnswer, FlowQuestion, Key, Kind, NodeFacts, Reason, Report, ServedVip
from common.wire.handoff import Field
from tests.unit.wire import channel_messages as bytes_of
from tests.unit.wire.channel_messages import NODE, NONCE, TIME, channel_key, refusal, tagged, untagged

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "channel.md").read_text(encoding="utf-8")
NO_KEY = Key(0, lambda _: bytes(8))


def hex_block(name: str) -> bytes:
    """The bytes of the block ```` ```hex NAME ````, what is said of them left out."""
    found = re.search(rf"^```hex {name}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return b"".join(bytes.fromhex(re.split(r"\s{3}", line)[0]) for line in found[1].splitlines())


def test_the_worked_example_is_right_to_the_byte() -> None:
    assert hex_block("key") == channel_key()
    report = untagged(bytes_of.REPORT, bytes_of.REPORT_BODY + bytes_of.VIPS)
    assert hex_block("report") == tagged(report)
    assert hex_block("refusal") == refusal(1)


def header(key: int = 0, time: int = 0, nonce: int = 0, node: bytes = bytes(4)) -> bytes:
    sealed = channel.seal(Kind.REPORT, b"", NO_KEY._replace(id=key), time=time, nonce=nonce, node=node)
    return sealed[:20]


FACTS = NodeFacts("", "", 0.0, 0, ())


def report(tos: int = 0, milliseconds: int = 0, facts: NodeFacts = FACTS) -> bytes:
    return channel.emit_report(Report(facts, tos, milliseconds))


def vip(index: int = 0, port: int = 0, address: bytes = bytes(4), flows: int = 0) -> bytes:
    return report(facts=FACTS._replace(vips=(ServedVip(index, address, port, flows),)))[44:]


def question(index: int = 0, port: int = 0, client: bytes = bytes(4)) -> bytes:
    return channel.emit_flow_question(FlowQuestion(index, client, port))


def flow(state: str = "", age: float = 0, idle: float = 0) -> bytes:
    return channel.emit_flow(FlowAnswer(state, age, idle))


LAYOUTS = {
    "header": (
        channel.HEADER_LAYOUT,
        {
            "magic": (header(), 0x4C33),
            "version": (header(), 1),
            "type": (header(), 2),
            "K": (header(key=1), 1),
            "time": (header(time=TIME), TIME),
            "nonce": (header(nonce=NONCE), NONCE),
            "node": (header(node=NODE), int.from_bytes(NODE, "big")),
        },
    ),
    "report": (
        channel.REPORT_LAYOUT,
        {
            "TOS": (report(tos=0x1C), 0x1C),
            "engine": (report(facts=FACTS._replace(engine="ebpf")), 2),
            "VIPs": (report(facts=FACTS._replace(vips=(ServedVip(1, NODE, 80, 0),)))[:44], 1),
            "milliseconds": (report(milliseconds=999), 999),
            "uptime": (report(facts=FACTS._replace(uptime=3600.0)), 3600),
            "bytes to clients": (report(facts=FACTS._replace(bytes_to_clients=NONCE)), NONCE),
            "release": (
                report(facts=FACTS._replace(release="0.1.0")),
                int.from_bytes(b"0.1.0" + bytes(19), "big"),
            ),
        },
    ),
    "vip": (
        channel.VIP_LAYOUT,
        {
            "VIP index": (vip(index=63), 63),
            "VIP port": (vip(port=443), 443),
            "VIP": (vip(address=NODE), int.from_bytes(NODE, "big")),
            "flows": (vip(flows=TIME), TIME),
        },
    ),
    "flow-question": (
        channel.FLOW_QUESTION_LAYOUT,
        {
            "VIP index": (question(index=63), 63),
            "client port": (question(port=49152), 49152),
            "client": (question(client=NODE), int.from_bytes(NODE, "big")),
        },
    ),
    "flow": (
        channel.FLOW_LAYOUT,
        {
            "state": (flow(state="opening"), int.from_bytes(b"opening" + bytes(9), "big")),
            "age": (flow(age=1.5), 1500),
            "idle": (flow(idle=0.25), 250),
        },
    ),
    "refusal": (
        channel.REFUSAL_LAYOUT,
        {
            "reason": (channel.refuse(Reason.UNKNOWN_VERSION, time=0, nonce=0, node=NODE)[20:], 3),
        },
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_field_stands_where_the_layout_says_and_the_rest_is_zero(name: str) -> None:
    layout, cases = LAYOUTS[name]
    places = places_of(layout)
    size = sum(field.bits for field in layout)
    assert set(cases) == set(places) - {"rsv"}
    for field, (data, value) in cases.items():
        first, bits = places[field]
        assert len(data) * 8 == size, field
        whole = int.from_bytes(data, "big")
        assert whole >> size - first - bits & (1 << bits) - 1 == value, field
        if name != "header":
            assert whole == value << size - first - bits, field


def places_of(layout: tuple[Field, ...]) -> dict[str, tuple[int, int]]:
    places, at = {}, 0
    for field in layout:
        places[field.name] = (at, field.bits)
        at += field.bits
    return places


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("UDP port 19507", channel.PORT),
        ("exactly 1200 bytes", channel.DATAGRAM_SIZE),
        ("less than 24 bytes", channel.REFUSAL_SIZE),
        ("above 60 or below -60", channel.MAX_AGE_SECONDS),
        ("fit into 1148 bytes", channel.MAX_DETAILS),
        ("the first 20 bytes and the refusal", channel.HEADER_SIZE),
    ],
)
def test_numbers_in_the_text_are_those_of_the_code(said: str, number: int) -> None:
    assert said in TEXT
    assert str(number) in said


@pytest.mark.parametrize("kind", Kind)
def test_the_text_tells_of_each_type(kind: Kind) -> None:
    assert re.search(rf"\({kind:d}\)", TEXT)
