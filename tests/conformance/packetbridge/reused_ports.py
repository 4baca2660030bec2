"""What befalls joined legs: SYN-ACKs, handoffs of other connections of the same ports, RSTs, absurd flags."""

from tests.conformance.packetbridge.spliced import PLAIN
from tests.conformance.packetbridge.words import OPENING, TO_BACKEND, in_both, offered, to_backend, to_client
from tests.conformance.vector import Vector, arrives, leaves, passes, time
from tests.unit.packetbridge.scene import (
    CI,
    FIRST,
    LI,
    SI,
    SIZE,
    TS,
    WALL,
    B,
    add,
    at_client,
    from_backend,
    from_client,
    stamps,
    syn,
    syn_ack,
)
from tests.unit.wire.packets import ACK, FIN, PSH, RST, Described

RESET = TO_BACKEND._replace(seq=CI + 1, flags=RST)
NEW_CI = CI + 900_000

_SYN_ACKS = in_both(
    "a SYN-ACK that comes again is acknowledged and kept from the client",
    leaves(
        syn_ack(timestamps=(B + 1000, TS)),
        TO_BACKEND._replace(seq=CI + 1, ack=SI + 1, flags=ACK, options=stamps(TS, B + 1000)),
        counts="syn_ack_again",
    ),
)
_OTHERS = [
    *in_both(
        "a SYN-ACK with another number is reset and kept from the client",
        leaves(syn_ack(isn=SI + 9), RESET, counts="syn_ack_renumbered"),
        to_client(from_backend()),
    ),
    *in_both(
        "a SYN-ACK of a direct connection ends the flow and passes",
        passes(syn_ack(client_isn=CI + 5), counts="syn_ack_of_other"),
        passes(from_backend()),
        arrives(
            offered(),
            Described(from_client=False, seq=add(LI, 1), ack=0, flags=RST, window=0),
            counts="replayed_handoff",
        ),
    ),
    *in_both(
        "a newer handoff takes the flow's place",
        arrives(
            offered(client_isn=NEW_CI, balancer_isn=LI + 5, time=WALL + 1),
            syn(client_isn=NEW_CI),
            counts="newer_handoff",
        ),
        leaves(from_backend(got=123), TO_BACKEND._replace(seq=CI + 124, flags=RST), syn(client_isn=NEW_CI)),
        leaves(syn_ack(client_isn=NEW_CI), FIRST._replace(seq=NEW_CI + 1)),
    ),
    *in_both(
        "a handoff of the flow that was replaced is a replay",
        arrives(offered(client_isn=NEW_CI, balancer_isn=LI + 5, time=WALL + 1), syn(client_isn=NEW_CI)),
        leaves(syn_ack(client_isn=NEW_CI), FIRST._replace(seq=NEW_CI + 1)),
        arrives(offered(), counts="replayed_handoff"),
    ),
    *in_both(
        "a handoff of the flow that was replaced is a replay, without timestamps, too",
        arrives(
            offered(client_isn=NEW_CI, balancer_isn=LI + 5, time=WALL + 1, timestamps=None),
            syn(PLAIN, client_isn=NEW_CI),
        ),
        leaves(syn_ack(client_isn=NEW_CI, timestamps=None), FIRST._replace(seq=NEW_CI + 1, options=())),
        arrives(offered(), counts="replayed_handoff"),
    ),
    *in_both(
        "an RST that is not in order is the backend's to judge",
        to_backend(from_client(flags=RST, sent=SIZE + 9, options=()), options=()),
        to_client(from_backend(b"x")),
    ),
    *in_both(
        "an older handoff changes nothing",
        arrives(offered(client_isn=CI - 7, time=WALL - 1), counts="older_handoff"),
        to_client(from_backend(b"x")),
    ),
    *in_both(
        "an RST of the backend reaches the client and ends the flow at once",
        leaves(from_backend(flags=RST | ACK), at_client(from_backend(flags=RST | ACK)), counts="backend_rst"),
        passes(from_backend()),
    ),
    *in_both(
        "flags that make no sense are dropped",
        *(
            step
            for flags in (0, FIN, PSH, FIN | RST, FIN | RST | ACK)
            for step in (
                arrives(from_client(flags=flags), counts="absurd_flags"),
                leaves(from_backend(flags=flags), counts="absurd_flags"),
            )
        ),
        leaves(from_backend(flags=2), counts="absurd_flags"),
    ),
    Vector(
        "a replay of a flow that was replaced while it opens",
        (
            *OPENING,
            arrives(offered(client_isn=NEW_CI, balancer_isn=LI + 5, time=WALL + 1), syn(client_isn=NEW_CI)),
            arrives(offered(), counts="replayed_handoff"),
            time(1),
            leaves(syn_ack(client_isn=NEW_CI), FIRST._replace(seq=NEW_CI + 1)),
        ),
    ),
]

VECTORS = [*_SYN_ACKS, *_OTHERS]
