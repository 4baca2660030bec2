"""From a handoff to the splice (docs/design.md section 3, step 4)."""

from typing import Any

from packetbridge.core.service import Limits
from tests.conformance.differences import Difference
from tests.conformance.packetbridge.words import OPENING, SPLICED, TO_BACKEND, offered, to_backend, to_client
from tests.conformance.vector import Vector, arrives, leaves, passes, time
from tests.unit.packetbridge.scene import (
    CI,
    CLIENT_SCALE,
    FIRST,
    LI,
    NOP,
    SI,
    SIZE,
    TS,
    WALL,
    B,
    X,
    add,
    at_backend,
    from_backend,
    from_client,
    refusal,
    stamps,
    syn,
    syn_ack,
)
from tests.unit.wire.packets import ACK, FIN, RST, SYN, ScapyOption, built, with_field, word

MSS: ScapyOption = ("MSS", 1400)
SCALE: ScapyOption = ("WScale", CLIENT_SCALE)
STAMP: ScapyOption = ("Timestamp", (TS, 0))
OFFERS: dict[str, tuple[dict[str, Any], tuple[ScapyOption, ...]]] = {
    "all options": ({}, (MSS, ("SAckOK", b""), STAMP, NOP, SCALE)),
    "no SACK": ({"sack": False}, (MSS, NOP, NOP, STAMP, NOP, SCALE)),
    "no timestamps": ({"timestamps": None}, (MSS, NOP, NOP, ("SAckOK", b""), NOP, SCALE)),
    "no scale": ({"scale": None, "promised": 0}, (MSS, ("SAckOK", b""), STAMP)),
    "MSS alone": ({"scale": None, "promised": 0, "sack": False, "timestamps": None}, (MSS,)),
}
RESET = TO_BACKEND._replace(seq=CI + 1, flags=RST)
CHALLENGE = from_backend(got=123_456)
CHALLENGE_RESET = TO_BACKEND._replace(seq=CHALLENGE.ack, flags=RST)
NEW_CI = CI + 900_000
NEWER = offered(client_isn=NEW_CI, balancer_isn=LI + 5, time=WALL + 1)

_OFFERS = [
    Vector(
        f"the backend is asked as a client with {name} asks",
        (arrives(offered(**said), syn(options)),),
    )
    for name, (said, options) in OFFERS.items()
]
_ALONE = [
    Vector("a handoff becomes the SYN, and the SYN-ACK becomes the payload", SPLICED),
    *(
        Vector(
            f"a payload of {size} bytes reaches the backend",
            (arrives(offered(b"y" * size), syn()), leaves(syn_ack(), FIRST._replace(payload=b"y" * size))),
        )
        for size in (1, 2, 3, 511, 512, 513, 1023, 1025, 1423, 1424)
    ),
    *(
        Vector(
            f"the first payload keeps ECN bits {ecn} and loses its DSCP",
            (arrives(offered(ecn=ecn), syn()), leaves(syn_ack(), FIRST._replace(tos=ecn))),
        )
        for ecn in range(4)
    ),
    Vector(
        "a FIN of the first payload is given to the backend",
        (arrives(offered(fin=True), syn()), leaves(syn_ack(), FIRST._replace(flags=FIRST.flags | FIN))),
    ),
    Vector(
        "a first payload without timestamps has no options",
        (
            arrives(offered(timestamps=None), syn(OFFERS["no timestamps"][1])),
            leaves(syn_ack(timestamps=None), FIRST._replace(options=())),
        ),
    ),
    Vector(
        "the backend's timestamps are of no use without the client's",
        (
            arrives(offered(timestamps=None), syn(OFFERS["no timestamps"][1])),
            leaves(syn_ack(), FIRST._replace(options=())),
        ),
    ),
    Vector(
        "the window of a client without scale is taken as it is",
        (
            arrives(offered(scale=None, promised=0), syn(OFFERS["no scale"][1])),
            leaves(syn_ack(scale=None), FIRST._replace(window=64_240)),
        ),
    ),
    Vector(
        "windows are expanded for a backend that does not scale",
        (
            arrives(offered(window=20_000), syn()._replace(window=20_000)),
            leaves(syn_ack(scale=None), FIRST._replace(window=20_000 >> CLIENT_SCALE << CLIENT_SCALE)),
        ),
    ),
    Vector(
        "the same handoff sends the same SYN again",
        (
            *OPENING,
            time(1),
            arrives(offered(timestamps=(TS + 1000, X), time=WALL + 1), syn(), counts="same_handoff"),
            leaves(syn_ack(), FIRST),
        ),
    ),
    Vector(
        "a longer retransmission waits, too",
        (
            arrives(offered(b"GE"), syn()),
            arrives(offered(time=WALL + 1), syn()),
            leaves(
                syn_ack(),
                FIRST._replace(payload=b"GE"),
                FIRST,
                programs=(Difference.LONGER_RETRANSMISSION, [FIRST]),
            ),
        ),
    ),
    Vector(
        "a shorter retransmission does not wait",
        (*OPENING, arrives(offered(b"GE"), syn()), leaves(syn_ack(), FIRST)),
    ),
    Vector(
        "a damaged first payload does not become a right one",
        (
            arrives(
                with_field(built(offered()), 80, word(built(offered()), 80) ^ 0x0101),
                syn(),
                programs=(Difference.DAMAGED_FIRST_PAYLOAD, []),
            ),
        ),
    ),
    Vector(
        "sequence numbers wrap around while the flow opens",
        (
            arrives(offered(client_isn=2**32 - 1, balancer_isn=2**32 - 1), syn(client_isn=2**32 - 1)),
            leaves(syn_ack(client_isn=2**32 - 1, isn=2**32 - 1), FIRST._replace(seq=0, ack=0)),
            arrives(
                from_client(b"x")._replace(seq=SIZE, ack=10),
                at_backend(from_client(b"x"))._replace(seq=SIZE, ack=10),
            ),
        ),
    ),
    Vector(
        "timestamps wrap around while the flow opens",
        (
            arrives(offered(timestamps=(TS, 2**32 - 1)), syn()),
            leaves(syn_ack(timestamps=(2**32 - 1, TS)), FIRST._replace(options=stamps(TS, 2**32 - 1))),
            leaves(
                from_backend(b"x", options=stamps(2, TS)),
                from_backend(b"x", options=stamps(3, TS))._replace(
                    server="192.168.33.10", server_port=80, seq=add(SI + 1, LI - SI)
                ),
            ),
            to_backend(from_client(options=stamps(TS, 2**32 - 1)), options=stamps(TS, 2**32 - 1)),
            to_backend(from_client(options=stamps(TS, 3)), options=stamps(TS, 2)),
        ),
    ),
]

_EARLY = [
    from_client(b"2" * 100, options=stamps(TS + 1, X)),
    from_client(b"3" * 50, sent=SIZE + 100, options=stamps(TS + 1, X)),
]
_WAITED = [at_backend(each, stamps(TS + 1, B)) for each in _EARLY]
_AHEAD = from_client(b"2", options=stamps(TS + 1, X + 50))
_WAITING = [
    Vector(
        "early segments wait and go in the order of their numbers",
        (*OPENING, arrives(_EARLY[1]), arrives(_EARLY[0]), leaves(syn_ack(), FIRST, *_WAITED)),
        passes_up=True,
    ),
    Vector(
        "an early FIN goes behind the payload",
        (
            *OPENING,
            arrives(from_client(flags=FIN | ACK, options=stamps(TS, X))),
            leaves(syn_ack(), FIRST, at_backend(from_client(flags=FIN | ACK), stamps(TS, B))),
        ),
        passes_up=True,
    ),
    Vector(
        "a waiting segment has no other echo than the SYN-ACK's",
        (
            *OPENING,
            arrives(_AHEAD),
            leaves(syn_ack(), FIRST, at_backend(_AHEAD, stamps(TS + 1, B))),
        ),
        passes_up=True,
    ),
    Vector(
        "what waits is forgotten with a flow that is replaced",
        (
            *OPENING,
            arrives(_EARLY[0]),
            arrives(NEWER, syn(client_isn=NEW_CI)),
            leaves(
                syn_ack(client_isn=NEW_CI),
                FIRST._replace(seq=NEW_CI + 1),
                programs=(
                    Difference.SEGMENT_OF_A_REPLACED_FLOW,
                    [FIRST._replace(seq=NEW_CI + 1), _WAITED[0]._replace(ack=_WAITED[0].ack - 5)],
                ),
            ),
        ),
        passes_up=True,
    ),
    Vector(
        "what waits waits as long as the flow opens",
        (
            *OPENING,
            arrives(_EARLY[0]),
            time(50),
            arrives(offered(), syn()),
            time(50),
            leaves(syn_ack(), FIRST, _WAITED[0], programs=(Difference.LONG_WAIT, [FIRST])),
        ),
        passes_up=True,
    ),
    Vector(
        "what waits is forgotten with its flow",
        (
            *OPENING,
            arrives(_EARLY[0]),
            arrives(from_client(flags=RST, sent=SIZE + 100, options=()), RESET),
            time(1),
        ),
        passes_up=True,
    ),
    Vector(
        "what waits for one flow is bounded",
        (
            arrives(offered(), syn()),
            arrives(_EARLY[0]),
            arrives(_EARLY[1], counts="waiting_full"),
            leaves(syn_ack(), FIRST, _WAITED[0]),
        ),
        passes_up=True,
        bridge_limits=Limits(waiting_per_flow=240),
    ),
]

_ENDS = [
    Vector(
        "a client's RST in order ends an opening flow at the backend",
        (
            *OPENING,
            arrives(from_client(flags=RST, options=()), RESET, counts="client_rst_in_order"),
            passes(syn_ack()),
        ),
    ),
    Vector(
        "a forged RST of the client does not end an opening flow",
        (
            *OPENING,
            arrives(from_client(flags=RST, options=(), sent=SIZE + 1), counts="client_rst_elsewhere"),
            leaves(syn_ack(), FIRST),
        ),
    ),
    Vector(
        "a closed port of the backend resets the client at once",
        (
            *OPENING,
            leaves(
                syn_ack()._replace(seq=0, flags=RST | ACK, window=0, options=()),
                refusal(),
                counts="backend_refusal",
            ),
        ),
    ),
    Vector(
        "an RST of an older connection is not passed on to the client",
        (
            *OPENING,
            leaves(from_backend(flags=RST, options=()), counts="backend_rst"),
            leaves(syn_ack(), FIRST),
        ),
    ),
    Vector(
        "a challenge ACK is answered as in SYN-SENT and the SYN sent again",
        (
            *OPENING,
            leaves(CHALLENGE, CHALLENGE_RESET, syn(), counts="backend_segment"),
            leaves(syn_ack(), FIRST),
        ),
    ),
    Vector(
        "an older connection is reset three times at most",
        (
            *OPENING,
            *(leaves(from_backend(b"old data", got=123_456), CHALLENGE_RESET, syn()),) * 3,
            leaves(from_backend(b"old data", got=123_456), counts="opening_retries_exhausted"),
        ),
    ),
    Vector(
        "a SYN-ACK of the replaced flow is reset and the SYN sent again",
        (
            *OPENING,
            arrives(NEWER, syn(client_isn=NEW_CI), counts="newer_handoff"),
            leaves(syn_ack(), RESET, syn(client_isn=NEW_CI), counts="syn_ack_of_replaced"),
            leaves(syn_ack(client_isn=NEW_CI), FIRST._replace(seq=NEW_CI + 1)),
        ),
    ),
    Vector(
        "a SYN-ACK of a direct connection passes, and the client may try again",
        (
            *OPENING,
            passes(syn_ack(client_isn=CI + 777), counts="syn_ack_of_other"),
            arrives(offered(), syn()),
        ),
    ),
    Vector(
        "a backend without the client's timestamps is reset, and so is the client",
        (*OPENING, leaves(syn_ack(timestamps=None), RESET, refusal(), counts="syn_ack_lacks_timestamps")),
    ),
    Vector(
        "an opening flow ends after a minute of silence",
        (*OPENING, time(59), time(2), passes(syn_ack())),
    ),
    Vector(
        "an opening flow that is asked for again lives on",
        (*OPENING, time(50), arrives(offered(), syn()), time(50), leaves(syn_ack(), FIRST)),
    ),
    Vector(
        "an older handoff does not change an opening flow",
        (
            arrives(offered(time=WALL - 1), syn()),
            arrives(offered(client_isn=CI + 5, time=WALL - 2), counts="older_handoff"),
            leaves(syn_ack(), FIRST),
        ),
    ),
    *(
        Vector(
            f"a SYN with flags {flags:#x} is no handoff",
            (arrives(offered()._replace(flags=flags), counts="absurd_flags"),),
        )
        for flags in (SYN | ACK, SYN | FIN, SYN | RST, SYN | 0x40, SYN | 0x100)
    ),
    Vector(
        "a malformed SYN-ACK opens nothing",
        (
            *OPENING,
            leaves(
                syn_ack()._replace(options=(), raw_options=bytes.fromhex("02000000")),
                counts="bad_tcp_options",
            ),
            leaves(syn_ack(), FIRST),
        ),
    ),
]
DATA_BEFORE_ECHO = Vector(
    "the backend's data goes to the client before the client has echoed it",
    (*SPLICED, to_client(from_backend(b"x"))),
)

VECTORS = [*_OFFERS, *_ALONE, *_WAITING, *_ENDS, DATA_BEFORE_ECHO]
