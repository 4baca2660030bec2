"""TCP options (RFC 9293 section 3.1; RFC 7323; RFC 2018).

An option area is a tuple of `Option`, no-operations included, so that emitting what was parsed gives the
same bytes. What the options say is read by `syn_options` and `timestamps_untrusted`.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common.wire.buffer import Buffer
from common.wire.errors import WireError

END, NOP, MSS, WINDOW_SCALE, SACK_PERMITTED, SACK, TIMESTAMPS, EXPERIMENT = 0, 1, 2, 3, 4, 5, 8, 253
MAX_WINDOW_SCALE = 14
"""A larger shift means 14 (RFC 7323 section 2.3)."""
DEFAULT_MSS = 536
"""Where a SYN has no MSS option (RFC 9293 section 3.7.1)."""
NOP_BYTE = b"\x01"

USUAL_TIMESTAMPS = bytes((NOP, NOP, TIMESTAMPS, 10))
"""How nearly every segment's option area begins: timestamps, aligned to four bytes."""
_USUAL_SIZE = 12

_MSS_OPTION = struct.Struct(">BBH")
_TIMESTAMPS_OPTION = struct.Struct(">BBII")
_TIMESTAMPS_DATA = struct.Struct(">II")


class Option(NamedTuple):
    kind: int
    data: bytes = b""
    """Without kind and length. Of END: whatever stands behind it."""


class Timestamps(NamedTuple):
    """TSval and TSecr (RFC 7323 section 3.2)."""

    value: int
    echo: int


class SynOptions(NamedTuple):
    """What one side says of itself in its SYN or SYN-ACK; a missing option is None or False."""

    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    timestamps: Timestamps | None = None


def parse_untrusted(area: Buffer) -> tuple[Option, ...]:
    data = bytes(area)
    options = []
    at = 0
    while at < len(data):
        kind = data[at]
        if kind == NOP:
            options.append(Option(NOP))
            at += 1
            continue
        if kind == END:
            options.append(Option(END, data[at + 1 :]))
            break
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2 or at + length > len(data):
            raise WireError("bad_tcp_options")
        options.append(Option(kind, data[at + 2 : at + length]))
        at += length
    return tuple(options)


def emit(options: Iterable[Option]) -> bytes:
    """The options' bytes, not padded."""
    area = bytearray()
    for option in options:
        area.append(option.kind)
        if option.kind not in (NOP, END):
            area.append(len(option.data) + 2)
        area += option.data
    return bytes(area)


def syn_options(options: Iterable[Option]) -> SynOptions:
    """What a SYN's options say.

    As in Linux the last of a repeated option counts, and one of a wrong length is ignored.
    """
    mss = scale = stamps = None
    sack_permitted = False
    for kind, data in options:
        size = len(data)
        if kind == MSS and size == 2:
            mss = int.from_bytes(data, "big")
        elif kind == WINDOW_SCALE and size == 1:
            scale = min(data[0], MAX_WINDOW_SCALE)
        elif kind == SACK_PERMITTED and size == 0:
            sack_permitted = True
        elif kind == TIMESTAMPS and size == _TIMESTAMPS_DATA.size:
            stamps = Timestamps(*_TIMESTAMPS_DATA.unpack(data))
    return SynOptions(mss, scale, sack_permitted, stamps)


def walk(buffer: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Kind, position and length of each option between ``at`` and ``end``.

    No-operations are passed over. It stops at the end of the list, and at what is malformed.
    """
    while at < end and (kind := buffer[at]) != END:
        if kind == NOP:
            at += 1
            continue
        length = buffer[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            return
        yield kind, at, length
        at += length


def timestamps_at(area: bytes) -> int | None:
    """Where TSval stands in an option area, TSecr behind it.

    None where there are no timestamps, or something malformed in front of them.
    """
    if area[:4] == USUAL_TIMESTAMPS and len(area) >= _USUAL_SIZE:
        return len(USUAL_TIMESTAMPS)
    for kind, at, length in walk(area, 0, len(area)):
        if kind == TIMESTAMPS and length == _TIMESTAMPS_OPTION.size:
            return at + 2
    return None


def timestamps_untrusted(area: bytes) -> Timestamps | None:
    """What a segment's timestamps say; None where `timestamps_at` finds none."""
    at = timestamps_at(area)
    return None if at is None else Timestamps(*_TIMESTAMPS_DATA.unpack_from(area, at))


def emit_syn(said: SynOptions) -> bytes:
    """A SYN's option area in the order of Linux: MSS, SACK-permitted, timestamps, NOP, window scale."""
    area = bytearray()
    if said.mss is not None:
        area += _MSS_OPTION.pack(MSS, 4, said.mss)
    if said.timestamps is not None:
        area += bytes((SACK_PERMITTED, 2)) if said.sack_permitted else NOP_BYTE * 2
        area += _TIMESTAMPS_OPTION.pack(TIMESTAMPS, 10, *said.timestamps)
    elif said.sack_permitted:
        area += NOP_BYTE * 2 + bytes((SACK_PERMITTED, 2))
    if said.window_scale is not None:
        area += NOP_BYTE + bytes((WINDOW_SCALE, 3, said.window_scale))
    return bytes(area)


def emit_timestamps(stamps: Timestamps | None) -> bytes:
    """The option area of a segment after the handshake."""
    return b"" if stamps is None else NOP_BYTE * 2 + _TIMESTAMPS_OPTION.pack(TIMESTAMPS, 10, *stamps)
