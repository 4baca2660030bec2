"""The programs of tests/bpf/hashes.bpf.c, loaded and run."""

from typing import Annotated, NamedTuple, Self

from balancer.ebpf.abi import SERVICE, KeyKind, ServiceRow
from common.bpf.abi import OPTION_SACK, OPTION_TIMESTAMPS
from common.bpf.layout import U8, U16, U32, Be16, Be32, Layout
from common.bpf.maps import ArrayMap, HashMap
from common.bpf.objects import BpfObject
from common.bpf.run import PacketRun, SkBuff, run_packet
from common.hashing.request_key import DEFAULT_TARGET_LIMIT
from tests.bpf.programs import compiled

LINK = bytes(14)
CALLER_PADDING = bytes(32)
"""Behind a packet that only carries an argument: the kernel runs programs on Ethernet frames."""


class HandoffRow(NamedTuple):
    """The struct handoff of bpf/include/handoff.h."""

    seq: U32 = 0
    ack: U32 = 0
    value: U32 = 0
    echo: U32 = 0
    window: U16 = 0
    mss: U16 = 0
    time: U16 = 0
    window_scale: U8 = 0
    options: U8 = 0
    promised_scale: U8 = 0
    fin: U8 = 0
    key_id: U8 = 0
    zero: U8 = 0


class FlowKeyRow(NamedTuple):
    source: Be32 = bytes(4)
    destination: Be32 = bytes(4)
    source_port: Be16 = bytes(2)
    destination_port: Be16 = bytes(2)


HANDOFF = Layout(HandoffRow, "handoff")
FLOW_KEY = Layout(FlowKeyRow, "flow_key")
PATH_SERVICE = ServiceRow(
    vip=bytes(4),
    port=bytes(2),
    vip_index=1,
    key_kind=KeyKind.PATH,
    hash_seed=0,
    key_argument=0,
    target_limit=DEFAULT_TARGET_LIMIT,
    max_payload=1424,
    node_mtu=1500,
    promised_scale=7,
    non_http=0,
    table=1,
)


class Given(NamedTuple):
    """What the programs are asked about."""

    service: Annotated[ServiceRow, SERVICE] = PATH_SERVICE
    handoff: Annotated[HandoffRow, HANDOFF] = HandoffRow()
    key: Annotated[FlowKeyRow, FLOW_KEY] = FlowKeyRow()
    client_isn: U32 = 0
    isn: U32 = 0
    mss: U32 = 0
    period: U32 = 0


GIVEN = Layout(Given, "given")


class Hashes:
    def __init__(self, **constants: int) -> None:
        self._object = BpfObject(compiled("hashes"), constants=constants)
        self._given = ArrayMap(self._object.map("givens"))
        self._texts = ArrayMap(self._object.map("texts"))
        self._programs: dict[str, int] = {}
        self.keys = HashMap(self._object.map("handoff_keys"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._object.close()

    def give(self, given: Given) -> None:
        self._given.update(0, GIVEN.pack(given))

    def given(self) -> Given:
        return GIVEN.unpack(self._given.lookup(0))

    def write_text(self, text: bytes) -> None:
        self._texts.update(0, text.ljust(self._texts.info.value_size, b"\xa5"))

    def run(self, program: str, data: bytes = CALLER_PADDING, cb: tuple[int, ...] = ()) -> PacketRun:
        """On ``data`` behind a link header."""
        if program not in self._programs:
            self._programs[program] = self._object.program(program)
        a, b, c, d, e = (*cb, 0, 0, 0, 0, 0)[:5]
        return run_packet(self._programs[program], LINK + data, SkBuff(cb=(a, b, c, d, e)))

    def number(self, program: str, data: bytes = CALLER_PADDING, cb: tuple[int, ...] = ()) -> int:
        """The 64-bit number that the program tells."""
        done = self.run(program, data, cb)
        assert done.verdict == 0
        return told(done)


def told(done: PacketRun) -> int:
    low, high = done.context.cb[:2]
    return high << 32 | low


def halves(number: int) -> tuple[int, int]:
    """Of 64 bits, the low one first."""
    return number & 0xFFFFFFFF, number >> 32


def option_bits(*, sack: bool, timestamps: bool) -> int:
    return OPTION_SACK * sack | OPTION_TIMESTAMPS * timestamps
