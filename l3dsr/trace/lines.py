"""A packet as one line of text."""

import time
from ipaddress import IPv4Address

from common.wire import dscp, handoff, tcp, tcp_options
from common.wire.handoff import Handoff
from common.wire.segment import Segment
from l3dsr import text
from l3dsr.trace.legs import Both, Numbers
from l3dsr.trace.passage import Passing

_FLAGS = (tcp.FIN, tcp.SYN, tcp.RST, tcp.PSH, tcp.ACK, tcp.URG, tcp.ECE, tcp.CWR)
_LETTERS = "FSRP.UEW"
_SHOWN_PAYLOAD = 60


def line(passing: Passing, carried: Handoff | None, legs: Both | None) -> str:
    segment = passing.segment
    source = _endpoint(segment.source, segment.source_port)
    destination = _endpoint(segment.destination, segment.destination_port)
    parts = [
        _clock(passing.time),
        f"{passing.interface or '?'} {'out' if passing.is_leaving else 'in '}",
        f"{source} > {destination}",
    ]
    index = dscp.index_of(segment.tos)
    if index:
        parts.append(text.tagged(index, dscp.ecn_of(segment.tos)))
    parts.append(_handoff(carried, int(passing.time)) if carried else _plain(segment))
    if legs:
        parts.append(f"| client leg {_numbers(legs.client_leg)} | backend leg {_numbers(legs.backend_leg)}")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f"{seconds % 1:.6f}"[1:]


def _endpoint(address: bytes, port: int) -> str:
    return f"{IPv4Address(address)}:{port}"


def _plain(segment: Segment) -> str:
    flags = (
        "".join(letter for letter, bit in zip(_LETTERS, _FLAGS, strict=True) if segment.flags & bit) or "none"
    )
    ack = f" ack {segment.ack}" if segment.flags & tcp.ACK else ""
    stamps = tcp_options.timestamps_untrusted(segment.options)
    stamped = f" TSval {stamps.value} TSecr {stamps.echo}" if stamps else ""
    return f"[{flags}] seq {segment.seq}{ack} win {segment.window}{stamped} len {len(segment.payload)}"


def _handoff(carried: Handoff, wall_seconds: int) -> str:
    said = [
        f"HANDOFF S-1 {carried.seq}",
        f"A-1 {carried.ack}",
        f"window {carried.window}",
        f"MSS {carried.mss}",
        f"scale {'none' if carried.window_scale is None else carried.window_scale}",
        f"promised {carried.promised_scale}",
        *(["SACK"] if carried.sack_permitted else []),
        *(
            [f"TSval {carried.timestamps.value} TSecr {carried.timestamps.echo}"]
            if carried.timestamps
            else []
        ),
        *(["FIN"] if carried.fin else []),
        f"key {carried.key_id}",
        f"age {handoff.age(carried, wall_seconds)} s",
        f"tag {carried.tag.hex()}",
        f"len {len(carried.payload)}",
    ]
    return ", ".join(said) + f' "{_beginning(carried.payload)}"'


def _beginning(payload: bytes) -> str:
    """Of the first line, as far as it is for people."""
    first = payload.partition(b"\r\n")[0][:_SHOWN_PAYLOAD]
    return text.printable(first.decode("ascii", errors="backslashreplace"))


def _numbers(numbers: Numbers) -> str:
    return f"seq {numbers.seq}" + ("" if numbers.ack is None else f" ack {numbers.ack}")
