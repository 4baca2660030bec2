"""Handoffs as the two readers of captures have them: Wireshark's dissector and scapy's layer."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from scapy.layers.inet import IP, TCP
from scapy.packet import Packet

from l3dsr.scapy_layer import handoff_option

DISSECTOR = Path(__file__).parents[2] / "docs" / "wireshark" / "l3dsr.lua"


class Dissected(NamedTuple):
    """A handoff's fields, whoever has read them."""

    vip_index: int
    tos: int
    seq: int
    ack: int
    mss: int
    window_scale: int
    timestamps: tuple[int, int]
    seconds: int
    promised_scale: int
    key_id: int
    fin: bool
    tag: str


TSHARK_FIELDS = (
    *("vip_index", "tos", "seq", "ack", "mss", "window_scale", "tsval", "tsecr", "time"),
    *("promised_scale", "key_id", "fin", "tag"),
)


def by_tshark(path: Path) -> list[Dissected]:
    names = [argument for field in TSHARK_FIELDS for argument in ("-e", f"l3dsr.handoff.{field}")]
    command = ["tshark", "-r", str(path), "-X", f"lua_script:{DISSECTOR}", "-Y", "l3dsr_handoff"]
    run = subprocess.run(
        [*command, "-T", "fields", *names], capture_output=True, text=True, timeout=60, check=True
    )
    found = []
    for line in run.stdout.splitlines():
        index, tos, seq, ack, mss, scale, value, echo, seconds, promised, key, fin, tag = line.split("\t")
        found.append(
            Dissected(
                vip_index=int(index),
                tos=int(tos, 0),
                seq=int(seq),
                ack=int(ack),
                mss=int(mss),
                window_scale=int(scale),
                timestamps=(int(value), int(echo)),
                seconds=int(seconds),
                promised_scale=int(promised),
                key_id=int(key, 0),
                fin=fin not in ("0", "False"),
                tag=tag.replace(":", ""),
            )
        )
    return found


def by_scapy(packet: Packet) -> Dissected:
    option = handoff_option(packet)
    assert option is not None
    options: Mapping[str, object] = dict(packet[TCP].options)
    mss, scale, timestamps = options["MSS"], options["WScale"], options["Timestamp"]
    assert isinstance(mss, int)
    assert isinstance(scale, int)
    assert isinstance(timestamps, tuple)
    return Dissected(
        vip_index=packet[IP].tos >> 2,
        tos=packet[IP].tos,
        seq=packet[TCP].seq,
        ack=packet[TCP].ack,
        mss=mss,
        window_scale=scale,
        timestamps=timestamps,
        seconds=option.seconds,
        promised_scale=option.promised_scale,
        key_id=int("K" in str(option.flags)),
        fin="F" in str(option.flags),
        tag=bytes(option.tag).hex(),
    )
