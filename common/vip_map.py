"""The VIP=DSCP files of L3DSR hosts (dsr.conf(5) of Yahoo's dsrtools), read as they are.

A line has an address, `=` and a DSCP: decimal, octal with a leading 0 (or 0o), or hexadecimal with a leading
0x. Blanks may stand anywhere but within the two; `#` and all after it is a comment.
"""

import glob
import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from common.config import ConfigError, parse_address
from common.wire import dscp

DEFAULT_FILES = ("/etc/dsr.d/*.conf",)

_NUMBER = re.compile(
    r"0[xX](?P<hex>[0-9a-fA-F]{1,4})|0[oO]?(?P<octal>[0-7]{1,4})|(?P<decimal>[1-9][0-9]{0,3}|0)"
)
_MAX_LINE = 200
"""Without its comment."""
_BASES = {"hex": 16, "octal": 8, "decimal": 10}


class VipMapKeys(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    files: Annotated[
        tuple[Annotated[str, Meta(pattern=r"\A[^\0]+\Z", extra={"allowed": "a file name"})], ...],
        Meta(
            min_length=1,
            description="files of VIP=DSCP lines, or patterns of their names, read in the order of the names",
            extra={"allowed": "a list of file names", "default": '`["/etc/dsr.d/*.conf"]`'},
        ),
    ] = DEFAULT_FILES


class VipMap(NamedTuple):
    indices: Mapping[IPv4Address, int]
    """The DSCP of each VIP."""
    warnings: tuple[str, ...]
    """What was skipped, one line each."""


class _Entry(NamedTuple):
    where: str
    vip: IPv4Address | IPv6Address
    dscp: int


def read(patterns: Iterable[str]) -> VipMap:
    """`ConfigError`, which names file and line, where a line is no VIP=DSCP or contradicts another one."""
    first: dict[IPv4Address, _Entry] = {}
    vips: dict[int, _Entry] = {}
    warnings = []
    for path in _files(patterns):
        for entry in _entries(path, _read(path)):
            if isinstance(entry.vip, IPv6Address):
                warnings.append(f"{entry.where}: {entry.vip} is skipped, as IPv6 is not supported yet")
                continue
            known = first.setdefault(entry.vip, entry)
            if known.dscp != entry.dscp:
                raise ConfigError(f"{entry.where}: {entry.vip} has the DSCP {known.dscp} in {known.where}")
            named = vips.setdefault(entry.dscp, entry)
            if named.vip != entry.vip:
                raise ConfigError(f"{entry.where}: DSCP {entry.dscp} is that of {named.vip} in {named.where}")
    return VipMap({vip: entry.dscp for vip, entry in first.items()}, tuple(warnings))


def _files(patterns: Iterable[str]) -> Iterator[Path]:
    """A pattern may match nothing; a plain name must be there."""
    for pattern in patterns:
        matching = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        yield from map(Path, matching)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path}: cannot be read: it is not text in UTF-8") from None


def _entries(path: Path, text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        content = line.partition("#")[0].strip()
        if content:
            where = f"{path}: line {number}"
            vip, equals, index = (part.strip() for part in content.partition("="))
            if not equals or len(content) > _MAX_LINE:
                raise ConfigError(
                    f"{where}: {content[:_MAX_LINE]!r} is not VIP=DSCP, such as 192.168.33.10=28"
                )
            yield _Entry(where, _parse_vip(where, vip), _parse_index(where, index))


def _parse_vip(where: str, text: str) -> IPv4Address | IPv6Address:
    try:
        return IPv6Address(text)
    except ValueError:
        pass
    try:
        return parse_address(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _parse_index(where: str, text: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match and match.lastgroup:
        index = int(match[match.lastgroup], _BASES[match.lastgroup])
        if dscp.MIN_INDEX <= index <= dscp.MAX_INDEX:
            return index
    raise ConfigError(
        f"{where}: DSCP {text!r} is not a number from {dscp.MIN_INDEX} to {dscp.MAX_INDEX}, decimal, octal"
        " such as 034 or hexadecimal such as 0x1c"
    )
