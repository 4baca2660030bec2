"""Equivalent spellings of a request target become one key (RFC 3986 section 6.2.2).

The rules, in the order in which they act, exact because a C program does the same:

1. Percent-encoding, in path and query, each by itself. `%` and two hex digits that encode an unreserved
   character (letters, digits, `-` `.` `_` `~`) become that character; any other `%` and two hex digits stay,
   the digits in upper case. The first `%` that is not followed by two hex digits ends this rule: it and
   all that follows in that path (or query) keep their spelling. So the result cannot itself hold
   something to decode (`%%34%31` would become `%41`), and is never longer than the input.
2. In the path only: of `//` and `/./` one `/` is left, and `/.` at the end loses its dot. This acts on the
   result of rule 1, so `/%2e/` is `/./`; `%2F` is not a slash.

Nothing else changes. Bytes above 0x7f stay, letters keep their case, and the query keeps its order.

`/../` stays as well. RFC 3986 section 5.2.4 would remove it together with the segment before, which no
pass that looks at each byte once can do without going back. Browsers, curl and libraries resolve it before
they send; a server behind resolves what still comes. The price is that an object asked for by such a spelling
may be cached on a second node.

Rule 2 as an automaton over the bytes that rule 1 yields. It starts in plain, and holds back one byte at most:

| state | `/` | `.` | other byte c | end of path |
|---|---|---|---|---|
| plain | emit `/`, to slash | emit `.` | emit c | |
| slash | | to dot | emit c, to plain | |
| dot | to slash | emit `..`, to plain | emit `.` c, to plain | |
"""

import re
import string

_UNRESERVED = string.ascii_letters + string.digits + "-._~"
_SPELLING = {
    f"%{high}{low}".encode(): (
        character if (character := chr(int(high + low, 16))) in _UNRESERVED else f"%{high}{low}".upper()
    ).encode()
    for high in string.hexdigits
    for low in string.hexdigits
}
_MALFORMED = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ENCODED = re.compile(rb"%[0-9A-Fa-f]{2}")
_EMPTY_SEGMENTS = re.compile(rb"/(?:\.?/)+(?:\.\Z)?|/\.\Z")


def normalise_query(query: bytes) -> bytes:
    """Rule 1 alone. Idempotent, never longer than the input."""
    malformed = _MALFORMED.search(query)
    end = malformed.start() if malformed else len(query)
    return _ENCODED.sub(lambda encoded: _SPELLING[encoded[0]], query[:end]) + query[end:]


def normalise_path(path: bytes) -> bytes:
    """Rules 1 and 2, for an absolute path without query. Idempotent, never longer than the input."""
    return _EMPTY_SEGMENTS.sub(b"/", normalise_query(path))
