"""How flows end: FIN, RST, silence, the kernel's answer (docs/design.md section 3, step 7)."""

from tests.conformance.packetbridge.words import END, SETTLED, SPLICED, to_backend, to_client
from tests.conformance.vector import Vector, kernel, passes, time
from tests.unit.packetbridge.scene import BACKEND_KEY, SIZE, from_backend, from_client
from tests.unit.wire.packets import RST

FINS = (to_backend(from_client(flags=END)), to_client(from_backend(flags=END, got=SIZE + 1)))
GONE = passes(from_backend())

VECTORS = [
    *(
        Vector(
            f"FINs of both sides end a flow after a minute, {name}",
            (*before, *FINS, to_backend(from_client(sent=SIZE + 1, got=1)), time(59), time(2), GONE),
        )
        for name, before in (("settled", SETTLED),)
    ),
    Vector(
        "FINs of both sides end a flow whose client never echoed the backend",
        (
            *SPLICED,
            to_client(from_backend(flags=END)),
            to_backend(from_client(flags=END, options=()), options=()),
            time(61),
            GONE,
        ),
    ),
    Vector(
        "a FIN that comes again keeps a closed flow",
        (*SETTLED, *FINS, time(50), FINS[1], time(50), to_backend(from_client(sent=SIZE + 1))),
    ),
    Vector(
        "a half-closed download goes on",
        (
            *SETTLED,
            FINS[0],
            to_client(from_backend(b"x" * 1000, got=SIZE + 1)),
            to_backend(from_client(sent=SIZE + 1, got=1000)),
            time(59),
            to_client(from_backend(b"x" * 1000, sent=1000, got=SIZE + 1)),
        ),
    ),
    *(
        Vector(
            f"a silent half-closed flow is asked for after a minute and kept, {name}",
            (
                *before,
                to_client(from_backend(flags=END)),
                time(61, asks=(BACKEND_KEY,)),
                kernel(BACKEND_KEY, exists=True, counts="socket_exists"),
                time(59),
                to_client(from_backend(sent=1)),
            ),
        )
        for name, before in (("echoing", SPLICED), ("settled", SETTLED))
    ),
    *(
        Vector(
            f"a flow whose client has reset it is asked for after ten seconds and may be gone, {name}",
            (
                *before,
                to_backend(from_client(flags=RST, options=()), options=()),
                time(9),
                time(2, asks=(BACKEND_KEY,)),
                kernel(BACKEND_KEY, exists=False, counts="socket_gone"),
                GONE,
            ),
        )
        for name, before in (("echoing", SPLICED), ("settled", SETTLED))
    ),
    Vector(
        "a forged RST of the client is the backend's to judge",
        (*SETTLED, to_backend(from_client(flags=RST, sent=SIZE + 500)), time(100), to_client(from_backend())),
    ),
    Vector(
        "data behind a forged RST makes the idle time long again",
        (
            *SETTLED,
            to_backend(from_client(flags=RST)),
            time(5),
            to_backend(from_client(b"alive")),
            time(1000),
            to_backend(from_client(sent=SIZE + 5)),
        ),
    ),
    Vector(
        "data in place of a forged FIN opens a closed flow again",
        (*SETTLED, *FINS, to_backend(from_client(b"alive")), time(61, asks=(BACKEND_KEY,))),
    ),
    Vector(
        "packets of either side keep a flow",
        (
            *SETTLED,
            time(7000),
            to_client(from_backend()),
            time(7000),
            to_backend(from_client()),
            time(7499),
            time(2, asks=(BACKEND_KEY,)),
            kernel(BACKEND_KEY, exists=True),
            time(7400),
            to_client(from_backend()),
        ),
    ),
    Vector(
        "data that went before counts for what is in order",
        (
            *SETTLED,
            to_backend(from_client(b"x" * 1000)),
            to_client(from_backend(b"y" * 1000)),
            to_backend(from_client(flags=END, sent=SIZE + 1000)),
            to_client(from_backend(flags=END, sent=1000)),
            time(61),
            GONE,
        ),
    ),
]
