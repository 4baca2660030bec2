"""Reading a connection's first bytes until they tell its hash key (docs/design.md section 3, step 3).

Nothing is acknowledged meanwhile, so a client that holds the rest back until it is (Nagle) would wait for
ever: after a while (`Timeouts.preamble`), or when bytes that are held come again, the connection goes to
the node of its 4-tuple.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from balancer.core import http
from balancer.core.choice import Choice, choose
from balancer.core.connection import Collecting
from balancer.core.loads import Loads
from balancer.core.service import NonHttp, Service
from common.hashing import request_key
from common.hashing.request_key import BadRequest, NeedMore, NotHttp, RequestHead, TooLong
from common.hashing.xxh64 import xxh64
from common.wire import seq, tcp
from common.wire.segment import FlowKey, Segment

GAP_SECONDS = 60.0
"""How long segments wait for the one at the stream's start."""
MAX_SEGMENTS = 256
"""How many of one connection are held: tiny ones cost as much time and memory as whole ones."""


class Verdict(NamedTuple):
    """What becomes of the connection: a node, an answer of our own, or, with neither, a reset."""

    choice: Choice | None = None
    answer: bytes = b""
    reason: str = ""
    """Names a counter; empty in the ordinary case."""


def extended(collecting: Collecting, segment: Segment, now: float, patience: float) -> Collecting:
    """With one more segment, whose payload lies within the preamble window.

    ``patience`` is how many seconds are waited for the rest once the stream's start is there.
    """
    segments = (*collecting.segments, segment)
    prefix = collecting.prefix + _continuation(collecting.handshake.first, segments, len(collecting.prefix))
    deadline = collecting.deadline
    if not collecting.prefix:
        deadline = now + (patience if prefix else GAP_SECONDS)
    return Collecting(collecting.handshake, segments, prefix, deadline)


def _continuation(first: int, segments: Iterable[Segment], begin: int) -> bytes:
    """The stream's bytes from ``begin`` to the first gap, each from the earliest segment that has it."""
    pieces = [(seq.distance(first, segment.seq), segment.payload) for segment in segments]
    ahead = [
        (start, start + len(payload), payload) for start, payload in pieces if start + len(payload) > begin
    ]
    found = bytearray()
    while True:
        at = begin + len(found)
        stop = math.inf
        for start, end, payload in ahead:
            if start <= at < end:
                found += payload[at - start : int(min(stop, end)) - start]
                break
            if start > at:
                stop = min(stop, start)
        else:
            return bytes(found)


def repeats(collecting: Collecting, segment: Segment) -> bool:
    """Whether a byte of the segment is held already: the client has begun to retransmit."""
    first = collecting.handshake.first
    start = seq.distance(first, segment.seq)
    end = start + len(segment.payload)
    for held in collecting.segments:
        held_start = seq.distance(first, held.seq)
        if start < held_start + len(held.payload) and held_start < end:
            return True
    return False


def judge(service: Service, loads: Loads, collecting: Collecting) -> Verdict | None:
    """The verdict that the bytes so far allow; None where more are needed."""
    request = request_key.parse_request_head_untrusted(collecting.prefix, service.target_limit)
    match request:
        case NeedMore():
            return None
        case RequestHead():
            return _by_hash(service, loads, request_key.request_key(request, service.key), request.method)
        case NotHttp():
            if service.non_http is NonHttp.HASH:
                return judge_unread(service, loads, collecting, "not_http")
            return Verdict(reason="not_http")
        case BadRequest(method):
            return Verdict(answer=_answer(400, method), reason="answered_400")
        case TooLong(method):
            return Verdict(answer=_answer(414, method), reason="answered_414")


def judge_unread(service: Service, loads: Loads, collecting: Collecting, reason: str) -> Verdict:
    """By the 4-tuple: the key is not known and will not be waited for."""
    segment = collecting.segments[0]
    verdict = _by_hash(service, loads, segment.key, _method(collecting))
    return verdict if verdict.answer else verdict._replace(reason=reason)


def is_complete(collecting: Collecting, window: int) -> bool:
    """Whether no more can come before somebody acknowledges: FIN behind the prefix, or the window is full."""
    end = seq.add(collecting.handshake.first, len(collecting.prefix))
    return len(collecting.prefix) >= window or _has_fin_at(collecting, end)


def contiguous_end(collecting: Collecting) -> int:
    """The sequence number behind the prefix, and behind the FIN if one follows it."""
    end = seq.add(collecting.handshake.first, len(collecting.prefix))
    return seq.add(end, 1) if _has_fin_at(collecting, end) else end


def _has_fin_at(collecting: Collecting, end: int) -> bool:
    return any(
        segment.flags & tcp.FIN and seq.add(segment.seq, len(segment.payload)) == end
        for segment in collecting.segments
    )


def _by_hash(service: Service, loads: Loads, key: bytes | FlowKey, method: bytes) -> Verdict:
    choice = choose(service, loads, xxh64(key, service.hash_seed))
    if choice is None:
        return Verdict(answer=_answer(503, method), reason="answered_503")
    return Verdict(choice)


def unavailable(collecting: Collecting) -> Verdict:
    """No room for one more connection."""
    return Verdict(answer=_answer(503, _method(collecting)), reason="answered_503")


def _method(collecting: Collecting) -> bytes:
    """What stands where the method does, whole or not."""
    return collecting.prefix.lstrip(b"\r\n").partition(b" ")[0]


def _answer(status: http.ErrorStatus, method: bytes) -> bytes:
    return http.error_answer(status, to_head=method == b"HEAD")
