"""The TOS byte: six DSCP bits (RFC 2474) above two ECN bits (RFC 3168).

The DSCP bits carry the VIP's index to the node. The ECN bits belong to the path and are never changed.
"""

ECN_MASK = 0b11
MIN_INDEX, MAX_INDEX = 1, 63


def index_of(tos: int) -> int:
    """The DSCP, 0 to 63."""
    return tos >> 2


def ecn_of(tos: int) -> int:
    return tos & ECN_MASK


def with_index(tos: int, index: int) -> int:
    """The TOS byte with its DSCP replaced and its ECN bits kept."""
    return index << 2 | tos & ECN_MASK
