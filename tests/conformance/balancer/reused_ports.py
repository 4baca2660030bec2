"""Another connection on the 4-tuple of one that still stands."""

from tests.conformance.balancer.answers import BAD, BAD_REQUEST, LAST
from tests.conformance.balancer.established import FLOW, data
from tests.conformance.balancer.preamble import CLIENT as HALF_CLIENT
from tests.conformance.balancer.preamble import WAITING as HALF_A_REQUEST
from tests.conformance.balancer.words import BEHIND, GET, THREE_NODES, Talk, node_of, to_node
from tests.conformance.vector import Vector, arrives, time
from tests.unit.wire.packets import ACK, FIN, RST

OLD = Talk()
NEW = OLD._replace(isn=0x7000_0000, scale=9, mss=1300)
OTHER = b"GET /other HTTP/1.1\r\n\r\n"
GREETED_ANEW = (*FLOW, arrives(NEW.syn(), NEW.syn_ack(), counts="contest"))
FORGED = NEW.segment(OTHER)._replace(ack=NEW.cookie ^ 1)
NEW_OF_HALF = HALF_CLIENT._replace(isn=0x7000_0000)

VECTORS = [
    Vector(
        "a SYN is answered and the flow lives on",
        (*GREETED_ANEW, data(), arrives(OLD.segment(GET), OLD.handoff(GET))),
    ),
    Vector(
        "a late SYN of the flow itself changes nothing",
        (*FLOW, arrives(OLD.syn(), OLD.syn_ack()), data(), time(61), data()),
    ),
    Vector(
        "a bare ACK of the new handshake is swallowed",
        (*GREETED_ANEW, arrives(NEW.segment(), counts="ignore"), data(b"", ack=1)),
    ),
    *(
        Vector(
            f"{name} of the new handshake does not reach the old node",
            (
                *GREETED_ANEW,
                arrives(NEW.segment(payload, at=at, flags=flags), counts="ignore"),
                time(300),
                data(),
            ),
        )
        for name, at, flags, payload in (
            ("a FIN", 0, FIN | ACK, b""),
            ("a probe", -1, ACK, b""),
            ("a probe of a byte", -1, ACK, b"\0"),
            ("an RST", 0, RST | ACK, b""),
            ("an RST elsewhere", 5, RST | ACK, b""),
        )
    ),
    Vector(
        "a first payload of the new handshake replaces the flow",
        (
            *GREETED_ANEW,
            arrives(NEW.segment(OTHER), NEW.handoff(OTHER), counts="start_over"),
            arrives(NEW.segment(b"x", at=len(OTHER)), to_node(NEW.segment(b"x", at=len(OTHER)))),
            arrives(NEW.segment(OTHER), NEW.handoff(OTHER)),
        ),
    ),
    Vector(
        "a first payload of the new handshake replaces the flow by its own path",
        (
            arrives(OLD.syn(), OLD.syn_ack()),
            arrives(OLD.segment(GET), OLD.handoff(GET, node=node_of(b"/film/1.ts"))),
            arrives(NEW.syn(), NEW.syn_ack()),
            arrives(NEW.segment()),
            arrives(NEW.segment(OTHER), NEW.handoff(OTHER, node=node_of(b"/other"))),
        ),
        service=THREE_NODES,
    ),
    Vector(
        "the payload of the new handshake may come in pieces and out of order",
        (
            *GREETED_ANEW,
            arrives(NEW.segment(OTHER[6:], at=6)),
            arrives(NEW.segment(OTHER[:6]), NEW.handoff(OTHER[:6]), to_node(NEW.segment(OTHER[6:], at=6))),
        ),
        passes_up=True,
    ),
    Vector(
        "a bad request of the new handshake is answered",
        (
            *GREETED_ANEW,
            arrives(NEW.segment(BAD), NEW.says(BAD_REQUEST, flags=LAST, ack=len(BAD))),
        ),
        passes_up=True,
    ),
    Vector(
        "a forged payload of a handshake that never was is data of the flow",
        (
            *GREETED_ANEW,
            arrives(FORGED, to_node(FORGED)),
        ),
    ),
    Vector(
        "without a SYN no packet is taken for another handshake",
        (*FLOW, arrives(NEW.segment(OTHER), to_node(NEW.segment(OTHER)))),
    ),
    Vector(
        "when the cookie has run out the flow is as before",
        (*GREETED_ANEW, time(61), arrives(NEW.segment(OTHER), to_node(NEW.segment(OTHER))), data()),
    ),
    Vector(
        "packets of the new handshake do not move what the old flow expects",
        (
            *GREETED_ANEW,
            arrives(NEW.segment()),
            data(b"", flags=FIN | ACK),
            time(62),
            arrives(OLD.segment(at=BEHIND), OLD.reset()),
        ),
    ),
    Vector(
        "a new handshake replaces bytes that were held of the old one",
        (
            *HALF_A_REQUEST,
            arrives(NEW_OF_HALF.syn(), NEW_OF_HALF.syn_ack()),
            arrives(NEW_OF_HALF.segment()),
            arrives(NEW_OF_HALF.segment(OTHER), NEW_OF_HALF.handoff(OTHER, node=node_of(b"/other"))),
        ),
        passes_up=True,
        service=THREE_NODES,
    ),
    Vector(
        "a flow whose 4-tuple was greeted anew before its payload came can be replaced",
        (
            arrives(OLD.syn(), OLD.syn_ack()),
            arrives(OLD.segment()),
            arrives(NEW.syn(), NEW.syn_ack()),
            arrives(OLD.segment(GET), OLD.handoff(GET)),
            arrives(NEW.segment(OTHER), NEW.handoff(OTHER)),
        ),
    ),
]
