"""Segments that came before their flow's backend has answered.

The programs keep the first payload by themselves, and pass up what comes behind it until the SYN-ACK is
there, mostly the rest of a superpacket. Such packets are looked after here, unchanged, and then sent on their
way again: they arrive at the programs a second time. Bounded, per flow and in all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from common.wire import seq
from common.wire.offload import Packet
from common.wire.segment import FLOW_KEY_END
from packetbridge.core.flow import OPENING_IDLE_SECONDS
from packetbridge.core.service import Limits

_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.05
"""Seconds between looks at the flow."""


class Openness(Enum):
    """What the programs' table says of a flow."""

    UNKNOWN = auto()
    OPENING = auto()
    SPLICED = auto()


@dataclass(slots=True)
class _Guest:
    until: float
    next_look: float
    pause: float = _FIRST_PAUSE
    size: int = 0
    packets: list[Packet] = field(default_factory=list)


class WaitingRoom:
    """Keys are those of the map of flows."""

    def __init__(self, look: Callable[[bytes], Openness], limits: Limits) -> None:
        self._look = look
        self._limits = limits
        self._guests: dict[bytes, _Guest] = {}
        self.bytes = 0

    def hold(self, key: bytes, packet: Packet, now: float) -> bool:
        """Keep a packet of a flow that is opening. False where there is no room for it."""
        size = len(packet.data)
        guest = self._guests.get(key) or _Guest(now + OPENING_IDLE_SECONDS, now + _FIRST_PAUSE)
        if guest.size + size > self._limits.waiting_per_flow:
            return False
        if self.bytes + size > self._limits.waiting_in_all:
            return False
        guest.packets.append(packet)
        guest.size += size
        self.bytes += size
        self._guests[key] = guest
        return True

    def due(self, now: float) -> list[Packet]:
        """What may go on now, each flow's in the client's order."""
        packets: list[Packet] = []
        for key, guest in list(self._guests.items()):
            if guest.next_look > now:
                continue
            openness = self._look(key)
            if openness is Openness.OPENING and now < guest.until:
                guest.pause = min(2 * guest.pause, _LONGEST_PAUSE)
                guest.next_look = now + guest.pause
                continue
            held = self.release(key)
            if openness is Openness.SPLICED:
                packets += held
        return packets

    def release(self, key: bytes) -> list[Packet]:
        """Whatever is kept of a flow, in the client's order; it is kept no longer."""
        guest = self._guests.pop(key, None)
        if guest is None:
            return []
        self.bytes -= guest.size
        return _in_order(guest.packets)

    def next_deadline(self) -> float | None:
        return min((guest.next_look for guest in self._guests.values()), default=None)


def _in_order(packets: list[Packet]) -> list[Packet]:
    first = _sequence_number(packets[0])
    return sorted(packets, key=lambda packet: seq.distance(first, _sequence_number(packet)))


def _sequence_number(packet: Packet) -> int:
    return int.from_bytes(packet.data[FLOW_KEY_END : FLOW_KEY_END + 4], "big")
