"""What this layer asks of a keyed hash."""

from collections.abc import Callable

Mac = Callable[[bytes], bytes]
"""SipHash-2-4 under a key that the caller holds: any message to 8 bytes, in the reference code's order."""
