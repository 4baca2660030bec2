"""What the balancer answers by itself (docs/design.md section 3, what may not go wrong)."""

from tests.conformance.balancer.handshake import BARE, VERIFIED, connected
from tests.conformance.balancer.planes import LIMITS
from tests.conformance.balancer.words import GET, NO_NODE, Talk, to_node
from tests.conformance.vector import Step, Vector, arrives, time
from tests.unit.wire.packets import ACK, FIN, PSH, RST, built, with_field

CLIENT = Talk()
BAD = b"GET\r\n\r\n"
LAST = ACK | PSH | FIN


def answer(status: str, *, body: bool = True, more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(status) + 1}\r\n"
        f"Cache-Control: no-store\r\nConnection: close\r\n{more}\r\n"
    )
    return (head + (f"{status}\n" if body else "")).encode()


BAD_REQUEST, TOO_LONG = answer("400 Bad Request"), answer("414 URI Too Long")
UNAVAILABLE = answer("503 Service Unavailable", more="Retry-After: 5\r\n")
HEAD_UNAVAILABLE = answer("503 Service Unavailable", more="Retry-After: 5\r\n", body=False)
BEHIND_ANSWER = len(BAD_REQUEST) + 1
"""What the client acknowledges of answer and FIN."""


def refused(talk: Talk = CLIENT) -> tuple[Step, ...]:
    """A connection whose bad request has been answered."""
    said = talk.says(BAD_REQUEST, flags=LAST, ack=len(BAD))
    return (*connected(talk), arrives(talk.segment(BAD), said, counts="answered_400"))


REFUSED = refused()
CLOSED = (*VERIFIED, arrives(CLIENT.segment(flags=FIN | ACK), CLIENT.says(flags=FIN | ACK, ack=1)))
"""The client has closed without a word."""

_KINDS = [
    *(
        Vector(
            f"a malformed request line is answered with 400: {request!r}",
            (
                *connected(talk),
                arrives(talk.segment(request), talk.says(BAD_REQUEST, flags=LAST, ack=len(request))),
            ),
            passes_up=True,
        )
        for request in (BAD, b"GET /a\r\n\r\n", b"GET a HTTP/1.1\r\n", b"GET /a HTTP/x\r\n", b"GET / \t\r\n")
        for talk in (CLIENT,)
    ),
    Vector("an answer to a client without options has none", refused(BARE), passes_up=True),
    Vector(
        "no node is answered with 503",
        (
            *connected(CLIENT),
            arrives(
                CLIENT.segment(GET), CLIENT.says(UNAVAILABLE, flags=LAST, ack=len(GET)), counts="answered_503"
            ),
        ),
        passes_up=True,
        service=NO_NODE,
    ),
    Vector(
        "no node is answered to HEAD without a body",
        (
            *connected(CLIENT),
            arrives(
                CLIENT.segment(b"HEAD / HTTP/1.1\r\n\r\n"), CLIENT.says(HEAD_UNAVAILABLE, flags=LAST, ack=19)
            ),
        ),
        passes_up=True,
        service=NO_NODE,
    ),
    Vector(
        "a full flow table is answered with 503",
        (
            *connected(CLIENT),
            arrives(CLIENT.segment(GET), CLIENT.handoff(GET)),
            *connected(Talk(50_000)),
            arrives(
                Talk(50_000).segment(GET),
                Talk(50_000).says(UNAVAILABLE, flags=LAST, ack=len(GET)),
                counts="flow_table_full",
            ),
        ),
        passes_up=True,
        limits=LIMITS._replace(flows=1),
    ),
    Vector(
        "a damaged bad request is dropped rather than answered, and its repetition judged anew",
        (
            *connected(CLIENT),
            arrives(with_field(built(CLIENT.segment(BAD)), 36, 0x1234), counts="dropped_bad_checksum"),
            arrives(CLIENT.segment(BAD), CLIENT.says(BAD_REQUEST, flags=LAST, ack=len(BAD))),
        ),
        passes_up=True,
    ),
    Vector(
        "a number of the answer wraps around",
        refused(Talk(isn=0xFFFF_FFFA)),
        passes_up=True,
    ),
]

_LATER = [
    Vector(
        "an answer is made again for each retransmission",
        (*REFUSED, *(arrives(CLIENT.segment(BAD), CLIENT.says(BAD_REQUEST, flags=LAST, ack=len(BAD))),) * 2),
        passes_up=True,
    ),
    Vector(
        "the client's bytes and FIN are acknowledged behind the answer",
        (
            *REFUSED,
            arrives(CLIENT.segment(at=len(BAD), ack=BEHIND_ANSWER)),
            arrives(
                CLIENT.segment(at=len(BAD), ack=BEHIND_ANSWER, flags=FIN | ACK),
                CLIENT.says(at=BEHIND_ANSWER, ack=len(BAD) + 1),
            ),
            arrives(
                CLIENT.segment(at=len(BAD), ack=BEHIND_ANSWER, flags=FIN | ACK),
                CLIENT.says(at=BEHIND_ANSWER, ack=len(BAD) + 1),
            ),
        ),
        passes_up=True,
    ),
    Vector(
        "an RST forgets an answered connection at the expected number alone",
        (
            *REFUSED,
            arrives(CLIENT.segment(at=99, flags=RST)),
            arrives(CLIENT.segment(BAD), CLIENT.says(BAD_REQUEST, flags=LAST, ack=len(BAD))),
            arrives(CLIENT.segment(at=len(BAD), flags=RST), counts="forget"),
        ),
        passes_up=True,
    ),
    Vector(
        "what cannot belong to an answered connection is ignored",
        (
            *REFUSED,
            arrives(CLIENT.segment(b"x", ack=BEHIND_ANSWER + 1)),
            arrives(CLIENT.segment(b"x", ack=-1)),
            arrives(CLIENT.segment(b"x", at=20_000)),
        ),
        passes_up=True,
    ),
    Vector(
        "an answered connection is forgotten after a minute",
        (*REFUSED, time(59), time(2), arrives(CLIENT.segment(BAD), CLIENT.reset())),
        passes_up=True,
    ),
    Vector(
        "a SYN of an answered port begins another connection",
        (
            *REFUSED,
            arrives(Talk(isn=0x7000_0000).syn(), Talk(isn=0x7000_0000).syn_ack()),
            arrives(Talk(isn=0x7000_0000).segment(), counts="ignore"),
            arrives(Talk(isn=0x7000_0000).segment(GET), Talk(isn=0x7000_0000).handoff(GET)),
            arrives(
                Talk(isn=0x7000_0000).segment(b"x", at=len(GET)),
                to_node(Talk(isn=0x7000_0000).segment(b"x", at=len(GET))),
            ),
        ),
        passes_up=True,
    ),
    Vector(
        "a FIN before any byte is answered with a FIN, each time",
        (
            *CLOSED,
            arrives(CLIENT.segment(flags=FIN | ACK), CLIENT.says(flags=FIN | ACK, ack=1)),
            arrives(CLIENT.segment(at=1, ack=1)),
        ),
        passes_up=True,
    ),
    Vector(
        "a FIN of a half-open connection is answered with a FIN",
        (
            arrives(CLIENT.syn(), CLIENT.syn_ack()),
            arrives(CLIENT.segment(flags=FIN | ACK), CLIENT.says(flags=FIN | ACK, ack=1), counts="close"),
        ),
        passes_up=True,
    ),
]

VECTORS = [*_KINDS, *_LATER]
