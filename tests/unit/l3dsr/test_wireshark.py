"""docs/wireshark/l3dsr.lua, run by tshark on captures of literal and random handoffs."""

import json
import shutil
import subprocess
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import IP, UDP
from scapy.utils import RawPcapWriter

from common.wire import channel, handoff, segment
from common.wire.channel import FlowAnswer, FlowQuestion, Key, Kind, NodeFacts, Reason, ServedVip
from common.wire.handoff import Handoff
from common.wire.tcp_options import Timestamps
from tests.unit.wire.handoffs import EXAMPLE
from tests.unit.wire.packets import mutated
from tests.unit.wire.test_handoff_document import hex_block

SCRIPT = Path(__file__).resolve().parents[3] / "docs" / "wireshark" / "l3dsr.lua"
NODE = bytes([192, 168, 33, 20])
KEY = Key(1, lambda _: bytes(range(8)))
HANDOFFS = [
    EXAMPLE,
    EXAMPLE._replace(timestamps=None, sack_permitted=False, window_scale=None, promised_scale=0),
    EXAMPLE._replace(fin=True, key_id=0, vip_index=63, ecn=2, seq=0xFFFFFFFF, ack=0, payload=b"x"),
    EXAMPLE._replace(timestamps=Timestamps(1, 0), window_scale=14, mss=1, window=0, time=0xFFFF),
]

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")

Fields = dict[str, list[str]]


def dissected(packets: Iterable[bytes], path: Path, protocol: str) -> list[Fields]:
    """For each packet the fields of ``protocol`` by name, without its prefix."""
    writer = RawPcapWriter(str(path), linktype=101)
    writer.write_header(None)
    for packet in packets:
        writer.write_packet(packet, sec=0, usec=0)
    writer.close()
    command = ["tshark", "-n", "-r", str(path), "-X", f"lua_script:{SCRIPT}", "-T", "ek"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    complaints = [line for line in run.stderr.splitlines() if "Running as user" not in line]
    assert complaints == []
    layers = [json.loads(line)["layers"] for line in run.stdout.splitlines() if '"layers"' in line]
    return [_fields(each.get(f"l3dsr_{protocol}"), f"l3dsr_{protocol}_l3dsr_{protocol}_") for each in layers]


def _fields(layer: dict[str, object] | None, prefix: str) -> Fields:
    found: Fields = {}
    for name, value in (layer or {}).items():
        for inner in [value] if isinstance(value, dict) else value if isinstance(value, list) else []:
            if isinstance(inner, dict):
                for inner_name, inner_values in _fields(inner, prefix).items():
                    found.setdefault(inner_name, []).extend(inner_values)
        if name.startswith(prefix):
            values = value if isinstance(value, list) else [value]
            found[name.removeprefix(prefix)] = [str(each).lower() for each in values]
    return found


def expected(message: Handoff) -> Fields:
    stamps = message.timestamps
    tos = message.vip_index << 2 | message.ecn
    said: dict[str, object] = {
        "vip_index": message.vip_index,
        "tos": f"0x{tos:02x}",
        "ecn": message.ecn,
        "seq": message.seq,
        "ack": message.ack,
        "window": message.window,
        "mss": message.mss,
        "sack_permitted": message.sack_permitted,
        "timestamps": stamps is not None,
        **({"tsval": stamps.value, "tsecr": stamps.echo} if stamps else {}),
        **({} if message.window_scale is None else {"window_scale": message.window_scale}),
        "exid": "0x4c33",
        "version": 1,
        "type": 1,
        "fin": message.fin,
        "key_id": message.key_id,
        "reserved": 0,
        "promised_scale": message.promised_scale,
        "time": message.time,
        "tag": message.tag.hex(":"),
        "payload": message.payload.hex(":"),
    }
    return {name: [str(value).lower()] for name, value in said.items()}


def test_the_document_s_example_is_dissected(tmp_path: Path) -> None:
    assert dissected([hex_block("packet")], tmp_path / "a.pcap", "handoff") == [expected(EXAMPLE)]


def test_all_fields_of_handoffs_are_what_was_sent(tmp_path: Path) -> None:
    packets = [segment.emit(handoff.emit(message)).data for message in HANDOFFS]
    assert dissected(packets, tmp_path / "a.pcap", "handoff") == [expected(each) for each in HANDOFFS]


def test_the_info_column_names_handoff_and_dscp(tmp_path: Path) -> None:
    dissected([hex_block("packet")], tmp_path / "a.pcap", "handoff")
    command = ["tshark", "-n", "-r", str(tmp_path / "a.pcap"), "-X", f"lua_script:{SCRIPT}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "[handoff, DSCP 1] GET /a HTTP/1.1" in shown


def in_udp(data: bytes) -> bytes:
    return bytes(
        raw(IP(src="192.168.33.20", dst="192.168.33.10", tos=28) / UDP(sport=19507, dport=4000) / data)
    )


def sealed(kind: Kind, body: bytes) -> bytes:
    return channel.seal(kind, body, KEY, time=1_700_000_000, nonce=0x1122334455667788, node=NODE)


def test_messages_of_the_channel_are_dissected(tmp_path: Path) -> None:
    vips = (ServedVip(1, bytes([192, 168, 33, 10]), 80, 5), ServedVip(7, bytes([192, 168, 33, 11]), 81, 6))
    report = channel.Report(NodeFacts("0.2.0", "ebpf", 77.0, 12345678901, vips), 28, 123)
    question = FlowQuestion(7, bytes([203, 0, 113, 7]), 49152)
    messages = [
        sealed(Kind.REPORT, channel.emit_report(report)),
        sealed(Kind.ASK_FLOW, channel.emit_flow_question(question)),
        sealed(Kind.FLOW, channel.emit_flow(FlowAnswer("spliced", 1.5, 0.25, b'{"seq_delta":5}'))),
        channel.refuse(Reason.TOO_OLD, time=5, nonce=6, node=NODE),
        channel.fill(1472, time=5, nonce=7, node=NODE),
    ]
    found = dissected(map(in_udp, messages), tmp_path / "a.pcap", "channel")
    told, asked, answered, refused, filler = found
    assert (told["type"], told["key_id"], told["node"]) == (["2"], ["1"], [str(IPv4Address(NODE))])
    assert (told["nonce"], told["tag"]) == (["0x1122334455667788"], ["00:01:02:03:04:05:06:07"])
    assert told["tos"] == ["0x1c"]
    assert (told["engine"], told["vips"], told["milliseconds"]) == (["2"], ["2"], ["123"])
    assert (told["uptime"], told["bytes_to_clients"]) == (["77"], ["12345678901"])
    assert (told["release"], told["vip_index"]) == (["0.2.0"], ["1", "7"])
    assert (told["vip"], told["vip_port"]) == (["192.168.33.10", "192.168.33.11"], ["80", "81"])
    assert told["flows"] == ["5", "6"]
    assert (asked["vip_index"], asked["client"], asked["client_port"]) == (["7"], ["203.0.113.7"], ["49152"])
    assert (answered["state"], answered["age"], answered["idle"]) == (["spliced"], ["1500"], ["250"])
    assert answered["details"] == ['{"seq_delta":5}']
    assert (refused["reason"], "tag" in refused) == (["2"], False)
    assert (filler["type"], filler["nonce"], "tag" in filler) == (["5"], ["0x0000000000000007"], False)


def test_damaged_packets_cause_no_error_of_the_script(tmp_path: Path) -> None:
    """`dissected` fails on what tshark complains of; the strategy's examples are drawn by a fixed seed."""
    valid = [hex_block("packet"), in_udp(sealed(Kind.FLOW, channel.emit_flow(FlowAnswer("a", 1.0, 1.0))))]
    damaged: list[bytes] = []
    collect = st.data()

    from hypothesis import given, settings  # noqa: PLC0415

    @settings(derandomize=True, max_examples=300, database=None)
    @given(collect)
    def draw(data: st.DataObject) -> None:
        damaged.append(data.draw(mutated(st.sampled_from(valid))))

    draw()
    fields = dissected(damaged, tmp_path / "a.pcap", "handoff")
    assert len(fields) == len(damaged)
    text = (tmp_path / "a.pcap").with_suffix(".txt")
    command = ["tshark", "-n", "-V", "-r", str(tmp_path / "a.pcap"), "-X", f"lua_script:{SCRIPT}"]
    text.write_bytes(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert b"Lua Error" not in text.read_bytes()
