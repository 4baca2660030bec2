"""SYN cookies: a handshake that needs no memory (RFC 4987 section 3.6).

The ISN of the SYN-ACK:

    |  period (5)  | MSS class (3) |          keyed hash (24)         |

``period`` counts 30 seconds modulo 32. The hash covers the flow key, the client's ISN, the full period and
the MSS class. What else the SYN said rides in the low six bits of TSval, which the client echoes, laid out
as Linux does it:

    |                 TSval clock (26)          | 0 | SACK (1) | window scale (4), 15: none |
"""

import bisect
import struct
from typing import NamedTuple

from common.wire import seq
from common.wire.mac import Mac
from common.wire.segment import FlowKey

PERIOD_SECONDS = 30
MAX_AGE_PERIODS = 1
LIFETIME_SECONDS = float(PERIOD_SECONDS * (MAX_AGE_PERIODS + 1))
"""A cookie is good for at least 30 seconds and less than this. What it opened is remembered for as long, so
that no copy of a first payload opens it twice."""
MSS_CLASSES = (48, 536, 1024, 1220, 1360, 1400, 1440, 1460)
"""An MSS is rounded down to one of these; below 48, as in Linux, it counts as 48."""

_PERIODS = 32
_NO_SCALE = 15
_SACK_BIT = 1 << 4
_STAMP_MASK = (1 << 6) - 1
_HASHED = struct.Struct(">IIB")


class StampedOptions(NamedTuple):
    """What a TSval of ours says that the client's SYN had."""

    window_scale: int | None
    sack_permitted: bool


def mss_class(mss: int) -> int:
    return max(bisect.bisect_right(MSS_CLASSES, mss) - 1, 0)


def make(mac: Mac, key: FlowKey, client_isn: int, mss: int, period: int) -> int:
    """The ISN for a SYN of the flow ``key`` (client to VIP) in the period ``period`` (not reduced)."""
    return _isn(mac, key, client_isn, mss_class(mss), period)


def check(mac: Mac, key: FlowKey, client_isn: int, isn: int, period: int) -> int | None:
    """The client's MSS, rounded down to its class; None if ``isn`` is no cookie of ours, or too old."""
    age = (period - (isn >> 27)) % _PERIODS
    if age > MAX_AGE_PERIODS:
        return None
    index = isn >> 24 & 0b111
    if _isn(mac, key, client_isn, index, period - age) != isn:
        return None
    return MSS_CLASSES[index]


def stamp(ticks: int, options: StampedOptions) -> int:
    """The newest TSval not after ``ticks`` (milliseconds modulo 2^32) that carries ``options``."""
    bits = _NO_SCALE if options.window_scale is None else options.window_scale
    if options.sack_permitted:
        bits |= _SACK_BIT
    value = ticks & ~_STAMP_MASK | bits
    return seq.add(value, -(_STAMP_MASK + 1)) if seq.gt(value, ticks) else value


def read_stamp(echo: int) -> StampedOptions:
    """What `stamp` put into a TSval. The client vouches for it: it can only deceive itself."""
    scale = echo & 0b1111
    return StampedOptions(None if scale == _NO_SCALE else scale, bool(echo & _SACK_BIT))


def _isn(mac: Mac, key: FlowKey, client_isn: int, index: int, period: int) -> int:
    digest = mac(key + _HASHED.pack(client_isn, period % seq.MODULUS, index))
    return period % _PERIODS << 27 | index << 24 | int.from_bytes(digest[:3], "big")
