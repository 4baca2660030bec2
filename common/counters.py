"""What happened, counted by name. Names are lower-case words with underscores."""

from collections import Counter as Counters

__all__ = ["Counters"]
