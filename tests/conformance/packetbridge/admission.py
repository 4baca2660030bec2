"""Which handoffs are believed, and what becomes of segments without a flow."""

from packetbridge.core.service import Limits
from tests.conformance.differences import Difference
from tests.conformance.oracle import PREVIOUS_TAG_KEY
from tests.conformance.packetbridge.ends import FINS
from tests.conformance.packetbridge.words import ENDED, OPENING, SETTLED, SPLICED, offered, signed, to_client
from tests.conformance.vector import Vector, arrives, leaves, not_ours, passes, time
from tests.unit.packetbridge.scene import (
    CI,
    FIRST,
    LI,
    OTHER_BACKEND,
    OTHER_VIP,
    WALL,
    add,
    at_client,
    from_backend,
    from_client,
    handoff,
    syn,
    syn_ack,
)
from tests.unit.wire.packets import RST, Described, built, with_field

REPLAY_RESET = Described(from_client=False, seq=add(LI, 1), ack=0, flags=RST, window=0)
STRANGER_RESET = Described(from_client=False, seq=add(LI, 501), ack=0, flags=RST, window=0)
OTHER = signed(handoff()._replace(client_port=50_000))
OTHER_SYN = syn()._replace(client_port=50_000)
REFUSED = {
    "with a wrong tag": (handoff(tag=b"evil tag"), "handoff_bad_tag"),
    "that is 61 s old": (offered(time=WALL - 61), "handoff_too_old"),
    "from 61 s ahead": (offered(time=WALL + 61), "handoff_too_old"),
    "of an unknown DSCP": (offered(index=9), "unknown_dscp"),
    "without its options": (handoff()._replace(options=()), "not_a_handoff"),
    "without payload": (offered(b""), "bad_handoff_payload"),
    "of another version": (
        handoff()._replace(options=(*handoff().options[:-1], (253, b"\x4c\x33\x21" + bytes(11)))),
        "unknown_handoff_version",
    ),
    "of another experiment": (
        handoff()._replace(options=(*handoff().options[:-1], (253, b"\x4c\x34\x11" + bytes(11)))),
        "not_a_handoff",
    ),
}
CHANGED = {
    "its MSS": 42,
    "its client's ISN": 26,
    "its balancer's ISN": 30,
    "its time": 66,
    "its port": 20,
}

_ADMISSION = [
    *(
        Vector(f"a handoff {name} is dropped", (arrives(packet, counts=reason), passes(syn_ack())))
        for name, (packet, reason) in REFUSED.items()
    ),
    *(
        Vector(
            f"a handoff is dropped of which somebody has changed {name}",
            (arrives(with_field(built(offered()), at, 7), counts="handoff_bad_tag"),),
        )
        for name, at in CHANGED.items()
    ),
    Vector(
        "a handoff to another bridge address is not ours",
        (not_ours(signed(handoff()._replace(server="192.168.33.21"))),),
    ),
    Vector("a handoff to another port is not ours", (not_ours(offered()._replace(server_port=81)),)),
    Vector("a handoff without DSCP is not ours", (not_ours(signed(handoff(index=0))),)),
    *(
        Vector(f"a handoff that is {-age} s old is believed", (arrives(offered(time=WALL + age), syn()),))
        for age in (-60, 60)
    ),
    Vector(
        "a handoff is believed that was signed with the previous key",
        (arrives(signed(handoff(), PREVIOUS_TAG_KEY), syn()), leaves(syn_ack(), FIRST)),
    ),
    Vector(
        "tag and age of a duplicate are checked, too",
        (
            *OPENING,
            arrives(handoff(tag=b"evil tag"), counts="handoff_bad_tag"),
            arrives(offered(time=WALL - 61), counts="handoff_too_old"),
            leaves(syn_ack(), FIRST),
            arrives(handoff(tag=b"evil tag"), counts="handoff_bad_tag"),
        ),
    ),
    Vector(
        "a late duplicate of an ended flow gives the server nothing and the client a RST",
        (
            *ENDED,
            time(50),
            arrives(offered(), REPLAY_RESET, counts="replayed_handoff"),
            passes(syn_ack()),
        ),
    ),
    Vector(
        "a tombstone lasts as long as its handoff may be believed",
        (
            *ENDED,
            time(120),
            arrives(offered(time=WALL + 60), REPLAY_RESET),
            time(122),
            arrives(offered(time=WALL + 200), syn()),
        ),
    ),
    Vector(
        "each replay makes the tombstone last longer",
        (
            *ENDED,
            *(
                step
                for number in range(1, 4)
                for step in (time(100), arrives(offered(time=WALL + 100 * number), REPLAY_RESET))
            ),
        ),
    ),
    Vector(
        "a new connection with the same ports is no replay",
        (*ENDED, arrives(offered(client_isn=CI + 9), syn(client_isn=CI + 9))),
    ),
    Vector(
        "resets of replays are limited",
        (
            *ENDED,
            arrives(offered(), REPLAY_RESET),
            arrives(offered(), counts="stranger_reset_limited"),
        ),
        bridge_limits=Limits(resets_per_second=1),
    ),
    Vector(
        "a full table of flows takes no more",
        (
            *OPENING,
            arrives(OTHER, counts="flows_full"),
            leaves(syn_ack(), FIRST),
        ),
        bridge_limits=Limits(flows=1),
    ),
    Vector(
        "a flow that has closed makes room for another",
        (
            *SETTLED,
            *FINS,
            arrives(OTHER, OTHER_SYN, programs=(Difference.FULL_TABLES, [])),
            time(3),
            arrives(OTHER, OTHER_SYN),
        ),
        bridge_limits=Limits(flows=1),
    ),
    Vector(
        "one client port talks to two VIPs of one bridge",
        (
            *SPLICED,
            arrives(offered(index=2), syn()._replace(server=OTHER_BACKEND)),
            leaves(syn_ack()._replace(server=OTHER_BACKEND), FIRST._replace(server=OTHER_BACKEND)),
            to_client(from_backend(b"x")),
            leaves(
                from_backend(b"y")._replace(server=OTHER_BACKEND),
                at_client(from_backend(b"y"))._replace(server=OTHER_VIP),
            ),
        ),
    ),
]

_STRANGERS = [
    Vector(
        "a stranger is reset as the VIP three seconds later",
        (arrives(from_client(b"data", got=500)), time(2.5), time(1, STRANGER_RESET), time(5)),
        passes_up=True,
    ),
    Vector(
        "the newest acknowledgment of a stranger is the reset's number",
        (
            arrives(from_client(b"data", got=100)),
            time(0.5),
            arrives(from_client(b"data", got=500)),
            time(3, STRANGER_RESET),
        ),
        passes_up=True,
    ),
    Vector(
        "a stranger whose handoff comes within three seconds is not reset",
        (
            arrives(from_client(b"data")),
            time(2.5),
            arrives(offered(), syn()),
            time(5),
            leaves(syn_ack(), FIRST),
        ),
        passes_up=True,
    ),
    Vector(
        "a stranger whose flow has come and gone is not reset",
        (
            arrives(from_client(b"data", got=500)),
            arrives(offered(), syn()),
            passes(syn_ack(client_isn=CI + 777)),
            time(4, programs=(Difference.STRANGER_OF_A_SHORT_FLOW, [STRANGER_RESET])),
        ),
        passes_up=True,
    ),
    Vector(
        "an RST of a stranger is answered by nothing",
        (
            arrives(from_client(flags=RST), counts="client_rst_elsewhere"),
            time(5),
        ),
    ),
    Vector(
        "a client of a flow that the backend reset is reset like any stranger",
        (*ENDED, arrives(from_client(b"data", got=500)), time(4, STRANGER_RESET)),
        passes_up=True,
    ),
    Vector(
        "each VIP resets its own stranger",
        (
            arrives(from_client(b"data", got=500)._replace(tos=2 << 2)),
            time(4, STRANGER_RESET._replace(server=OTHER_VIP)),
        ),
        passes_up=True,
    ),
    Vector(
        "resets of strangers are limited",
        (
            arrives(from_client(b"data", got=500)),
            arrives(from_client(b"data", got=500)._replace(client_port=50_000)),
            time(4, STRANGER_RESET, counts="stranger_reset_limited"),
        ),
        passes_up=True,
        bridge_limits=Limits(resets_per_second=1),
    ),
    Vector(
        "direct connections of another service are left alone",
        (
            *SPLICED,
            passes(from_backend()._replace(server=OTHER_BACKEND)),
            not_ours(from_client()._replace(tos=0)),
        ),
    ),
]

VECTORS = [*_ADMISSION, *_STRANGERS]
