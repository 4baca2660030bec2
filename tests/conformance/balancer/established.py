"""Flows that have their node, from the first data to the last (docs/design.md section 3, steps 5 to 7)."""

from scapy.layers.inet import ICMP

from tests.conformance.balancer.handshake import BARE, connected
from tests.conformance.balancer.words import BEHIND, GET, INDEX, NODES, Talk, icmp_error, to_node
from tests.conformance.vector import Step, Vector, arrives, not_ours, time
from tests.unit.wire.packets import (
    ACK,
    FIN,
    PSH,
    RST,
    Described,
    ScapyOption,
    built,
    with_field,
    with_ip_checksum,
    word,
)
from tests.unit.wire.packets import CLIENT as ADDRESS

CLIENT = Talk()
SACK: ScapyOption = ("SAck", (7, 107, 200, 300))
NOP: ScapyOption = ("NOP", None)


def handed_over(talk: Talk = CLIENT) -> tuple[Step, ...]:
    return (*connected(talk), arrives(talk.segment(GET), talk.handoff(GET)))


FLOW = handed_over()


def goes(sent: Described) -> Step:
    """To the node."""
    return arrives(sent, to_node(sent))


def data(payload: bytes = b"more", *, ack: int = 0, flags: int = ACK, tos: int = 0) -> Step:
    return goes(CLIENT.segment(payload, at=BEHIND, ack=ack, flags=flags, tos=tos))


LOST = arrives(CLIENT.segment(b"more", at=BEHIND), CLIENT.reset())
"""The flow is forgotten."""

_DATA = [
    Vector("data goes to the node", (*FLOW, *(data(),) * 3)),
    Vector(
        "data of a client without options goes to the node",
        (*handed_over(BARE), goes(BARE.segment(b"x", at=BEHIND))),
    ),
    *(
        Vector(f"ECN bits {ecn} are kept and DSCP {dscp} is replaced", (*FLOW, data(tos=dscp << 2 | ecn)))
        for ecn in range(4)
        for dscp in (0, 46)
    ),
    *(
        Vector(
            f"a first payload with ECN bits {ecn} becomes a handoff with them",
            (*connected(CLIENT), arrives(CLIENT.segment(GET, tos=ecn | 0x48), CLIENT.handoff(GET, ecn=ecn))),
        )
        for ecn in range(4)
    ),
    *(
        Vector(
            f"segments with flags {flags:#x} go to the node",
            (*FLOW, data(flags=flags), data(b"", flags=flags)),
        )
        for flags in (ACK | PSH, ACK | 0x20, ACK | 0xC0, ACK | 0x100, FIN | ACK, RST, RST | ACK)
    ),
    *(
        Vector(
            f"options {name} go to the node as they are",
            (*FLOW, goes(CLIENT.segment(at=BEHIND)._replace(options=options, raw_options=area))),
        )
        for name, options, area in (
            ("with SACK blocks", (NOP, NOP, SACK), None),
            ("with timestamps and SACK blocks", (NOP, NOP, ("Timestamp", (1, 2)), NOP, NOP, SACK), None),
            ("of unknown kinds", (), bytes.fromhex("fd041234")),
            ("that are malformed", (), bytes.fromhex("05ff0101")),
            ("of 40 bytes", (), bytes.fromhex("01" * 40)),
        )
    ),
    *(
        Vector(
            f"a payload of {size} bytes goes to the node",
            (*FLOW, goes(CLIENT.segment(b"y" * size, at=BEHIND))),
        )
        for size in (1, 2, 3, 1423, 1448)
    ),
    Vector(
        "a wrong checksum stays exactly as wrong",
        (
            *FLOW,
            *(
                arrives(
                    with_field(built(sent), 36, (word(built(sent), 36) + error) % 0xFFFF),
                    with_field(built(to_node(sent)), 36, (word(built(to_node(sent)), 36) + error) % 0xFFFF),
                )
                for sent in (CLIENT.segment(b"more", at=BEHIND), CLIENT.segment(at=BEHIND, flags=FIN | ACK))
                for error in (1, 0x1000)
            ),
        ),
    ),
    Vector(
        "what a link adds behind a packet is not sent on",
        (
            *FLOW,
            arrives(built(CLIENT.segment(at=BEHIND)) + bytes(6), to_node(CLIENT.segment(at=BEHIND))),
            arrives(
                built(CLIENT.segment(at=BEHIND, flags=FIN | ACK)) + b"\xff" * 6,
                to_node(CLIENT.segment(at=BEHIND, flags=FIN | ACK)),
            ),
        ),
    ),
    Vector(
        "a first payload with bytes of the link behind it is handed over without them",
        (*connected(CLIENT), arrives(built(CLIENT.segment(GET)) + bytes(5), CLIENT.handoff(GET))),
    ),
]

_AGAIN = [
    Vector(
        "a first payload that comes again is handed off again, in whatever length",
        (
            *FLOW,
            arrives(CLIENT.segment(GET), CLIENT.handoff(GET), counts="hand_off_again"),
            arrives(CLIENT.segment(GET[:10]), CLIENT.handoff(GET[:10])),
            arrives(CLIENT.segment(GET + b"more"), CLIENT.handoff(GET + b"more")),
            arrives(CLIENT.segment(GET, flags=FIN | ACK), CLIENT.handoff(GET, fin=True)),
        ),
    ),
    Vector(
        "the handoff that comes again has the newest timestamps, window and time",
        (
            *FLOW,
            time(7),
            arrives(
                CLIENT._replace(clock=12_000, window=100).segment(GET),
                CLIENT._replace(clock=12_000, window=100).handoff(GET, seconds=7),
            ),
        ),
    ),
    Vector(
        "a first payload that comes again after a minute is plain data",
        (*FLOW, time(30), data(), time(31), goes(CLIENT.segment(GET))),
    ),
    Vector(
        "a first payload whose answer was acknowledged in part is plain data",
        (*FLOW, goes(CLIENT.segment(GET, ack=500))),
    ),
    Vector(
        "a segment of the stream's start without payload is plain data",
        (*FLOW, goes(CLIENT.segment()), goes(CLIENT.segment(at=-1)), goes(CLIENT.segment(b"\0", at=-1))),
    ),
    Vector(
        "a FIN on the whole request goes with the handoff",
        (
            *connected(CLIENT),
            arrives(CLIENT.segment(GET, flags=FIN | ACK | PSH), CLIENT.handoff(GET, fin=True)),
        ),
    ),
    *(
        Vector(
            f"a window of {window} << {scale} is said in bytes",
            (*connected(talk), arrives(talk.segment(GET), talk.handoff(GET))),
        )
        for window, scale in ((0, 7), (1, 14), (511, 7), (512, 7), (65_535, 0), (65_535, 14), (65_535, None))
        for talk in (CLIENT._replace(window=window, scale=scale),)
    ),
    Vector(
        "a client's timestamps that are not in the first payload are off",
        (
            *connected(CLIENT),
            arrives(
                CLIENT.segment(GET)._replace(options=()),
                CLIENT._replace(clock=None).handoff(GET),
            ),
        ),
    ),
]

_IDLE = [
    Vector(
        "a flow is forgotten after 7500 s without a packet", (*FLOW, time(7499), data(), time(7502), LOST)
    ),
    Vector(
        "a FIN in order shortens the idle time to a minute",
        (*FLOW, data(b"", flags=FIN | ACK), time(59), goes(CLIENT.segment(at=BEHIND + 1)), time(62), LOST),
    ),
    Vector(
        "an RST in order shortens the idle time, but not below the cookie's life",
        (*FLOW, data(b"", flags=RST), time(55), data(b"", flags=RST), time(11), LOST),
    ),
    Vector(
        "a FIN on the first payload shortens the idle time",
        (
            *connected(CLIENT),
            arrives(CLIENT.segment(GET, flags=FIN | ACK), CLIENT.handoff(GET, fin=True)),
            time(62),
            LOST,
        ),
    ),
    *(
        Vector(
            f"flags {flags:#x} at {at} shorten nothing",
            (*FLOW, goes(CLIENT.segment(at=at % 2**32, flags=flags)), time(200), data()),
        )
        for flags in (FIN | ACK, RST)
        for at in (BEHIND - 2, 1 << 30, -(1 << 30), BEHIND + (1 << 24))
    ),
    *(
        Vector(
            f"a forged {name} is undone by data",
            (*FLOW, data(b"", flags=flags), data(b"more"), time(200), data(b"more")),
        )
        for flags, name in ((FIN | ACK, "FIN"), (RST, "RST"))
    ),
    Vector(
        "a FIN that overtook data counts when the bytes before it are there",
        (
            *FLOW,
            goes(CLIENT.segment(at=BEHIND + 4, flags=FIN | ACK)),
            time(100),
            data(b"more"),
            time(62),
            LOST,
        ),
    ),
    Vector(
        "a half-closed flow lives as long as it acknowledges",
        (
            *FLOW,
            data(b"", flags=FIN | ACK),
            *(step for _ in range(3) for step in (time(50), goes(CLIENT.segment(at=BEHIND + 1, ack=99)))),
        ),
    ),
    Vector(
        "data far ahead does not move what is expected",
        (
            *FLOW,
            goes(CLIENT.segment(b"x", at=BEHIND + (1 << 25))),
            data(b"", flags=FIN | ACK),
            time(70),
            LOST,
        ),
    ),
]

ABOUT = {
    "fragmentation needed": ICMP(type=3, code=4, nexthopmtu=1300),
    "host unreachable": ICMP(type=3, code=1),
    "time exceeded": ICMP(type=11, code=0),
    "parameter problem": ICMP(type=12, code=0),
}


def passed_on(about: ICMP, *, tos: int = 0, size: int = 28) -> Step:
    came = icmp_error(CLIENT, about=about, tos=tos, size=size)
    tagged = INDEX << 2 | tos & 3
    sent = icmp_error(CLIENT, about=about, source=ADDRESS, destination=NODES[0], tos=tagged, size=size)
    return arrives(came, sent, counts="forward_icmp")


TOO_BIG = icmp_error(CLIENT)
PASSED_ON = icmp_error(CLIENT, source=ADDRESS, destination=NODES[0], tos=INDEX << 2)
_ICMP = [
    *(
        Vector(
            f"{name} about a flow goes to its node as if from the client, TOS {tos}",
            (*FLOW, passed_on(about, tos=tos)),
        )
        for name, about in ABOUT.items()
        for tos in (0, 0xC2)
    ),
    Vector("a long quote is passed on whole", (*FLOW, passed_on(ABOUT["fragmentation needed"], size=548))),
    Vector(
        "an ICMP error about an unknown flow is dropped",
        (arrives(TOO_BIG, counts="dropped_icmp_of_unknown_flow"),),
    ),
    Vector(
        "ICMP that is no error, or quotes another host's packet, UDP or too little, is the host's",
        (
            *FLOW,
            not_ours(icmp_error(CLIENT, about=ICMP(type=8))),
            not_ours(icmp_error(CLIENT, about=ICMP(type=5))),
            not_ours(icmp_error(CLIENT, quoted=Described(from_client=False, server="192.168.33.99"))),
            not_ours(icmp_error(CLIENT, quoted=Described(from_client=False, server_port=81))),
            not_ours(with_field(TOO_BIG, 36, 0x4011)),
            not_ours(icmp_error(CLIENT, size=19)),
        ),
    ),
    Vector(
        "an ICMP error in fragments, with IP options or cut is dropped",
        (
            *FLOW,
            arrives(with_ip_checksum(with_field(TOO_BIG, 6, 0x2000)), counts="dropped_fragment"),
            arrives(icmp_error(CLIENT, size=27), counts="dropped_truncated"),
            arrives(with_field(TOO_BIG, 2, 2000), counts="dropped_truncated"),
        ),
    ),
    Vector(
        "a wrong IP checksum of an ICMP error stays exactly as wrong",
        (
            *FLOW,
            arrives(
                with_field(TOO_BIG, 10, (word(TOO_BIG, 10) + 1) % 0xFFFF),
                with_field(PASSED_ON, 10, (word(PASSED_ON, 10) + 1) % 0xFFFF),
            ),
        ),
    ),
]

VECTORS = [*_DATA, *_AGAIN, *_IDLE, *_ICMP]
