"""What a backend answers to a health check: its bytes in order, and the status code in front of them."""

import re

MAX_HEAD = 4096
"""Bytes within which the status line must stand, interim responses (1xx) in front of it."""
_MAX_PIECES = 32
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r\n]")
_STATUS_SIZE = len(b"HTTP/1.1 200 ")
_BEGIN = b"HTTP/1."
_END_OF_HEAD = b"\r\n\r\n"
_INTERIM = range(100, 200)


class Answer:
    """Positions count from the answer's first byte."""

    def __init__(self, window: int) -> None:
        """``window`` is how many bytes beyond those in order are kept."""
        self.received = 0
        """Bytes in order."""
        self.status: int | None = None
        self.is_malformed = False
        """Its begin is no HTTP/1 response, or too long."""
        self._window = window
        self._head = bytearray()
        self._pieces: dict[int, bytes] = {}
        self._end: int | None = None
        self._at = 0

    @property
    def is_finished(self) -> bool:
        return self.received == self._end

    @property
    def has_hole(self) -> bool:
        """Whether later bytes came, or the end, and earlier ones are missing."""
        return bool(self._pieces) or (self._end is not None and not self.is_finished)

    @property
    def begin(self) -> bytes:
        """For people to see."""
        return bytes(self._head[:24])

    def take(self, at: int, payload: bytes, *, fin: bool) -> None:
        """A piece of the stream, FIN behind it or not; what lies outside of the window is left out."""
        end = at + len(payload)
        if end < 0 or end > self.received + self._window:
            return
        if fin and self._end is None:
            self._end = end
        if payload and end > self.received and len(self._pieces) < _MAX_PIECES:
            self._pieces[at] = max(self._pieces.get(at, b""), payload, key=len)
        for start in sorted(self._pieces):
            if start <= self.received:
                self._append(self._pieces.pop(start)[self.received - start :])
        self._judge()

    def _append(self, fresh: bytes) -> None:
        if self.status is None:
            self._head += fresh[: MAX_HEAD - len(self._head)]
        self.received += len(fresh)

    def _judge(self) -> None:
        while self.status is None and not self.is_malformed:
            begin = bytes(self._head[self._at : self._at + _STATUS_SIZE])
            if len(begin) < _STATUS_SIZE:
                self.is_malformed = not begin.startswith(_BEGIN[: len(begin)]) or len(self._head) == MAX_HEAD
                return
            said = _STATUS.fullmatch(begin)
            if said is None:
                self.is_malformed = True
            elif int(said[1]) not in _INTERIM:
                self.status = int(said[1])
            elif (end := self._head.find(_END_OF_HEAD, self._at)) >= 0:
                self._at = end + len(_END_OF_HEAD)
            else:
                self.is_malformed = len(self._head) == MAX_HEAD
                return
