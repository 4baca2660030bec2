"""What a check finds."""

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    """It may do harm, costs speed, or could not be checked."""
    FAULT = "fault"
    """Traffic is or will be lost."""


class Finding(NamedTuple):
    check: str
    level: Level
    found: str
    change: str = ""
    """What to do about it; empty where nothing is to be done."""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def warning(check: str, found: str, change: str) -> Finding:
    return Finding(check, Level.WARNING, found, change)


def fault(check: str, found: str, change: str) -> Finding:
    return Finding(check, Level.FAULT, found, change)


def or_ok(findings: Iterable[Finding], check: str, found: str) -> Iterator[Finding]:
    """``findings``, or if there are none that all is well."""
    is_well = True
    for finding in findings:
        is_well = False
        yield finding
    if is_well:
        yield ok(check, found)
