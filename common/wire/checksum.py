"""The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

One's complement addition of 16-bit words is addition modulo 65535, where a non-empty sum is written 65535
rather than 0. Since 2^16 is 1 modulo 65535, a big-endian number of any width that begins on an even byte
adds its plain value, and one that begins on an odd byte 256 times its value. So a *delta*, the sum
of what is new minus the sum of what was there, is an ordinary integer.
"""

from common.wire.buffer import Buffer

_MODULUS = 0xFFFF


def word_sum(data: Buffer) -> int:
    """Sum of the big-endian 16-bit words of ``data`` modulo 65535; an odd last byte is padded with zero."""
    view = bytes(data)
    if len(view) % 2:
        view += b"\0"
    return int.from_bytes(view, "big") % _MODULUS


def finish(total: int) -> int:
    """The checksum field for a sum of words that are not all zero."""
    return _MODULUS - (total % _MODULUS or _MODULUS)


def compute(data: Buffer) -> int:
    """The checksum over ``data``, whose own checksum field holds zero."""
    return finish(word_sum(data))


def is_whole(total: int) -> bool:
    """Whether ``total``, the sum of all words and the checksum field among them, is an intact packet's.

    A field of 0xffff, as Linux sometimes writes it, says the same as 0.
    """
    return total % _MODULUS == 0


def update(checksum: int, delta: int) -> int:
    """``checksum`` after the summed words changed by ``delta`` (RFC 1624 equation 3).

    A wrong checksum stays exactly as wrong as it was.
    """
    return finish(_MODULUS - checksum + delta)


def update_partial(partial: int, delta: int) -> int:
    """The uncomplemented pseudo-header sum of a packet whose checksum is still to be computed."""
    return (partial + delta) % _MODULUS or _MODULUS
