"""Sequence number arithmetic modulo 2^32 (RFC 9293 section 3.4, RFC 1982).

Comparisons are meaningful for numbers less than 2^31 apart, which TCP windows guarantee.
"""

MODULUS = 1 << 32
_MASK = MODULUS - 1
_HALF = 1 << 31


def add(number: int, count: int) -> int:
    """``number`` moved by ``count``, which may be negative."""
    return (number + count) & _MASK


def distance(start: int, end: int) -> int:
    """Signed number of steps from ``start`` to ``end``, -2^31 to 2^31 - 1."""
    return ((end - start + _HALF) & _MASK) - _HALF


def lt(left: int, right: int) -> bool:
    return distance(right, left) < 0


def le(left: int, right: int) -> bool:
    return distance(right, left) <= 0


def gt(left: int, right: int) -> bool:
    return distance(right, left) > 0


def ge(left: int, right: int) -> bool:
    return distance(right, left) >= 0
