"""Packets of flows whose legs are joined (docs/design.md section 3, step 5)."""

from tests.conformance.packetbridge.words import (
    OPENING,
    SETTLED,
    SPLICED,
    offered,
    to_backend,
    to_client,
)
from tests.conformance.vector import Vector, arrives, leaves
from tests.unit.packetbridge.scene import (
    CI,
    CLIENT_SCALE,
    FIRST,
    LI,
    NOP,
    REQUEST,
    SI,
    SIZE,
    TS,
    B,
    X,
    add,
    at_backend,
    at_client,
    from_backend,
    from_client,
    stamps,
    syn,
    syn_ack,
)
from tests.unit.wire.packets import ACK, FIN, PSH, RST, Described, ScapyOption, built, with_field, word

PLAIN = (
    ("MSS", 1400),
    NOP,
    NOP,
    ("SAckOK", b""),
    NOP,
    ("WScale", CLIENT_SCALE),
)
UNSTAMPED = (
    arrives(offered(timestamps=None), syn(PLAIN)),
    leaves(syn_ack(timestamps=None), FIRST._replace(options=())),
)
AGAIN = offered(timestamps=(TS + 300, X), window=10_000)
EXPANDED = FIRST._replace(window=(64_240 >> CLIENT_SCALE) << CLIENT_SCALE)
"""For a backend that does not scale."""
FIRST_AGAIN = FIRST._replace(window=10_000 >> CLIENT_SCALE, options=stamps(TS + 300, B))


def sack(first: int) -> ScapyOption:
    return ("SAck", (add(first, 100), add(first, 200), add(first, 300), add(first, 400)))


def rescaled(backend_scale: int | None, promised: int, window: int, expected: int) -> Vector:
    reply = from_backend(b"x", window=window)
    return Vector(
        f"a window of {window} is {expected} from scale {backend_scale} to a promised {promised}",
        (
            arrives(offered(promised=promised), syn()),
            leaves(syn_ack(scale=backend_scale), EXPANDED if backend_scale is None else FIRST),
            leaves(reply, at_client(reply)._replace(window=expected)),
        ),
    )


def changed(packet: Described, error: int) -> bytes:
    """With a TCP checksum that is wrong by so much."""
    data = built(packet)
    return with_field(data, 36, (word(data, 36) + error) % 0xFFFF)


_SCALES = [
    rescaled(*numbers)
    for numbers in (
        (7, 7, 509, 509),
        (9, 7, 509, 2036),
        (9, 7, 60_000, 65_535),
        (5, 7, 511, 127),
        (None, 7, 6400, 50),
        (7, 0, 509, 65_152),
        (2, 9, 1000, 7),
        (None, 2, 6400, 1600),
        (14, 14, 65_535, 65_535),
        (0, 0, 1, 1),
    )
]
_SEGMENTS = [
    *(
        Vector(
            f"ECN bits {ecn} are kept and DSCP cleared both ways",
            (
                *SETTLED,
                to_backend(from_client(b"x", ecn=ecn)),
                to_client(from_backend(b"y", tos=0xB8 | ecn)),
            ),
        )
        for ecn in range(4)
    ),
    *(
        Vector(
            f"flags {flags:#x} are translated both ways",
            (
                *SETTLED,
                to_backend(from_client(b"x", flags=flags)),
                to_client(from_backend(b"y", flags=flags)),
            ),
        )
        for flags in (ACK | PSH, ACK | FIN, ACK | 0x20, ACK | 0xC0, ACK | 0x100)
    ),
    *(
        Vector(
            f"a client's RST with flags {flags:#x} is translated",
            (*SETTLED, to_backend(from_client(flags=flags)), to_backend(from_client(flags=flags, sent=999))),
        )
        for flags in (RST, RST | ACK)
    ),
    *(
        Vector(
            f"payloads of {size} bytes pass both ways",
            (*SETTLED, to_backend(from_client(b"x" * size)), to_client(from_backend(b"y" * size))),
        )
        for size in (0, 1, 3, 1388, 1448)
    ),
    Vector(
        "SACK blocks of the client move with its acknowledgment",
        (
            *SETTLED,
            to_backend(
                from_client(options=(*stamps(TS + 5, X + 6), NOP, NOP, sack(LI))),
                options=(*stamps(TS + 5, B + 5), NOP, NOP, sack(SI)),
            ),
        ),
    ),
    Vector(
        "SACK blocks of the backend are in the client's numbers already",
        (
            *SETTLED,
            leaves(
                from_backend(options=(*stamps(B + 10, TS), NOP, NOP, sack(CI))),
                at_client(from_backend(), (*stamps(X + 11, TS), NOP, NOP, sack(CI))),
            ),
        ),
    ),
    Vector(
        "SACK blocks without timestamps move, too",
        (
            *UNSTAMPED,
            to_backend(from_client(options=(NOP, NOP, sack(LI))), options=(NOP, NOP, sack(SI))),
            leaves(
                from_backend(options=(NOP, NOP, sack(CI))), at_client(from_backend(), (NOP, NOP, sack(CI)))
            ),
        ),
    ),
    Vector(
        "options in an odd order and at odd places are found",
        (
            *SETTLED,
            to_backend(
                from_client(options=(NOP, ("Timestamp", (TS + 5, X + 6)), sack(LI))),
                options=(NOP, ("Timestamp", (TS + 5, B + 5)), sack(SI)),
            ),
            leaves(
                from_backend(options=(("Timestamp", (B + 10, TS)), NOP, NOP)),
                at_client(from_backend(), (("Timestamp", (X + 11, TS)), NOP, NOP)),
            ),
        ),
    ),
    *(
        Vector(
            f"options that are malformed ({area}) do not stop a segment",
            (
                *SETTLED,
                arrives(
                    from_client(b"x")._replace(options=(), raw_options=bytes.fromhex(area)),
                    at_backend(from_client(b"x"), ())._replace(raw_options=bytes.fromhex(area)),
                ),
            ),
        )
        for area in ("08000101", "ff000000", "050b0101", "01010108")
    ),
    Vector(
        "without timestamps numbers alone are translated",
        (
            *UNSTAMPED,
            to_backend(from_client(b"x", options=()), options=()),
            leaves(from_backend(b"y", options=()), at_client(from_backend(b"y"), ())),
        ),
    ),
    Vector(
        "the client's window is expanded for a backend that does not scale",
        (
            *OPENING,
            leaves(syn_ack(scale=None), EXPANDED),
            *(
                arrives(
                    from_client(b"x", window=window),
                    at_backend(from_client(b"x", window=expected)),
                )
                for window, expected in ((10, 10 << CLIENT_SCALE), (502, 65_535), (0, 0))
            ),
        ),
    ),
    Vector(
        "both sequence spaces wrap around inside a transfer",
        (
            arrives(offered(client_isn=2**32 - 20, balancer_isn=2**32 - 10), syn(client_isn=2**32 - 20)),
            leaves(syn_ack(client_isn=2**32 - 20, isn=100), FIRST._replace(seq=2**32 - 19, ack=101)),
            *(
                arrives(
                    from_client(b"x")._replace(seq=30, ack=number),
                    at_backend(from_client(b"x"))._replace(seq=30, ack=(number + 110) % 2**32),
                )
                for number in (2**32 - 9, 2**32 - 1, 0, 50)
            ),
            *(
                leaves(
                    from_backend(b"y" * 20)._replace(seq=number),
                    at_client(from_backend(b"y" * 20))._replace(seq=(number - 110) % 2**32),
                )
                for number in (101, 109, 110, 2**32 - 1)
            ),
        ),
    ),
    Vector(
        "a keepalive probe, a challenge ACK and a window probe are translated",
        (
            *SETTLED,
            to_client(from_backend(sent=-1)),
            to_backend(from_client(got=0, sent=3)),
            to_backend(from_client(b"\0", sent=SIZE - 1)),
        ),
    ),
    *(
        Vector(
            f"a checksum that is wrong by {error} stays so on every way",
            (
                *SPLICED,
                leaves(
                    changed(from_backend(b"1234"), error), changed(at_client(from_backend(b"1234")), error)
                ),
                *(
                    arrives(
                        changed(from_client(b"1234", options=stamps(TS, echo)), error),
                        changed(at_backend(from_client(b"1234"), stamps(TS, known)), error),
                    )
                    for echo, known in ((X, B), (X + 1, B), (X + 2, B + 1))
                ),
            ),
        )
        for error in (1, 0x2000)
    ),
    Vector(
        "what a link adds behind a packet does not matter",
        (
            *SETTLED,
            arrives(built(from_client()) + bytes(6), built(at_backend(from_client()))),
        ),
    ),
]
_ECHOES = [
    Vector(
        "the first TSval through the splice is one above what the client has seen",
        (
            *SPLICED,
            leaves(
                from_backend(b"x", options=stamps(B, TS)), at_client(from_backend(b"x"), stamps(X + 1, TS))
            ),
        ),
    ),
    Vector(
        "a client that echoes the balancer still echoes the backend's first TSval",
        (
            *SPLICED,
            to_backend(from_client(options=stamps(TS + 1, X)), options=stamps(TS + 1, B)),
            to_backend(from_client(b"x", options=stamps(TS + 2, X - 500)), options=stamps(TS + 2, B)),
            to_backend(from_client(options=()), options=()),
            to_backend(from_client(options=stamps(TS + 3, X + 1)), options=stamps(TS + 3, B)),
        ),
    ),
    Vector(
        "behind the client's first echo of the backend, an older one is translated as it is",
        (
            *SETTLED,
            to_backend(from_client(options=stamps(TS + 6, X)), options=stamps(TS + 6, B - 1)),
        ),
    ),
    Vector(
        "the same handoff is plain data of a spliced flow",
        (
            *SPLICED,
            arrives(AGAIN, FIRST_AGAIN, counts="same_handoff"),
            arrives(from_client(), at_backend(from_client())),
            arrives(
                offered(timestamps=(TS + 300, X + 40), window=10_000),
                FIRST_AGAIN._replace(options=stamps(TS + 300, B + 39)),
            ),
            arrives(
                offered(REQUEST + b"more", timestamps=(TS + 300, X + 40), window=10_000, ecn=2, fin=True),
                FIRST_AGAIN._replace(
                    options=stamps(TS + 300, B + 39),
                    payload=REQUEST + b"more",
                    tos=2,
                    flags=FIRST.flags | FIN,
                ),
            ),
        ),
    ),
]

VECTORS = [*_SCALES, *_SEGMENTS, *_ECHOES]
