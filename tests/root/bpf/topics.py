"""The programs of topics.bpf.c: a packet and a question in, the packet and an answer out."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bpf import build
from common.bpf.abi import ACTIVITY, CLOCK, ActivityCell, Clock
from common.bpf.layout import U8, U16, U32, U64, Be16, Be32, Layout, Pad2
from common.bpf.maps import ArrayMap, PerCpuArray
from common.bpf.objects import BpfObject
from common.bpf.run import SkBuff, run_packet, run_syscall

ETHERNET = bytes.fromhex("000000000000 020000000001 0800")
"""To the address of the loopback device, in whose name the kernel runs programs."""
DONE, REFUSED = 0, -1


class Question(NamedTuple):
    source: Be32 = b"\0\0\0\0"
    destination: Be32 = b"\0\0\0\0"
    source_port: Be16 = b"\0\0"
    destination_port: Be16 = b"\0\0"
    seq_delta: U32 = 0
    ack_delta: U32 = 0
    value_delta: U32 = 0
    echo_delta: U32 = 0
    window_shift: U32 = 0
    """Modulo 2^32."""
    dscp: U32 = 0
    number: U32 = 0
    now_ns: U64 = 0


class Said(NamedTuple):
    value: U32 = 0
    echo: U32 = 0
    mss: U16 = 0
    window_scale: U8 = 15
    options: U8 = 0
    malformed: U8 = 0
    stamps_at: U8 = 0
    zero: Pad2 = b"\0\0"


_QUESTION = Layout(Question, "question")
_SAID = Layout(Said, "said")
_ANSWER = struct.Struct("=4I")


class Done(NamedTuple):
    verdict: int
    packet: bytes
    """Without link header."""


class Topics:
    def __init__(self, loaded: BpfObject) -> None:
        self._loaded = loaded
        self._programs: dict[str, int] = {}
        self._question, self._answer, self._saying, self._cell, self._limits, self._clock = (
            ArrayMap(loaded.map(name)) for name in ("question", "answer", "saying", "cell", "limits", "clock")
        )

    def run(self, program: str, packet: bytes, asked: Question | None = None, *, gso_size: int = 0) -> Done:
        """On an IP packet; the question of the last run stays where none is given."""
        if asked is not None:
            self.ask(asked)
        done = run_packet(self.program(program), ETHERNET + packet, SkBuff(gso_size=gso_size))
        return Done(done.verdict, done.packet[len(ETHERNET) :])

    def run_frame(self, program: str, frame: bytes) -> tuple[int, bytes]:
        """With its link header."""
        done = run_packet(self.program(program), frame)
        return done.verdict, done.packet

    def call(self, program: str, asked: Question | None = None) -> int:
        """Of a program without packet."""
        if asked is not None:
            self.ask(asked)
        verdict, _ = run_syscall(self.program(program))
        return verdict

    def ask(self, asked: Question) -> None:
        """What programs that run by themselves go by."""
        self._question.update(0, _QUESTION.pack(asked))

    def answer(self) -> tuple[int, int, int, int]:
        a, b, c, d = _ANSWER.unpack(self._answer.lookup(0))
        return a, b, c, d

    @property
    def said(self) -> Said:
        return _SAID.unpack(self._saying.lookup(0))

    @said.setter
    def said(self, said: Said) -> None:
        self._saying.update(0, _SAID.pack(said))

    @property
    def cell(self) -> ActivityCell:
        return ACTIVITY.unpack(self._cell.lookup(0))

    @cell.setter
    def cell(self, cell: ActivityCell) -> None:
        self._cell.update(0, ACTIVITY.pack(cell))

    def set_wall(self, offset_ns: int) -> None:
        self._clock.update(0, CLOCK.pack(Clock(offset_ns)))

    def refill_limit(self) -> None:
        self._limits.update(0, bytes(8))

    def counter(self, index: int) -> int:
        return PerCpuArray(self._loaded.map("counters")).sums(index)[0]

    def program(self, name: str) -> int:
        """Its descriptor."""
        if name not in self._programs:
            self._programs[name] = self._loaded.program(name)
        return self._programs[name]


@contextmanager
def topics(directory: Path, **constants: int) -> Iterator[Topics]:
    """Compiled and loaded; ``directory`` holds the object."""
    target = directory / "topics.bpf.o"
    build.build(Path(__file__).with_name("topics.bpf.c"), target)
    with BpfObject(target, constants=constants) as loaded:
        yield Topics(loaded)
