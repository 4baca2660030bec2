"""Numbers, DSCPs and tables for people."""

import re
from collections.abc import Sequence

from common.wire import dscp

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_GAP = "  "


def size(count: float | None) -> str:
    if count is None:
        return "-"
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            return counted(int(count), "byte") if unit == _UNITS[0] else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit takes any size")


def duration(seconds: float | None) -> str:
    """The two largest units, below a minute tenths of seconds."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // part} {smaller}"
    raise AssertionError("a minute is the smallest of the units")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"


def counted(count: int, what: str) -> str:
    """With a plural in -s."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def share(value: float) -> str:
    return f"{value * 100:.1f} %"


def tagged(index: int, ecn: int = 0) -> str:
    """A DSCP as tools and tables write it: six bits, and the TOS byte that it stands in."""
    tos = dscp.with_index(ecn, index)
    return f"DSCP {index} (TOS {tos}, {tos:#04x})"


def printable(text: str) -> str:
    """On one line, and nothing in it that a terminal obeys."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> list[str]:
    """Lines of columns as wide as they need to be; those whose header is a word of ``right`` end flush."""
    aligned = [name in right.split(",") for name in header]
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(header))]
    return [
        _GAP.join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, aligned, strict=True)
        ).rstrip()
        for line in lines
    ]
