"""One way for the client to reach the nodes' NGINX."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lab import Lab

PORT = 80


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    what: str
    """For the report's reader."""
    address: Callable[[Lab], str]
    """The one that the client asks, on PORT."""
    standing: Callable[[Lab], AbstractContextManager[object]]
    """It is there within the block only, and the lab is as before after it."""
