"""docs/handoff.md against the code and against scapy's view of the same bytes."""

import re
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP

from common.wire import handoff, segment
from common.wire.handoff import Handoff
from common.wire.offload import Packet
from common.wire.tcp_options import Timestamps
from tests.unit.wire.handoffs import EXAMPLE, KEY
from tests.unit.wire.packets import siphash, with_field

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "handoff.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")


def hex_block(name: str) -> bytes:
    """The bytes of the block ```` ```hex NAME ````, what is said of them left out."""
    found = re.search(rf"^```hex {name}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return b"".join(bytes.fromhex(re.split(r"\s{3}", line)[0]) for line in found[1].splitlines())


def rows(columns: int) -> list[list[str]]:
    """The cells of all table rows with so many columns."""
    lines = [line.strip("|").split("|") for line in TEXT.splitlines() if re.match(r"\| \d", line)]
    return [[cell.strip() for cell in cells] for cells in lines if len(cells) == columns]


def documented_fields() -> dict[str, tuple[int, int]]:
    """First bit and number of bits of each field in the document's table of the header."""
    fields = {}
    for offset, size, name, _ in rows(4):
        place = re.fullmatch(r"(\d+)(?:, bit (\d))?", offset)
        extent = re.fullmatch(r"(\d+) (bit|byte)s?", size)
        assert place
        assert extent
        bits = int(extent[1]) * (8 if extent[2] == "byte" else 1)
        fields[name] = (int(place[1]) * 8 + int(place[2] or 0), bits)
    return fields


FIELDS = documented_fields()

# The example with one field changed in every bit.
VARIED: dict[str, Handoff] = {
    "client port": EXAMPLE._replace(client_port=EXAMPLE.client_port ^ 0xFFFF),
    "service port": EXAMPLE._replace(service_port=80 ^ 0xFFFF),
    "S - 1": EXAMPLE._replace(seq=EXAMPLE.seq ^ 0xFFFFFFFF),
    "A - 1": EXAMPLE._replace(ack=EXAMPLE.ack ^ 0xFFFFFFFF),
    "window": EXAMPLE._replace(window=EXAMPLE.window ^ 0xFFFF),
    "MSS": EXAMPLE._replace(mss=EXAMPLE.mss ^ 0xFFFF),
    "TSval": EXAMPLE._replace(timestamps=Timestamps(0xEEDDCCBB, 0x55667788)),
    "TSecr": EXAMPLE._replace(timestamps=Timestamps(0x11223344, 0xAA998877)),
    "F": EXAMPLE._replace(fin=True),
    "K": EXAMPLE._replace(key_id=0),
    "scale": EXAMPLE._replace(promised_scale=8),
    "time": EXAMPLE._replace(time=EXAMPLE.time ^ 0xFFFF),
    "tag": EXAMPLE._replace(tag=bytes(byte ^ 0xFF for byte in EXAMPLE.tag)),
}
CONSTANT = {
    "offset": 14,
    "control bits": 0x002,
    "urgent pointer": 0,
    "kind 2, length 4": 0x0204,
    "SACK-permitted, or NOP NOP": 0x0402,
    "kind 8, length 10": 0x080A,
    "NOP": 1,
    "kind 3, length 3": 0x0303,
    "shift": 7,
    "kind 253, length 16": 0xFD10,
    "ExID": 0x4C33,
    "version": 1,
    "type": 1,
    "rsv": 0,
}


def header_of(made: Handoff) -> int:
    """The 56 bytes of TCP header as one number, the checksum left out."""
    packet = with_field(segment.emit(handoff.emit(made)).data, 36, 0)
    return int.from_bytes(packet[20 : 20 + 56], "big")


def bits_of(name: str) -> int:
    """A mask of the field's bits in `header_of`."""
    first, size = FIELDS[name]
    return ((1 << size) - 1) << 56 * 8 - first - size


def test_the_fields_of_the_document_fill_the_header_without_gap_or_overlap() -> None:
    at = 0
    for first, size in FIELDS.values():
        assert first == at
        at += size
    assert at == 56 * 8
    assert set(FIELDS) == {*VARIED, *CONSTANT, "checksum"}
    assert FIELDS["checksum"] == (16 * 8, 16)


@pytest.mark.parametrize("name", VARIED)
def test_a_field_stands_in_the_packet_where_the_document_says(name: str) -> None:
    assert header_of(EXAMPLE) ^ header_of(VARIED[name]) == bits_of(name)


@pytest.mark.parametrize(("name", "value"), CONSTANT.items())
def test_a_field_holds_in_the_packet_what_the_document_says(name: str, value: int) -> None:
    first, size = FIELDS[name]
    assert (header_of(EXAMPLE) & bits_of(name)) >> 56 * 8 - first - size == value


@pytest.mark.parametrize(
    ("absent", "places"),
    [
        ({"sack_permitted": False}, ["SACK-permitted, or NOP NOP"]),
        ({"timestamps": None}, ["kind 8, length 10", "TSval", "TSecr"]),
        ({"window_scale": None}, ["kind 3, length 3", "shift"]),
    ],
)
def test_an_option_that_the_client_did_not_offer_is_nops_in_the_same_place(
    absent: dict[str, Any], places: list[str]
) -> None:
    mask = sum(bits_of(name) for name in places)
    nops = int.from_bytes(b"\x01" * 56, "big")
    expected = header_of(EXAMPLE) & ~mask | nops & mask
    assert header_of(EXAMPLE._replace(**absent)) == expected


def test_the_document_s_table_of_signed_bytes_ends_at_49() -> None:
    at = 0
    for offset, size, _ in rows(3):
        assert int(offset) == at
        at += int(size)
    assert at == 49 == len(hex_block("signed"))


def test_the_worked_example_is_what_the_code_makes() -> None:
    assert hex_block("key") == KEY
    assert handoff.signed_bytes(EXAMPLE) == hex_block("signed")
    signed = handoff.sign(EXAMPLE._replace(tag=bytes(8)), lambda message: siphash(hex_block("key"), message))
    assert signed.tag == hex_block("tag")
    assert segment.emit(handoff.emit(signed)).data == hex_block("packet")


def test_the_worked_example_is_what_the_code_reads() -> None:
    carrier = segment.parse_untrusted(Packet(hex_block("packet")))
    assert segment.checksum_holds(carrier)
    assert handoff.parse_untrusted(carrier) == EXAMPLE


def test_scapy_sees_the_worked_example_as_the_document_says() -> None:
    packet = hex_block("packet")
    ip = IP(packet)
    tcp = ip[TCP]
    assert (ip.src, ip.dst, ip.tos, ip.id, str(ip.flags), ip.ttl) == (
        *("203.0.113.7", "192.168.33.20"),
        *(1 << 2, 0, "DF", 64),
    )
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack) == (49152, 80, 0x01020304, 0x8A9B0C1D)
    assert (str(tcp.flags), tcp.dataofs, tcp.window) == ("S", 14, 64240)
    assert tcp.options == [
        ("MSS", 1460),
        ("SAckOK", b""),
        ("Timestamp", (0x11223344, 0x55667788)),
        ("NOP", None),
        ("WScale", 7),
        (253, bytes.fromhex("4c33 11 47 6b49") + hex_block("tag")),
    ]
    assert bytes(tcp.payload) == b"GET /a HTTP/1.1\r\nHost: example.com\r\n\r\n"
    del ip.chksum, tcp.chksum
    assert bytes(ip) == packet
