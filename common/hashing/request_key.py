"""What of a client's first bytes is hashed: the head of an HTTP/1 request, and the key taken out of it.

The balancer reads no more of a request than its key needs, which is method, request-target and version
of the first line; all else is the node's to judge. The parser therefore refuses only what leaves no key to
take, and tolerates what servers tolerate: bytes above 0x7f and characters that no URI may contain.

The answer is final from the byte on that settles it: more bytes never change anything but NeedMore, so it
does not matter where TCP cut the request. In the order of the bytes:

- Up to 8 empty lines (CRLF or LF) before the request line are skipped (RFC 9112 section 2.2).
- Method: 1 to 32 token characters (RFC 9110 section 5.6.2) and one space. A longer token, or one that ends
  the line, is a BadRequest; any other byte, such as the 0x16 that begins a TLS ClientHello, says NotHttp.
  So does the method PRI, reserved for the preface of HTTP/2 with prior knowledge (RFC 9113 section 3.4):
  binary frames with compressed fields follow it.
- Request-target: up to `limit` bytes, otherwise TooLong, and one space. A control character or the end of
  the line (as in HTTP/0.9, which has no version) is a BadRequest. So is a target in none of the forms of
  RFC 9112 section 3.2, or in a form that does not go with the method.
- Version: `HTTP/` digit `.` digit. Whether it is one that is served, and the rest of the line, the node says.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from common.hashing.normalise import normalise_path, normalise_query

DEFAULT_TARGET_LIMIT = 9 * 1024
"""8 KiB of path and query, and room for the scheme and authority of an absolute-form target."""

METHOD_LIMIT = 32
MAX_SEGMENTS = 64

ASTERISK_KEY = b"*"
"""Key of `OPTIONS *`, which asks about the server as a whole: one constant, so one node answers them all."""

CONNECT_KEY = b"CONNECT"
"""Key of every CONNECT. It names no object, and an origin server refuses it: one node does."""

_EMPTY_LINES = re.compile(rb"(?:\r?\n){0,8}")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]*")
_TARGET = re.compile(rb"[^\x00-\x20\x7f]*")
_ORIGIN = re.compile(rb"(/[^?#]*)(?:\?([^#]*))?(?:#.*)?")
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://[^/?#]+([^?#]*)(?:\?([^#]*))?(?:#.*)?")
_AUTHORITY = re.compile(rb"[^/?#@]+:[0-9]{1,5}")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_COUNT = re.compile(r"[0-9]{1,9}")
_A_VERSION = b"HTTP/1.1"


class TargetForm(Enum):
    """RFC 9112 section 3.2."""

    ORIGIN = auto()
    ABSOLUTE = auto()
    AUTHORITY = auto()
    ASTERISK = auto()


@dataclass(frozen=True, slots=True)
class RequestHead:
    """As sent, not normalised. A fragment, which no client should send, is cut off: it names no other object.

    `path` begins with a slash in origin-form and absolute-form (there `/` stands for an empty one), and
    is empty in the two others. `query` is without its `?`; None if there was none.
    """

    method: bytes
    form: TargetForm
    path: bytes
    query: bytes | None


@dataclass(frozen=True, slots=True)
class NeedMore:
    """A beginning of which more must come."""


@dataclass(frozen=True, slots=True)
class NotHttp:
    """Cannot be an HTTP/1 request. An error answer would be noise in another protocol."""


@dataclass(frozen=True, slots=True)
class BadRequest:
    """HTTP with a malformed request line (status 400). `method` is empty if it is not known."""

    method: bytes


@dataclass(frozen=True, slots=True)
class TooLong:
    """The request-target exceeds the limit (status 414)."""

    method: bytes


ParsedRequest: TypeAlias = RequestHead | NeedMore | NotHttp | BadRequest | TooLong


def parse_request_head_untrusted(data: bytes, limit: int = DEFAULT_TARGET_LIMIT) -> ParsedRequest:
    """Reads the request line a connection begins with; `limit` counts the target's bytes. Never raises."""
    begin = _end(_EMPTY_LINES, data, 0, len(data))
    if data[begin : begin + 2] in (b"", b"\r"):
        return NeedMore()
    end = _end(_TOKEN, data, begin, begin + METHOD_LIMIT + 1)
    if end - begin > METHOD_LIMIT:
        return BadRequest(b"")
    if end == len(data):
        return NeedMore()
    method, delimiter = data[begin:end], data[end : end + 1]
    if delimiter == b" " and method and method != b"PRI":
        return _parse_target(data, end + 1, method, limit)
    return BadRequest(b"") if delimiter in (b"\r", b"\n") and method else NotHttp()


def _parse_target(data: bytes, begin: int, method: bytes, limit: int) -> ParsedRequest:
    end = _end(_TARGET, data, begin, begin + limit + 1)
    if end - begin > limit:
        return TooLong(method)
    if end == len(data):
        return NeedMore()
    head = _split_target(method, data[begin:end])
    version = data[end + 1 : end + 1 + len(_A_VERSION)]
    completed = version + _A_VERSION[len(version) :]
    if data[end] != ord(" ") or head is None or not _VERSION.fullmatch(completed):
        return BadRequest(method)
    return head if version == completed else NeedMore()


def _split_target(method: bytes, target: bytes) -> RequestHead | None:
    """None where the target has no form that goes with the method."""
    if method == b"CONNECT":
        return RequestHead(method, TargetForm.AUTHORITY, b"", None) if _AUTHORITY.fullmatch(target) else None
    if method == b"OPTIONS" and target == b"*":
        return RequestHead(method, TargetForm.ASTERISK, b"", None)
    if origin := _ORIGIN.fullmatch(target):
        return RequestHead(method, TargetForm.ORIGIN, origin[1], origin[2])
    if absolute := _ABSOLUTE.fullmatch(target):
        return RequestHead(method, TargetForm.ABSOLUTE, absolute[1] or b"/", absolute[2])
    return None


def _end(repeated: re.Pattern[bytes], data: bytes, begin: int, limit: int) -> int:
    """Where a pattern that also matches nothing stops matching, at `limit` at the latest."""
    matched = repeated.match(data, begin, limit)
    return matched.end() if matched else begin


@dataclass(frozen=True, slots=True)
class KeySpec:
    """A kind of key by its name, and its argument, 0 where it has none. `str` gives the option's text."""

    kind: str
    argument: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.argument}" if self.argument else self.kind


DEFAULT_KEY_SPEC = KeySpec("path")


class _Kind(NamedTuple):
    allowed: str
    arguments: range
    key: Callable[[RequestHead, int], bytes]


def _path_key(head: RequestHead, _argument: int) -> bytes:
    return normalise_path(head.path)


def _uri_key(head: RequestHead, _argument: int) -> bytes:
    path = normalise_path(head.path)
    return path if head.query is None else path + b"?" + normalise_query(head.query)


def _segments_key(head: RequestHead, count: int) -> bytes:
    """Without the slash that ends the last segment, so that `/live` and `/live/1.ts` meet in `segments:1`."""
    return b"/".join(normalise_path(head.path).split(b"/", count + 1)[: count + 1])


_KINDS = {
    "path": _Kind("path", range(0), _path_key),
    "uri": _Kind("uri", range(0), _uri_key),
    "segments": _Kind(f"segments:N (N from 1 to {MAX_SEGMENTS})", range(1, MAX_SEGMENTS + 1), _segments_key),
}


def parse_key_spec(text: str) -> KeySpec:
    """Reads an option such as `path` or `segments:2`. Raises ValueError, which says what is allowed."""
    name, colon, argument = text.partition(":")
    kind = _KINDS.get(name)
    if kind is not None and not kind.arguments and not colon:
        return KeySpec(name)
    if kind is not None and _COUNT.fullmatch(argument) and int(argument) in kind.arguments:
        return KeySpec(name, int(argument))
    raise ValueError(f"hash key {text!r} is none of: {', '.join(kind.allowed for kind in _KINDS.values())}")


def request_key(head: RequestHead, spec: KeySpec) -> bytes:
    """The bytes to hash, never longer than the target. Absolute-form targets have the key of their path."""
    if head.form is TargetForm.ASTERISK:
        return ASTERISK_KEY
    if head.form is TargetForm.AUTHORITY:
        return CONNECT_KEY
    return _KINDS[spec.kind].key(head, spec.argument)
