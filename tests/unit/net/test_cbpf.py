import struct

import pytest

from common.net import cbpf
from common.net.cbpf import Instruction
from common.net.intake import Intake, of_health_checks, of_packetbridge
from tests.unit.net.intake_cases import ADDRESS, BALANCER, CASES, PACKETBRIDGE, Case

ETHERNET = bytes.fromhex("02000000000202000000000108 00".replace(" ", ""))
WHOLE, NOTHING = 0xFFFFFFFF, 0
ETHERTYPE, PACKET_TYPE, VLAN_TCI, VLAN_PRESENT = 0xFFFFF000, 0xFFFFF004, 0xFFFFF02C, 0xFFFFF030
IPV4_TO_US = {ETHERTYPE: 0x0800, PACKET_TYPE: 0, VLAN_TCI: 0, VLAN_PRESENT: 0}
TAKEN = bytes(next(case.packet for case in CASES if case.by_balancer and case.by_packetbridge))


def run(program: list[Instruction], frame: bytes, metadata: dict[int, int]) -> int:
    """An interpreter of the few instructions that occur, by the kernel's documentation of them."""
    accumulator = index = at = 0
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        load = {0x20: 4, 0x28: 2, 0x30: 1, 0x40: 4, 0x48: 2, 0x50: 1}.get(code)
        if load and k in metadata:
            accumulator = metadata[k]
        elif load:
            start = k + (index if code & 0x40 else 0)
            if start + load > len(frame):
                return NOTHING
            accumulator = int.from_bytes(frame[start : start + load], "big")
        elif code == 0xB1:
            index = (frame[k] & 0xF) * 4
        elif code == 0x15:
            at += if_true if accumulator == k else if_false
        elif code == 0x25:
            at += if_true if accumulator > k else if_false
        elif code == 0x35:
            at += if_true if accumulator >= k else if_false
        elif code == 0x45:
            at += if_true if accumulator & k else if_false
        else:
            assert code == 0x06
            return k


@pytest.mark.parametrize("link_header", [ETHERNET, b""], ids=["ethernet", "no link header"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_filter_takes_what_the_intake_says(case: Case, link_header: bytes) -> None:
    frame = link_header + case.packet
    balancer = cbpf.program(BALANCER, len(link_header))
    packetbridge = cbpf.program(PACKETBRIDGE, len(link_header))
    assert run(balancer, frame, IPV4_TO_US) == (WHOLE if case.by_balancer else NOTHING)
    assert run(packetbridge, frame, IPV4_TO_US) == (WHOLE if case.by_packetbridge else NOTHING)


@pytest.mark.parametrize("intake", [BALANCER, PACKETBRIDGE], ids=["balancer", "packetbridge"])
@pytest.mark.parametrize(
    ("metadata", "verdict"),
    [
        ({}, WHOLE),
        ({ETHERTYPE: 0x86DD}, NOTHING),
        ({PACKET_TYPE: 3}, NOTHING),
        ({PACKET_TYPE: 1}, NOTHING),
        ({VLAN_PRESENT: 1, VLAN_TCI: 0x000A}, NOTHING),
        ({VLAN_PRESENT: 1, VLAN_TCI: 0xA000}, WHOLE),
        ({VLAN_PRESENT: 0, VLAN_TCI: 0x000A}, WHOLE),
    ],
    ids=[
        "untagged",
        "not ipv4",
        "other host's",
        "broadcast",
        "of a vlan",
        "priority tag only",
        "stale tag of older kernels",
    ],
)
def test_filter_leaves_what_is_not_for_this_interface(
    intake: Intake, metadata: dict[int, int], verdict: int
) -> None:
    assert run(cbpf.program(intake, 14), ETHERNET + TAKEN, IPV4_TO_US | metadata) == verdict


def test_filter_has_room_for_the_ports_of_63_vips() -> None:
    program = cbpf.program(of_packetbridge(ADDRESS, range(8000, 8063)), 14)
    assert max(max(step.if_true, step.if_false) for step in program) <= 255
    first = TAKEN.replace(struct.pack(">HH", 40000, 80), struct.pack(">HH", 40000, 8000))
    last = TAKEN.replace(struct.pack(">HH", 40000, 80), struct.pack(">HH", 40000, 8062))
    beyond = TAKEN.replace(struct.pack(">HH", 40000, 80), struct.pack(">HH", 40000, 8063))
    assert [run(program, ETHERNET + packet, IPV4_TO_US) for packet in (first, last, beyond)] == [
        WHOLE,
        WHOLE,
        NOTHING,
    ]


@pytest.mark.parametrize(
    ("port", "verdict"), [(60999, NOTHING), (61000, WHOLE), (63000, WHOLE), (65095, WHOLE), (65096, NOTHING)]
)
def test_filter_of_health_checks_takes_a_range_of_ports(port: int, verdict: int) -> None:
    program = cbpf.program(of_health_checks(ADDRESS, range(61000, 65096)), 14)
    packet = TAKEN.replace(struct.pack(">HH", 40000, 80), struct.pack(">HH", 40000, port))
    assert run(program, ETHERNET + packet, IPV4_TO_US) == verdict
