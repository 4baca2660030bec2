"""The balancer's conversations at random."""

import random

from balancer.core.connection import Flow
from balancer.core.service import NonHttp
from balancer.ebpf.abi import FlowRow
from balancer.ebpf.tables import row_of
from common.hashing.request_key import KeySpec
from tests.conformance.balancer.planes import Core, Programs
from tests.conformance.balancer.words import GET, THREE_NODES, Talk, icmp_error, service
from tests.conformance.lockstep import Damage, Lockstep
from tests.conformance.oracle import START
from tests.root.bpf.arbitrary import option_area
from tests.unit.wire.packets import ACK, FIN, PSH, RST, SYN, Described, built

STEPS = 40
PORTS = (49_152, 50_000)
ISNS = (0x1000_0000, 0x7000_0000, 0xFFFF_FFF8)
WAITS = (
    (0.04, 0.02, 1.0, 32.0, 35.0, 71.0, 240.0, 310.0),
    (0.06, 5.0, 20.0, 12.0, 64.0, 305.0, 7700.0, 80.0),
)
"""Each conversation goes through one of these, so that few times occur. No sum lies near a lifetime."""
SERVICES = (
    THREE_NODES,
    service(3, key=KeySpec("uri"), hash_seed=77, non_http=NonHttp.HASH, promised_scale=3),
    service(3, key=KeySpec("segments", 2), max_payload=700),
)
REQUESTS = (
    GET,
    GET[:5],
    GET[5:],
    b"GET /other?x=1 HTTP/1.1\r\n\r\n",
    b"POST /a/%7e/../b//c HTTP/1.0\r\n\r\n" + b"x" * 300,
    b"GET /" + b"y" * 1200 + b" HTTP/1.1\r\n",
    b"GET\r\n\r\n",
    b"GET /a b\r\n\r\n",
    b"GET http://v/film/1.ts HTTP/1.1\r\n\r\n",
    b"\r\n\r\nHEAD /%41/%zz HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"GE",
    b"",
    b"",
)
FLAGS = (ACK, ACK, ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, ACK | 0xC0, FIN, 0, SYN | ACK, RST | FIN)
KEYS = tuple(Talk(port).key for port in PORTS)


class Conversation:
    def __init__(self, seed: int, programs: Programs) -> None:
        self._chance = random.Random(seed)
        made = self._chance.choice(SERVICES)
        self._core = Core(made)
        self._programs = programs
        programs.begin(made)
        self._both = Lockstep(self._core, programs)
        self._damage = Damage(self._chance, self._chance.choice((0, 8, 30)))
        self._waits = list(self._chance.choice(WAITS))
        self._now = START
        self._talks: dict[tuple[int, int], Talk] = {}

    def run(self) -> None:
        """`DisagreementError`."""
        self._begin()
        for _ in range(STEPS):
            if self._waits and self._chance.random() < 0.12:
                self._wait(self._waits.pop(0))
            self._both.arrive(self._packet())
            self._compare_flows()

    def _begin(self) -> None:
        """Often with a connection as it ought to be, that has come more or less far."""
        talk = Talk()
        self._talks[talk.port, talk.isn] = talk
        first = self._chance.choice((GET, GET, GET[:5], b"GET\r\n\r\n", b""))
        end = FIN if not first or self._chance.random() < 0.2 else 0
        whole = (talk.syn(), talk.segment(), talk.segment(first, flags=ACK | end))
        for packet in whole[: self._chance.choice((0, 2, 2, 3, 3))]:
            self._both.arrive(built(packet))

    def _wait(self, seconds: float) -> None:
        self._both.wait(seconds)
        self._now += seconds

    def _packet(self) -> bytes:
        which = self._chance.choice(PORTS), self._chance.choice(ISNS[: self._chance.choice((1, 2, 3))])
        talk = self._talks.get(which)
        if talk is None or self._chance.random() < 0.06:
            return self._damage(built(self._syn(*which)))
        if self._chance.random() < 0.05:
            return self._damage(icmp_error(talk, size=self._chance.choice((28, 36, 40))))
        return self._damage(built(self._segment(talk)))

    def _syn(self, port: int, isn: int) -> Described:
        chance = self._chance
        talk = Talk(
            port,
            isn,
            mss=chance.choice((None, 40, 536, 1400, 1460, 8960)),
            scale=chance.choice((None, 0, 7, 14)),
            sack=chance.random() < 0.7,
            clock=chance.choice((None, 5000, 5000, 0xFFFF_FFFE)),
            window=chance.choice((0, 502, 65_535)),
            greeted=self._now,
        )
        self._talks[port, isn] = talk
        if chance.random() < 0.2:
            return talk.syn(raw_options=option_area(chance), payload=chance.choice((b"", GET)))
        return talk.syn(flags=chance.choice((SYN, SYN, SYN | 0xC0)))

    def _segment(self, talk: Talk) -> Described:
        chance = self._chance
        payload = chance.choice(REQUESTS)
        if chance.random() < 0.05:
            payload = chance.randbytes(chance.randrange(1, 1400))
        made = talk.segment(
            payload,
            at=chance.choice((0, 0, 0, 0, 5, 2, len(GET), -1, 9000, 14_240, -70_000, 1 << 25)),
            ack=chance.choice((0, 0, 0, 0, 0, 1, 500, -1)),
            flags=chance.choice(FLAGS[: chance.choice((3, 5, len(FLAGS)))]),
            tos=chance.choice((0, 0, 1, 2, 0xBB)),
        )
        if chance.random() < 0.1:
            return made._replace(options=(), raw_options=option_area(chance))
        return made._replace(options=()) if chance.random() < 0.05 else made

    def _compare_flows(self) -> None:
        for key in KEYS:
            core, programs = self._core.tables.flows.get(key), self._programs.tables.flows.get(key)
            known = [flow and _known_of(flow) for flow in (core, programs)]
            if known[0] != known[1] or _times_differ(core, programs):
                self._both.fail(str(core and row_of(core)), str(programs and row_of(programs)))


def _known_of(flow: Flow) -> FlowRow:
    """All but the time until which it is contested."""
    return row_of(flow)._replace(contested_until=int(flow.plan is None))


def _times_differ(core: Flow | None, programs: Flow | None) -> bool:
    """By more than `Difference.WHOLE_SECONDS` allows."""
    if core is None or programs is None or core.plan is not None:
        return False
    return abs(core.contested_until - programs.contested_until) > 1
