"""The receiving half of a model TCP: reassembly, the window it offers, and the SACK blocks it reports.

Offsets as in `sender`. Bytes that come twice must be the same both times.
"""

from tests.sim.segment import MASK, steps


class Receiver:
    def __init__(self, isn: int, buffer_size: int, scale: int) -> None:
        self.isn = isn
        self.stream = bytearray()
        """All bytes received in order."""
        self.nxt = 1
        self.fin: int | None = None
        self.conflicts: list[str] = []
        """What of the peer's retransmissions contradicts what it sent before."""
        self.scale = scale
        self.edge = 1
        """Offset behind the last byte that the peer may send: the largest that was offered."""
        self.acknowledged = 1
        """The last ACK sent."""
        self.repeated: tuple[int, int] | None = None
        """What came twice just now, to be reported once (RFC 2883)."""
        self._size = buffer_size
        self._taken = 0
        self._pieces: list[tuple[int, bytes]] = []
        self._recent: list[int] = []

    def wire(self, offset: int) -> int:
        return (self.isn + offset) & MASK

    def offset(self, number: int) -> int:
        return self.nxt + steps(self.wire(self.nxt), number)

    @property
    def has_ended(self) -> bool:
        """Whether all up to the FIN is here."""
        return self.fin is not None and self.nxt > self.fin

    @property
    def has_gap(self) -> bool:
        return bool(self._pieces)

    def take(self) -> bytes:
        """What the application has not read yet."""
        part = bytes(self.stream[self._taken :])
        self._taken = len(self.stream)
        return part

    @property
    def free(self) -> int:
        return max(self._size - (len(self.stream) - self._taken), 0)

    def offer(self, mss: int) -> int:
        """The window field to send now. The right edge never moves back, nor forward in silly steps."""
        right = self.nxt + self.free
        if right - self.edge < min(mss, self._size // 2):
            right = self.edge
        rounding = (1 << self.scale) - 1
        kept = max(self.edge - self.nxt, 0)
        field = max((right - self.nxt) >> self.scale, (kept + rounding) >> self.scale)
        field = min(max(field, 0), 0xFFFF)
        self.edge = max(self.edge, self.nxt + (field << self.scale))
        self.acknowledged = self.nxt
        return field

    def accept(self, start: int, payload: bytes, has_fin: bool) -> bool:
        """Take a segment's bytes. Returns whether the stream grew in order."""
        end = start + len(payload)
        self._compare(start, payload)
        if payload and end <= self.nxt:
            self.repeated = (start, end)
            return False
        if end > self.edge:
            payload, has_fin, end = payload[: max(self.edge - start, 0)], False, max(self.edge, start)
        if has_fin:
            if self.fin not in (None, end):
                self.conflicts.append(f"FIN at {end}, before at {self.fin}")
            self.fin = end
        if payload:
            self._keep(start, payload)
        before = self.nxt
        self._join()
        if self.fin == self.nxt:
            self.nxt += 1
        return self.nxt > before

    def blocks(self, limit: int) -> tuple[tuple[int, int], ...]:
        """SACK blocks, the most recent first, as sequence numbers."""
        merged: list[tuple[int, int]] = []
        for start, payload in self._pieces:
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], start + len(payload))
            else:
                merged.append((start, start + len(payload)))
        found = [self.repeated] if self.repeated else []
        self.repeated = None
        for at in reversed(self._recent):
            found += [block for block in merged if block[0] <= at < block[1] and block not in found]
        return tuple((self.wire(start), self.wire(end)) for start, end in found[:limit])

    def _compare(self, start: int, payload: bytes) -> None:
        known = self.stream[max(start, 1) - 1 : start - 1 + len(payload)]
        if known != payload[max(1 - start, 0) :][: len(known)]:
            self.conflicts.append(f"other bytes at {start} than before")

    def _keep(self, start: int, payload: bytes) -> None:
        """Add the bytes that are new to the pieces, which stay sorted and never overlap."""
        cut = max(self.nxt - start, 0)
        start, payload = start + cut, payload[cut:]
        at = start
        fresh: list[tuple[int, bytes]] = []
        for known_start, known in self._pieces:
            known_end = known_start + len(known)
            overlap = (max(at, known_start), min(start + len(payload), known_end))
            if overlap[0] >= overlap[1]:
                continue
            mine = payload[overlap[0] - start : overlap[1] - start]
            if mine != known[overlap[0] - known_start : overlap[1] - known_start]:
                self.conflicts.append(f"other bytes at {overlap[0]} than before")
            if at < known_start:
                fresh.append((at, payload[at - start : known_start - start]))
            at = max(at, known_end)
        if at < start + len(payload):
            fresh.append((at, payload[at - start :]))
        elif not fresh:
            self.repeated = (start, start + len(payload))
        self._pieces = sorted(self._pieces + fresh)
        self._recent = [*self._recent[-15:], start]

    def _join(self) -> None:
        while self._pieces and self._pieces[0][0] == self.nxt:
            _, payload = self._pieces.pop(0)
            self.stream += payload
            self.nxt += len(payload)
