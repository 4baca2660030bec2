"""SYN, its answer, the bare ACK, and clients that say nothing (docs/design.md section 3, steps 1 and 2)."""

import struct

from tests.conformance.balancer.words import GET, Talk, service, to_node
from tests.conformance.vector import Step, Vector, arrives, time
from tests.unit.wire.packets import ACK, FIN, PSH, RST, SYN, built, with_field

CLIENT = Talk()
BARE = Talk(mss=None, scale=None, sack=False, clock=None)
OFFERS = {
    "all options": CLIENT,
    "no options": BARE,
    "MSS alone": BARE._replace(mss=1200),
    "MSS and SACK": BARE._replace(mss=1460, sack=True),
    "window scale 0 without timestamps": BARE._replace(mss=1460, scale=0),
    "SACK and window scale 14 without timestamps": BARE._replace(mss=1460, scale=14, sack=True),
    "timestamps without SACK": CLIENT._replace(sack=False),
    "timestamps without window scale": CLIENT._replace(scale=None),
    "timestamps alone": CLIENT._replace(scale=None, sack=False, mss=None),
    "window scale 1": CLIENT._replace(scale=1),
    "a TSval that wraps": CLIENT._replace(clock=0xFFFF_FFFF),
    "an MSS below all classes": CLIENT._replace(mss=40),
    "a jumbo MSS": CLIENT._replace(mss=8960),
}
SMALLER_PATH = service(max_payload=1000, promised_scale=9)
ON_SMALLER_PATH = CLIENT._replace(max_payload=1000, promised_scale=9)
NEWER = CLIENT._replace(isn=0x7000_0000, scale=9, mss=1300)


def connected(talk: Talk) -> tuple[Step, ...]:
    """The whole handshake."""
    return arrives(talk.syn(), talk.syn_ack()), arrives(talk.segment())


GREETED = (arrives(CLIENT.syn(), CLIENT.syn_ack(), counts="answer_syn"),)
VERIFIED = (*GREETED, arrives(CLIENT.segment(), counts="remember"))

_OPTIONS = [
    Vector(
        f"a SYN with {name} is answered and handed over with just these",
        (
            arrives(talk.syn(), talk.syn_ack()),
            arrives(talk.segment()),
            arrives(talk.segment(GET), talk.handoff(GET)),
        ),
    )
    for name, talk in OFFERS.items()
]

_FLAGS = [
    Vector(
        f"a SYN with flags {flags:#x} is an ordinary SYN",
        (arrives(CLIENT.syn(flags=flags), CLIENT.syn_ack()),),
    )
    for flags in (SYN | 0xC0, SYN | 0x1C0, SYN | PSH, SYN | 0x20)
]

_MALFORMED = [
    Vector(
        f"options that are malformed ({area}) count as none",
        (
            arrives(
                CLIENT.syn(raw_options=bytes.fromhex(area)),
                BARE._replace(isn=CLIENT.isn).syn_ack(),
            ),
        ),
    )
    for area in ("020405b404020801", "ffffffff", "01010102", "02000000", "03010101", "080affff")
]

_WRAPPING = [
    Vector(
        f"client numbers wrap around behind the ISN {isn:#x}",
        (
            arrives(talk.syn(), talk.syn_ack()),
            arrives(talk.segment()),
            arrives(talk.segment(GET), talk.handoff(GET)),
            arrives(talk.segment(b"more", at=len(GET)), to_node(talk.segment(b"more", at=len(GET)))),
        ),
    )
    for isn in (0, 0xFFFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFF0, 0x7FFF_FFFF)
    for talk in (Talk(isn=isn),)
]

_PROBES = [
    Vector(
        f"a keepalive probe of {len(probe)} bytes is answered with an ACK of nothing, {name}, {options}",
        (
            arrives(talk.syn(), talk.syn_ack()),
            *((arrives(talk.segment()),) if verified else ()),
            arrives(talk.segment(probe, at=-1), talk.says(), counts="answer_probe"),
            arrives(talk.segment(probe, at=-1), talk.says()),
            arrives(talk.segment(GET), talk.handoff(GET)),
        ),
    )
    for probe in (b"", b"\0")
    for verified, name in ((True, "verified"), (False, "half-open"))
    for talk, options in ((CLIENT, "with options"), (BARE, "without"))
]

_UNREMEMBERED = CLIENT._replace(port=40_000, mss=1400)
"""Its MSS is that of its class, so the cookie has all."""

_ALONE = [
    Vector(
        "data in the SYN is neither acknowledged nor remembered",
        (
            arrives(CLIENT.syn(payload=GET), CLIENT.syn_ack()),
            arrives(CLIENT.segment()),
            arrives(CLIENT.segment(GET), CLIENT.handoff(GET)),
        ),
    ),
    Vector(
        "fast open cookie and unknown options are ignored",
        (
            arrives(
                CLIENT.syn(
                    raw_options=bytes.fromhex("020405b40402080a")
                    + struct.pack(">II", CLIENT.clock or 0, 0)
                    + bytes.fromhex("0103030722040102fd041234")
                ),
                CLIENT.syn_ack(),
            ),
        ),
    ),
    Vector(
        "a SYN that comes again gets the same answer",
        (arrives(CLIENT.syn(), CLIENT.syn_ack()), arrives(CLIENT.syn(), CLIENT.syn_ack())),
    ),
    Vector(
        "the SYN-ACK's numbers move on with the time",
        (
            arrives(CLIENT.syn(), CLIENT.syn_ack()),
            time(31),
            arrives(CLIENT.syn(), CLIENT._replace(greeted=1031.0).syn_ack()),
        ),
    ),
    Vector(
        "a smaller path to the nodes and another scale show in the SYN-ACK",
        (
            arrives(ON_SMALLER_PATH.syn(), ON_SMALLER_PATH.syn_ack()),
            arrives(ON_SMALLER_PATH.segment(GET), ON_SMALLER_PATH.handoff(GET)),
        ),
        service=SMALLER_PATH,
    ),
    Vector(
        "a damaged SYN is not answered",
        (
            arrives(with_field(built(CLIENT.syn()), 36, 0x1234), counts="dropped_bad_checksum"),
            arrives(CLIENT.syn(), CLIENT.syn_ack()),
        ),
    ),
    Vector(
        "a first payload alone proves the handshake",
        (*GREETED, arrives(CLIENT.segment(GET), CLIENT.handoff(GET))),
    ),
    Vector(
        "a client that nobody remembers has its options from cookie and TSval",
        (arrives(_UNREMEMBERED.segment(GET), _UNREMEMBERED.handoff(GET)),),
    ),
    Vector(
        "a bare ACK that nobody remembers verifies the connection",
        (
            arrives(_UNREMEMBERED.segment(), counts="remember"),
            arrives(_UNREMEMBERED.segment(), counts="remember"),
            time(200),
            arrives(_UNREMEMBERED.segment(GET), _UNREMEMBERED.handoff(GET, seconds=200)),
        ),
    ),
    Vector(
        "a keepalive probe that nobody remembers is answered",
        (arrives(_UNREMEMBERED.segment(at=-1), _UNREMEMBERED.says()),),
    ),
    Vector(
        "a verified connection outlives its cookie and is forgotten after five minutes",
        (
            *VERIFIED,
            time(299),
            arrives(CLIENT.segment()),
            time(2),
            arrives(CLIENT.segment(GET), CLIENT.reset(), counts="resets_sent"),
        ),
    ),
    Vector(
        "a cookie older than its lifetime is reset",
        (*GREETED, time(61), arrives(CLIENT.segment(), CLIENT.reset(), counts="reset")),
    ),
    Vector(
        "a cookie of the period before is good",
        (*GREETED, time(45), arrives(CLIENT.segment(GET), CLIENT.handoff(GET, seconds=45))),
    ),
    Vector(
        "a cookie of another secret is reset with the segment's own number",
        (arrives(CLIENT.segment(ack=5), CLIENT.reset(ack=5)),),
    ),
    Vector(
        "an RST at the expected number forgets a verified connection",
        (
            *VERIFIED,
            arrives(CLIENT.segment(flags=RST), counts="forget"),
            time(61),
            arrives(CLIENT.segment(GET), CLIENT.reset()),
        ),
    ),
    Vector(
        "an RST elsewhere leaves a verified connection alone",
        (
            *VERIFIED,
            arrives(CLIENT.segment(at=1, flags=RST), counts="ignore"),
            arrives(CLIENT.segment(at=1, flags=RST | ACK), counts="ignore"),
            arrives(CLIENT.segment(GET), CLIENT.handoff(GET)),
        ),
    ),
    Vector(
        "an RST of a half-open connection forgets nothing",
        (
            *GREETED,
            arrives(CLIENT.segment(flags=RST | ACK), counts="ignore"),
            arrives(CLIENT.segment(at=5, flags=RST | ACK), counts="ignore"),
            arrives(CLIENT.segment(GET), CLIENT.handoff(GET)),
        ),
    ),
    Vector(
        "a verified connection ignores an ACK of what was never sent",
        (
            *VERIFIED,
            arrives(CLIENT.segment(GET, ack=1), counts="ignore"),
            arrives(CLIENT.segment(GET), CLIENT.handoff(GET)),
        ),
    ),
    Vector(
        "a FIN below the stream is no keepalive probe and ends nothing",
        (
            *VERIFIED,
            arrives(CLIENT.segment(at=-1, flags=FIN | ACK), counts="ignore"),
            arrives(CLIENT.segment(b"\0", at=-1, flags=FIN | ACK), counts="ignore"),
            arrives(CLIENT.segment(GET), CLIENT.handoff(GET)),
        ),
    ),
    Vector(
        "a later handshake of a verified port takes its place",
        (
            *VERIFIED,
            arrives(NEWER.syn(), NEWER.syn_ack()),
            arrives(NEWER.segment()),
            arrives(NEWER.segment(GET), NEWER.handoff(GET)),
        ),
    ),
]

VECTORS = [*_OPTIONS, *_FLAGS, *_MALFORMED, *_WRAPPING, *_PROBES, *_ALONE]
