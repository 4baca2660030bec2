"""Both data planes given the same packets at random, by a seed; they must agree on each."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tests.conformance.plane import Plane, comparable
from tests.conformance.play import shown
from tests.unit.wire.packets import tcp_checksum, with_field, with_ip_checksum


class DisagreementError(AssertionError):
    """The planes differ; the message has all that was done until then."""


class Lockstep:
    def __init__(
        self, core: Plane, programs: Plane, may_add: Callable[[bytes], bool] = lambda _: False
    ) -> None:
        """``may_add`` tells of packets that programs may send in addition when time passes."""
        self._core = core
        self._programs = programs
        self._may_add = may_add
        self._log: list[str] = []

    def arrive(self, packet: bytes) -> list[bytes] | None:
        return self._both(f"arrives {packet.hex()}", lambda plane: plane.arrive(packet))

    def leave(self, packet: bytes) -> list[bytes] | None:
        return self._both(f"leaves {packet.hex()}", lambda plane: plane.leave(packet))

    def wait(self, seconds: float) -> set[bytes]:
        """Returns the questions."""
        self._log.append(f"waits {seconds}")
        core, programs = self._core.wait(seconds), self._programs.wait(seconds)
        expected, made = (Counter(map(comparable, waited.packets)) for waited in (core, programs))
        added = [packet for packet in programs.packets if comparable(packet) in made - expected]
        if expected - made or not all(map(self._may_add, added)):
            self.fail(shown(core.packets), shown(programs.packets))
        if set(core.questions) != set(programs.questions):
            self.fail(f"asks for {core.questions}", f"ask for {programs.questions}")
        return set(core.questions)

    def answer(self, said: Mapping[bytes, bool]) -> None:
        self._log += [f"socket of {key.hex()}: {exists}" for key, exists in said.items()]
        self._core.answer(said)
        self._programs.answer(said)

    def fail(self, core: str, programs: str) -> None:
        steps = "\n".join(self._log)
        raise DisagreementError(f"{steps}\ncore:\n    {core}\nprograms:\n    {programs}")

    def _both(self, what: str, give: Callable[[Plane], list[bytes] | None]) -> list[bytes] | None:
        self._log.append(what)
        core, programs = give(self._core), give(self._programs)
        if _comparable(core) != _comparable(programs):
            self.fail(*_differing(core, programs))
        return core


class Damage(NamedTuple):
    """How often in a hundred a packet gets one."""

    chance: random.Random
    percent: int

    def __call__(self, packet: bytes, *, is_checked: bool = False) -> bytes:
        """``is_checked``: its length stays, and its TCP checksum stays right."""
        if self.chance.randrange(100) >= self.percent:
            return packet
        made = self.chance.choice((_flipped, _flipped, _flipped, _cut, _padded, _fragmented, _resized))(
            self.chance, packet
        )
        if self.chance.random() < 0.85:
            made = with_ip_checksum(made)
        total = int.from_bytes(made[2:4], "big")
        if is_checked and made[2:4] != packet[2:4]:
            return packet
        if is_checked and made[0] == 0x45 and 40 <= total <= len(made):
            whole = made[:total]
            made = with_field(whole, 36, tcp_checksum(whole)) + made[total:]
        return made


def _flipped(chance: random.Random, packet: bytes) -> bytes:
    """One bit, of the headers mostly. Of version and TTL none: packets of another version are not IPv4's."""
    reach = min(len(packet), 76 if chance.random() < 0.9 else len(packet))
    at = chance.choice([at for at in range(reach) if at != 8])
    bit = chance.randrange(4 if at == 0 else 8)
    return packet[:at] + bytes((packet[at] ^ 1 << bit,)) + packet[at + 1 :]


def _cut(chance: random.Random, packet: bytes) -> bytes:
    return packet[: chance.randrange(24, len(packet) + 1)]


def _padded(chance: random.Random, packet: bytes) -> bytes:
    return packet + chance.randbytes(chance.randrange(1, 8))


def _fragmented(chance: random.Random, packet: bytes) -> bytes:
    return with_field(packet, 6, chance.choice((0x2000, 0x0001, 0x2001, 0x1FFF, 0x8000, 0, 0x6000)))


def _resized(chance: random.Random, packet: bytes) -> bytes:
    total = int.from_bytes(packet[2:4], "big") + chance.choice((-40, -20, -4, -1, 1, 4))
    return with_field(packet, 2, max(total, 0))


def _comparable(packets: Sequence[bytes] | None) -> list[tuple[bytes, int]] | None:
    return None if packets is None else list(map(comparable, packets))


def _differing(core: list[bytes] | None, programs: list[bytes] | None) -> tuple[str, str]:
    """From the first packet on that is not the same."""
    if core is None or programs is None:
        return shown(core), shown(programs)
    same = 0
    while _comparable(core[same : same + 1]) == _comparable(programs[same : same + 1]):
        same += 1
    return shown(core[same:]), shown(programs[same:])
