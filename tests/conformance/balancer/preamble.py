"""The first bytes and the node that they choose (docs/design.md section 3, step 3, and section 5)."""

import itertools

from balancer.core.service import Limits, NonHttp
from common.hashing.request_key import KeySpec
from tests.conformance import oracle
from tests.conformance.balancer.handshake import connected
from tests.conformance.balancer.planes import LIMITS
from tests.conformance.balancer.words import (
    BEHIND,
    GET,
    NODES,
    PATH,
    THREE_NODES,
    WINDOW,
    Talk,
    node_of,
    port_apart_from,
    service,
    to_node,
)
from tests.conformance.vector import Step, Vector, arrives, time
from tests.unit.wire.packets import ACK, FIN, PSH, RST, built, with_field

CLIENT = Talk(port_apart_from(PATH))
"""Path and 4-tuple have different nodes of three."""
OF_PATH, OF_PORTS = node_of(PATH), node_of(CLIENT.key)
OPEN = connected(CLIENT)
WAITING = (*OPEN, arrives(CLIENT.segment(b"GE")))
"""Two bytes are held."""
TLS = b"\x16\x03\x01\x02\x00\x01\x00"


def requests(name: str, request: bytes, hashed: bytes, **spec: object) -> Vector:
    """The request goes to the node of what is hashed."""
    talk = Talk(port_apart_from(hashed))
    seed = int(str(spec.get("hash_seed", 0)))
    node = NODES[oracle.slot(hashed, seed) % 3]
    return Vector(
        f"{name}: {request[:40]!r}",
        (*connected(talk), arrives(talk.segment(request), talk.handoff(request, node=node))),
        service=service(3, **spec),
    )


def pieces(cut: int, *, in_order: bool) -> tuple[Step, ...]:
    head, tail = CLIENT.segment(GET[:cut], flags=ACK | PSH), CLIENT.segment(GET[cut:], at=cut)
    first, second = (head, tail) if in_order else (tail, head)
    return (
        arrives(first),
        arrives(second, CLIENT.handoff(GET[:cut], node=OF_PATH), to_node(tail, OF_PATH)),
    )


def is_http(first: bytes, name: str) -> Vector:
    talk = CLIENT
    return Vector(
        f"what is not HTTP is reset: {name}",
        (*OPEN, arrives(talk.segment(first), talk.reset(), counts="not_http resets_sent")),
        service=THREE_NODES,
    )


URI, FIRST = KeySpec("uri"), KeySpec("segments", 1)
_KEYS = [
    requests("path without query", b"GET /film/1.ts?session=7 HTTP/1.1\r\n\r\n", PATH),
    requests("a fragment is cut off", b"GET /film/1.ts#x HTTP/1.1\r\n\r\n", PATH),
    requests("percent-encoding is normalised", b"GET /f%69lm/%31.ts HTTP/1.1\r\n\r\n", PATH),
    requests("dot segments are removed", b"GET /a/../film/./1.ts HTTP/1.1\r\n\r\n", PATH),
    requests("slashes are merged", b"GET //film///1.ts HTTP/1.1\r\n\r\n", PATH),
    requests("reserved characters stay encoded, in capitals", b"GET /a%2fb HTTP/1.1\r\n\r\n", b"/a%2Fb"),
    requests("another method", b"DELETE /film/1.ts HTTP/1.1\r\n\r\n", PATH),
    requests("empty lines come first", b"\r\n\r\nGET /film/1.ts HTTP/1.1\r\n\r\n", PATH),
    requests("the root", b"GET / HTTP/1.0\r\n\r\n", b"/"),
    requests("a seed", GET, PATH, hash_seed=0x1234_5678_9ABC_DEF0),
    requests("full URI", b"GET /film/1.ts?b=2 HTTP/1.1\r\n\r\n", b"/film/1.ts?b=2", key=URI),
    requests("full URI without query", GET, PATH, key=URI),
    requests("first path segment", GET, b"/film", key=FIRST),
    requests("fewer segments than asked for", GET, PATH, key=KeySpec("segments", 9)),
    requests("a long path", b"GET /" + b"x" * 1300 + b" HTTP/1.1\r\n", b"/" + b"x" * 1300),
]
_PYTHONS_KEYS = [
    Vector(made.name, made.steps, passes_up=True, service=made.service)
    for made in (
        requests("absolute form hashes like its path", b"GET http://v/film/1.ts HTTP/1.1\r\n\r\n", PATH),
        requests("OPTIONS of the server has one node", b"OPTIONS * HTTP/1.1\r\n\r\n", b"*"),
        requests("CONNECT has one node", b"CONNECT v:443 HTTP/1.1\r\n\r\n", b"CONNECT"),
    )
]

_CUTS = [
    Vector(
        f"a request cut at {cut} that comes {'in order' if in_order else 'in reverse'} keeps its affinity",
        (*OPEN, *pieces(cut, in_order=in_order)),
        passes_up=True,
        service=THREE_NODES,
    )
    for cut in (1, 3, 4, 14, 22)
    for in_order in (True, False)
]

_REORDERED = [
    Vector(
        f"three pieces in the order {order} go out behind the handoff as they came",
        (
            *OPEN,
            arrives(parts[order[0]]),
            arrives(parts[order[1]]),
            arrives(
                parts[order[2]],
                CLIENT.handoff(GET[:5], node=OF_PATH),
                *(to_node(parts[number], OF_PATH) for number in order if number),
            ),
        ),
        passes_up=True,
        service=THREE_NODES,
    )
    for parts in ((CLIENT.segment(GET[:5]), CLIENT.segment(GET[5:9], at=5), CLIENT.segment(GET[9:], at=9)),)
    for order in itertools.permutations(range(3))
    if order != (0, 2, 1)  # whose second piece completes the key
]

_WAITING = [
    Vector(
        "a client that waits for an ACK goes to the node of its 4-tuple when it retransmits",
        (
            *WAITING,
            arrives(
                CLIENT.segment(b"GE"),
                CLIENT.handoff(b"GE", node=OF_PORTS),
                counts="key_unread_at_retransmission",
            ),
            arrives(CLIENT.segment(GET[2:], at=2), to_node(CLIENT.segment(GET[2:], at=2), OF_PORTS)),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
    Vector(
        "after 50 ms without a key the connection goes to the node of its 4-tuple",
        (
            *WAITING,
            time(0.04),
            time(0.02, CLIENT.handoff(b"GE", node=OF_PORTS), counts="key_unread_in_time"),
            arrives(CLIENT.segment(GET[2:], at=2), to_node(CLIENT.segment(GET[2:], at=2), OF_PORTS)),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
    Vector(
        "a retransmission that brings the key goes to the node of the path",
        (*WAITING, arrives(CLIENT.segment(GET), CLIENT.handoff(GET, node=OF_PATH))),
        passes_up=True,
        service=THREE_NODES,
    ),
    Vector(
        "bytes that came first count for the key and the newest are forwarded",
        (
            *OPEN,
            arrives(CLIENT.segment(b"GET /fil")),
            arrives(
                CLIENT.segment(b"GET /other HTTP/1.1\r\n\r\n"),
                CLIENT.handoff(b"GET /other HTTP/1.1\r\n\r\n", node=node_of(b"/filer")),
            ),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
    Vector(
        "a FIN behind an unfinished request ends the waiting",
        (
            *OPEN,
            arrives(
                CLIENT.segment(b"GE", flags=FIN | ACK),
                CLIENT.handoff(b"GE", node=OF_PORTS, fin=True),
                counts="key_unread_at_end",
            ),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
    Vector(
        "an early FIN waits for the bytes before it",
        (
            *OPEN,
            arrives(CLIENT.segment(at=BEHIND, flags=FIN | ACK)),
            arrives(
                CLIENT.segment(GET),
                CLIENT.handoff(GET, node=OF_PATH),
                to_node(CLIENT.segment(at=BEHIND, flags=FIN | ACK), OF_PATH),
            ),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
    Vector(
        "a second segment that comes first after a lost ACK waits",
        (
            arrives(CLIENT.syn(), CLIENT.syn_ack()),
            arrives(CLIENT.segment(GET[9:], at=9)),
            arrives(
                CLIENT.segment(GET[:9]),
                CLIENT.handoff(GET[:9], node=OF_PATH),
                to_node(CLIENT.segment(GET[9:], at=9), OF_PATH),
            ),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
    Vector(
        "segments wait a minute for the start and are then forgotten",
        (
            *OPEN,
            arrives(CLIENT.segment(GET[9:], at=9)),
            time(59),
            arrives(CLIENT.segment(GET[20:], at=20)),
            time(3),
            arrives(CLIENT.segment(GET), CLIENT.reset()),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
    Vector(
        "bytes that are held stay, whatever ACK, SYN, probe, FIN, stray or RST elsewhere comes",
        (
            *WAITING,
            arrives(CLIENT.segment()),
            arrives(CLIENT.segment(at=-1), CLIENT.says()),
            arrives(CLIENT.segment(flags=FIN | ACK)),
            arrives(CLIENT.segment(at=20_000), counts="ignore"),
            arrives(CLIENT.segment(at=7, flags=RST)),
            arrives(CLIENT.syn(), CLIENT.syn_ack()),
            arrives(
                CLIENT.segment(GET[2:], at=2),
                CLIENT.handoff(b"GE", node=OF_PATH),
                to_node(CLIENT.segment(GET[2:], at=2), OF_PATH),
            ),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
    *(
        Vector(
            f"an RST at {at} forgets the bytes that are held",
            (*WAITING, arrives(CLIENT.segment(at=at, flags=RST), counts="forget"), time(1)),
            passes_up=True,
            service=THREE_NODES,
        )
        for at in (0, 2)
    ),
]

_LONG = b"GET /" + b"x" * 20_000
_FULL = [_LONG[at : at + 1424] for at in range(0, WINDOW, 1424)]
_WINDOW = [
    Vector(
        "a window full of a request without end goes to the node of the 4-tuple",
        (
            *OPEN,
            *(arrives(CLIENT.segment(_FULL[number], at=1424 * number)) for number in range(6)),
            arrives(
                CLIENT.segment(_FULL[6], at=6 * 1424),
                CLIENT.says(
                    b"HTTP/1.1 414 URI Too Long\r\nContent-Type: text/plain\r\nContent-Length: 17\r\n"
                    b"Cache-Control: no-store\r\nConnection: close\r\n\r\n414 URI Too Long\n",
                    flags=ACK | PSH | FIN,
                    ack=7 * 1424,
                ),
                counts="answered_414",
            ),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
    Vector(
        "a segment beyond the preamble window is not kept",
        (
            *OPEN,
            arrives(CLIENT.segment(b"x", at=WINDOW), counts="ignore"),
            arrives(CLIENT.segment(GET), CLIENT.handoff(GET, node=OF_PATH)),
        ),
        service=THREE_NODES,
    ),
    Vector(
        "a first payload longer than a handoff, no superpacket, is cut",
        (
            *OPEN,
            arrives(
                CLIENT.segment(GET + b"y" * 2000, flags=ACK | PSH),
                CLIENT.handoff((GET + b"y" * 2000)[:1424], node=OF_PATH),
                to_node(CLIENT.segment((GET + b"y" * 2000)[1424:], at=1424, flags=ACK | PSH), OF_PATH),
            ),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
]

_ODD = [
    is_http(TLS, "TLS"),
    is_http(b"\0", "a zero"),
    is_http(b"PRI * HTTP/2.0\r\n\r\nSM", "HTTP/2 with prior knowledge"),
    Vector(
        "what is not HTTP goes to the node of its 4-tuple by option",
        (*OPEN, arrives(CLIENT.segment(TLS), CLIENT.handoff(TLS, node=OF_PORTS), counts="not_http")),
        service=service(3, non_http=NonHttp.HASH),
    ),
    Vector(
        "what is not HTTP and damaged is dropped rather than answered",
        (
            *OPEN,
            arrives(with_field(built(CLIENT.segment(TLS)), 36, 0x1234), counts="dropped_bad_checksum"),
            time(61),
            arrives(CLIENT.segment(TLS), CLIENT.reset()),
        ),
        service=THREE_NODES,
    ),
    Vector(
        "a connection for which there is no room to wait goes to the node of its 4-tuple",
        (
            *WAITING,
            *connected(Talk(50_000)),
            arrives(Talk(50_000).segment(b"GE"), Talk(50_000).handoff(b"GE", node=node_of(Talk(50_000).key))),
        ),
        passes_up=True,
        service=THREE_NODES,
        limits=LIMITS._replace(collecting=1),
    ),
    Vector(
        "resets are limited",
        (
            arrives(CLIENT.segment(ack=9), CLIENT.reset(ack=9)),
            arrives(CLIENT.segment(ack=9), CLIENT.reset(ack=9)),
            arrives(CLIENT.segment(ack=9), counts="resets_suppressed"),
            time(2),
            arrives(CLIENT.segment(ack=9), CLIENT.reset(ack=9)),
        ),
        limits=Limits(half_open=1000, verified=1000, flows=1000, resets_per_second=2),
    ),
]

VECTORS = [*_KEYS, *_PYTHONS_KEYS, *_CUTS, *_REORDERED, *_WAITING, *_WINDOW, *_ODD]
