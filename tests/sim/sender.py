"""The sending half of a model TCP: what is in flight, what was lost, what may go out next.

Positions are *offsets* in the stream, plain integers that never wrap: 0 is the SYN, 1 the first byte.
Loss recovery is RFC 6675 with SACK and RFC 6582 (NewReno) without; congestion control is slow start and
additive increase; Nagle as Linux has it (Minshall: only a small segment in flight holds the next one back).
"""

from dataclasses import dataclass
from typing import NamedTuple

from tests.sim.segment import MASK, steps

MIN_RTO, INITIAL_RTO, MAX_RTO = 0.2, 1.0, 60.0
_DUPLICATES = 3


class Range(NamedTuple):
    """Part of the stream that goes out in one packet."""

    start: int
    end: int


@dataclass(slots=True)
class Flight:
    start: int
    end: int
    sent_at: float
    times: int = 1
    sacked: bool = False
    lost: bool = False


class Sender:
    def __init__(self, isn: int, nagle: bool) -> None:
        self.isn = isn
        self.data = bytearray()
        """Everything ever written: the byte at offset 1 first."""
        self.closing = False
        self.una = self.nxt = 0
        self.window = self.max_window = 1
        self.mss = 536
        """Payload bytes of a segment."""
        self.cwnd = 10 * self.mss
        self.nagle = nagle
        self.retransmissions = 0
        self.backoff = 0
        self._rto = INITIAL_RTO
        self._srtt: float | None = None
        self._rttvar = 0.0
        self._ssthresh = 1 << 30
        self._flights: list[Flight] = []
        self._recover = 0
        self._duplicates = 0
        self._small_end = 0

    def wire(self, offset: int) -> int:
        return (self.isn + offset) & MASK

    def offset(self, number: int) -> int:
        return self.una + steps(self.wire(self.una), number)

    @property
    def end(self) -> int:
        """Offset behind all that is to be sent, FIN included."""
        return 1 + len(self.data) + self.closing

    @property
    def fin_acknowledged(self) -> bool:
        return self.closing and self.una == self.end

    @property
    def in_flight(self) -> bool:
        return bool(self._flights)

    @property
    def is_blocked(self) -> bool:
        """There is something to send, nothing in flight, so that no ACK will come and let it go."""
        return not self._flights and self.nxt < self.end

    def timeout(self) -> float:
        return min(self._rto * float(2**self.backoff), MAX_RTO)

    def bytes_of(self, part: Range) -> bytes:
        return bytes(self.data[max(part.start, 1) - 1 : part.end - 1])

    def has_fin(self, part: Range) -> bool:
        return self.closing and part.end == self.end

    # What goes out

    def syn(self, now: float) -> None:
        """Note that the SYN was sent."""
        self._flights = [Flight(0, 1, now)]
        self.nxt = 1

    def next_lost(self, now: float) -> Range | None:
        """The first lost part, as much as one segment takes, if the congestion window lets it go."""
        for at, flight in enumerate(self._flights):
            if flight.lost and self._pipe() < self.cwnd:
                self._fit(at)
                flight.lost = False
                flight.times += 1
                flight.sent_at = now
                self.retransmissions += 1
                return Range(flight.start, flight.end)
        return None

    def _fit(self, at: int) -> None:
        """Cut the flight to one segment, or join it with lost ones behind it, as Linux does."""
        flight = self._flights[at]
        if self._size(flight.start, flight.end) > self.mss:
            middle = max(flight.start, 1) + self.mss
            rest = Flight(middle, flight.end, flight.sent_at, flight.times, lost=True)
            self._flights.insert(at + 1, rest)
            flight.end = middle
        while at + 1 < len(self._flights):
            behind = self._flights[at + 1]
            if not behind.lost or self._size(flight.start, behind.end) > self.mss:
                break
            flight.end = behind.end
            del self._flights[at + 1]

    def _size(self, start: int, end: int) -> int:
        """Payload bytes between two offsets."""
        return min(end, 1 + len(self.data)) - max(start, 1)

    def next_new(self, now: float, burst: int, forced: bool = False) -> Range | None:
        """New data for one packet of at most ``burst`` segments; ``forced`` by the persist timer."""
        if self.nxt >= self.end:
            return None
        left = 1 + len(self.data) - self.nxt
        room = self.una + self.window - self.nxt
        allowed = max(self.cwnd - self._pipe(), 0 if self._flights else self.mss)
        size = min(left, burst * self.mss, room, allowed)
        if left and size > self.mss and size < left:
            size -= size % self.mss
        if room <= 0 or (left and not forced and not self._is_worth_sending(size, left)):
            return None
        end = self.nxt + size
        if self.closing and size == left:
            end += 1
        if 0 < size < self.mss:
            self._small_end = end
        part = Range(self.nxt, end)
        self._flights.append(Flight(*part, now))
        self.nxt = end
        return part

    def _is_worth_sending(self, size: int, left: int) -> bool:
        """Against silly windows (RFC 9293 section 3.8.6.2.1), and Nagle."""
        if size <= 0:
            return False
        if size >= self.mss:
            return True
        if size < left:
            return size >= self.max_window // 2 and not self._flights
        return not self.nagle or self.closing or self._small_end <= self.una

    def _pipe(self) -> int:
        return sum(f.end - f.start for f in self._flights if not f.sacked and not f.lost)

    # What comes in

    def acknowledge(
        self, ack: int, blocks: list[tuple[int, int]], is_duplicate: bool, now: float, has_sack: bool
    ) -> None:
        """``ack`` is an offset in una..nxt; ``blocks`` are offsets."""
        for flight in self._flights:
            flight.sacked = flight.sacked or any(a <= flight.start and flight.end <= b for a, b in blocks)
        if ack > self.una:
            self._advance(ack, now, has_sack)
        elif is_duplicate:
            self._duplicates += 1
        self._mark_lost(has_sack)

    def _advance(self, ack: int, now: float, has_sack: bool) -> None:
        acknowledged = ack - self.una
        gone = [flight for flight in self._flights if flight.end <= ack]
        self._flights = [flight for flight in self._flights if flight.end > ack]
        if self._flights and self._flights[0].start < ack:
            self._flights[0].start = ack
        if gone and gone[-1].times == 1:
            self._measure(now - gone[-1].sent_at)
        self.una = ack
        self.backoff = 0
        self._duplicates = 0
        if ack >= self._recover:
            grown = acknowledged if self.cwnd < self._ssthresh else self.mss * acknowledged // self.cwnd
            self.cwnd = min(self.cwnd + grown, 1 << 22)
        elif not has_sack and self._flights and self._flights[0].times == 1:
            self._flights[0].lost = True

    def _mark_lost(self, has_sack: bool) -> None:
        found = False
        if has_sack:
            above = sum(flight.sacked for flight in self._flights)
            for flight in self._flights:
                if flight.sacked:
                    above -= 1
                elif above >= _DUPLICATES and flight.times == 1 and not flight.lost:
                    flight.lost = found = True
        elif self._duplicates == _DUPLICATES and self._flights and self.una >= self._recover:
            self._flights[0].lost = found = True
        if found and self.una >= self._recover:
            self._ssthresh = self.cwnd = max(self.cwnd // 2, 2 * self.mss)
            self._recover = self.nxt

    def _measure(self, rtt: float) -> None:
        """RFC 6298, with a floor of 200 ms."""
        if self._srtt is None:
            self._srtt, self._rttvar = rtt, rtt / 2
        else:
            self._rttvar += (abs(self._srtt - rtt) - self._rttvar) / 4
            self._srtt += (rtt - self._srtt) / 8
        self._rto = max(self._srtt + max(4 * self._rttvar, MIN_RTO), MIN_RTO)

    def time_out(self) -> None:
        """The retransmission timer went off."""
        self._ssthresh = max(self._pipe() // 2, 2 * self.mss)
        self.cwnd = self.mss
        self.backoff += 1
        self._recover = self.nxt
        self._duplicates = 0
        for flight in self._flights:
            flight.lost = not flight.sacked

    def shrink(self, mss: int) -> None:
        """The path takes less (RFC 1191): what was too long is lost."""
        for flight in self._flights:
            too_long = self._size(flight.start, flight.end) > mss
            flight.lost = flight.lost or (too_long and not flight.sacked)
        self.mss = min(self.mss, mss)
