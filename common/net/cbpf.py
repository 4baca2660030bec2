"""The taps' socket filters in classic BPF (Linux Documentation/networking/filter.rst).

A filter sees the packet from its link header on. X holds the IP header's length (`_LOAD_X_IHL`), so that
indexed loads reach into TCP or ICMP behind any IP options; a load beyond the packet's end drops it.
A packet for another station or of a VLAN on this interface is not the host's to answer here: it is left
alone. Priority tags (VLAN 0) are none.
"""

import ctypes
import struct
from collections.abc import Iterable
from typing import NamedTuple

from common.net.intake import ICMP_ERRORS, Intake
from common.wire import ipv4

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_LOAD_WORD_X, _LOAD_HALF_X, _LOAD_BYTE_X = 0x40, 0x48, 0x50
_LOAD_X_IHL = 0xB1
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_AT_LEAST, _JUMP_SET = 0x15, 0x25, 0x35, 0x45
_RETURN = 0x06

_ANCILLARY = 0xFFFFF000
"""SKF_AD_OFF: loads from here on read the kernel's metadata of the packet (linux/filter.h)."""
_ETHERTYPE, _PACKET_TYPE, _VLAN_TCI, _VLAN_PRESENT = (_ANCILLARY + at for at in (0, 4, 44, 48))
_IPV4 = 0x0800
_TO_THIS_HOST = 0
_VLAN_ID = 0x0FFF
_FRAGMENT_OFFSET = 0x1FFF
_DSCP = 0xFC
_HEADER_WITHOUT_OPTIONS = 0x45
_ICMP_HEADER_SIZE = 8
_TAKE, _DROP = 0xFFFFFFFF, 0
_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = struct.Struct("@HP")


class Instruction(NamedTuple):
    """struct sock_filter."""

    code: int
    if_true: int
    if_false: int
    k: int


class _Jump(NamedTuple):
    """Labels; none means the next instruction."""

    code: int
    k: int
    if_true: str = ""
    if_false: str = ""


class _Load(NamedTuple):
    code: int
    k: int = 0


_Step = _Jump | _Load | str
"""A string is a label: it names the instruction behind it."""


def program(intake: Intake, link_header_size: int) -> list[Instruction]:
    """Takes the packets of ``intake`` whole, drops the rest."""
    ip_at = link_header_size
    return _assemble(
        [
            *_addressed(intake, ip_at),
            _Load(_LOAD_HALF, ip_at + 6),
            _Jump(_JUMP_SET, _FRAGMENT_OFFSET, if_true="drop"),
            _Load(_LOAD_X_IHL, ip_at),
            _Load(_LOAD_BYTE, ip_at + 9),
            _Jump(_JUMP_EQUAL, ipv4.PROTOCOL_ICMP, if_true="icmp"),
            _Jump(_JUMP_EQUAL, ipv4.PROTOCOL_TCP, if_false="drop"),
            _Load(_LOAD_HALF_X, ip_at + 2),
            *_one_of(intake.ports, otherwise="drop", then="take"),
            "icmp",
            _Load(_LOAD_BYTE_X, ip_at),
            *_one_of(ICMP_ERRORS, otherwise="drop", then="error"),
            "error",
            *_quoting(intake, ip_at + _ICMP_HEADER_SIZE),
            "take",
            _Load(_RETURN, _TAKE),
            "drop",
            _Load(_RETURN, _DROP),
        ]
    )


def socket_option(instructions: list[Instruction]) -> tuple[bytes, ctypes.Array[ctypes.c_char]]:
    """The struct sock_fprog for SO_ATTACH_FILTER, and the memory it points to, to be kept until it is set."""
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*each) for each in instructions))
    return _PROGRAM.pack(len(instructions), ctypes.addressof(code)), code


def _addressed(intake: Intake, ip_at: int) -> list[_Step]:
    """To this host, on no VLAN, to the address, tagged where that is asked for."""
    steps: list[_Step] = [
        _Load(_LOAD_HALF, _ETHERTYPE),
        _Jump(_JUMP_EQUAL, _IPV4, if_false="drop"),
        _Load(_LOAD_BYTE, _PACKET_TYPE),
        _Jump(_JUMP_EQUAL, _TO_THIS_HOST, if_false="drop"),
        _Load(_LOAD_BYTE, _VLAN_PRESENT),
        _Jump(_JUMP_EQUAL, 0, if_true="untagged"),
        _Load(_LOAD_HALF, _VLAN_TCI),
        _Jump(_JUMP_SET, _VLAN_ID, if_true="drop"),
        "untagged",
        _Load(_LOAD_WORD, ip_at + 16),
        _Jump(_JUMP_EQUAL, int(intake.address), if_false="drop"),
    ]
    if intake.tagged:
        steps += [_Load(_LOAD_BYTE, ip_at + 1), _Jump(_JUMP_SET, _DSCP, if_false="drop")]
    return steps


def _quoting(intake: Intake, quoted_at: int) -> list[_Step]:
    """The quoted packet, relative to X: TCP without IP options, no later fragment, source as it must be."""
    ours: _Step = _Jump(_JUMP_EQUAL, int(intake.address), if_false="drop")
    if intake.tagged:
        ours = _Jump(_JUMP_EQUAL, int(intake.address), if_true="drop")
    return [
        _Load(_LOAD_BYTE_X, quoted_at),
        _Jump(_JUMP_EQUAL, _HEADER_WITHOUT_OPTIONS, if_false="drop"),
        _Load(_LOAD_HALF_X, quoted_at + 6),
        _Jump(_JUMP_SET, _FRAGMENT_OFFSET, if_true="drop"),
        _Load(_LOAD_BYTE_X, quoted_at + 9),
        _Jump(_JUMP_EQUAL, ipv4.PROTOCOL_TCP, if_false="drop"),
        _Load(_LOAD_WORD_X, quoted_at + 12),
        ours,
        _Load(_LOAD_HALF_X, quoted_at + ipv4.HEADER_SIZE),
        *_one_of(intake.ports, otherwise="drop", then="take"),
    ]


def _one_of(values: Iterable[int], *, then: str, otherwise: str) -> list[_Step]:
    if isinstance(values, range):
        return [
            _Jump(_JUMP_AT_LEAST, values[0], if_false=otherwise),
            _Jump(_JUMP_GREATER, values[-1], if_true=otherwise, if_false=then),
        ]
    *first, last = values
    return [
        *(_Jump(_JUMP_EQUAL, value, if_true=then) for value in first),
        _Jump(_JUMP_EQUAL, last, if_true=then, if_false=otherwise),
    ]


def _assemble(steps: Iterable[_Step]) -> list[Instruction]:
    """Jumps are forward, counted from the next instruction, and at most 255 (enough for 63 VIPs' ports)."""
    code: list[_Jump | _Load] = []
    labels: dict[str, int] = {}
    for step in steps:
        if isinstance(step, str):
            labels[step] = len(code)
        else:
            code.append(step)

    def distance(label: str, at: int) -> int:
        return labels[label] - at - 1 if label else 0

    return [
        Instruction(step.code, distance(step.if_true, at), distance(step.if_false, at), step.k)
        if isinstance(step, _Jump)
        else Instruction(step.code, 0, 0, step.k)
        for at, step in enumerate(code)
    ]
