"""TCP options (RFC 9293 section 3.1; RFC 7323; RFC 2018).

An option area is a tuple of `Option`, no-operations included, so that emitting what was parsed gives the
same bytes. What the options say is read by `syn_options`, `timestamps` and `sack_blocks`.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from common.wire.buffer import Buffer
from common.wire.errors import WireError

END, NOP, MSS, WINDOW_SCALE, SACK_PERMITTED, SACK, TIMESTAMPS, EXPERIMENT = 0, 1, 2, 3, 4, 5, 8, 253
MAX_WINDOW_SCALE = 14
"""A larger shift means 14 (RFC 7323 section 2.3)."""
DEFAULT_MSS = 536
"""Where a SYN has no MSS option (RFC 9293 section 3.7.1)."""
NOP_BYTE = b"\x01"

_MSS_OPTION = struct.Struct(">BBH")
_TIMESTAMPS_OPTION = struct.Struct(">BBII")
_TIMESTAMPS_DATA = struct.Struct(">II")
_BLOCK = struct.Struct(">II")


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
    said = SynOptions()
    for kind, data in options:
        size = len(data)
        if kind == MSS and size == 2:
            said = said._replace(mss=int.from_bytes(data, "big"))
        elif kind == WINDOW_SCALE and size == 1:
            said = said._replace(window_scale=min(data[0], MAX_WINDOW_SCALE))
        elif kind == SACK_PERMITTED and size == 0:
            said = said._replace(sack_permitted=True)
        elif kind == TIMESTAMPS and size == _TIMESTAMPS_DATA.size:
            said = said._replace(timestamps=Timestamps(*_TIMESTAMPS_DATA.unpack(data)))
    return said


def timestamps(options: Iterable[Option]) -> Timestamps | None:
    for kind, data in options:
        if kind == TIMESTAMPS and len(data) == _TIMESTAMPS_DATA.size:
            return Timestamps(*_TIMESTAMPS_DATA.unpack(data))
    return None


def sack_blocks(options: Iterable[Option]) -> tuple[tuple[int, int], ...]:
    """Left and right edges of the SACK blocks (RFC 2018 section 3)."""
    for kind, data in options:
        if kind == SACK and len(data) % _BLOCK.size == 0:
            return tuple(_BLOCK.iter_unpack(data))
    return ()


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
