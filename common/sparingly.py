"""What is costly to know, and good enough if it is a little old."""

import math
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

_SHARE = 20
"""It is asked again after so many times what it took."""


class Sparingly(Generic[Value]):
    """An expensive answer, asked for seldom enough to cost next to nothing."""

    def __init__(self, ask: Callable[[], Value], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._known: Value
        self._next = -math.inf

    def __call__(self) -> Value:
        began = self._clock()
        if began >= self._next:
            self._known = self._ask()
            ended = self._clock()
            self._next = ended + _SHARE * (ended - began)
        return self._known
