"""The daemons' log: one line per event on standard error, for people or as JSON.

Modules take a `logging.Logger` and give fields of an event in `extra`, such as ``extra={"node": name}``. JSON
objects have the keys ts (ISO 8601, UTC), level, daemon, event, the fields and, with an exception, exception.
A log that cannot be written never disturbs the daemon: its lines are counted as lost.
"""

import json
import logging
import os
import select
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog

Event = MutableMapping[str, Any]

_STANDARD_ERROR = 2
_CHUNK = select.PIPE_BUF
"""A pipe that is ready takes this much without waiting."""
_SHARED = (structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder())


class _Descriptor:
    """Writes at once or not at all, as far as can be known: no reader is waited for.

    A line that was cut off is ended before the next one begins.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._is_torn = False
        self._room = select.poll()
        self._room.register(number, select.POLLOUT)

    def write(self, text: str) -> None:
        """Raises OSError."""
        rest = memoryview(("\n" * self._is_torn + text).encode("utf-8", "backslashreplace"))
        total = len(rest)
        try:
            while rest:
                if not self._room.poll(0):
                    raise BlockingIOError("nobody reads the log")
                rest = rest[os.write(self._number, rest[:_CHUNK]) :]
        finally:
            self._is_torn = self._is_torn if len(rest) == total else bool(rest)

    def flush(self) -> None:
        """Nothing is held back."""


class _LossyHandler(logging.StreamHandler[_Descriptor]):
    """Drops what cannot be written."""

    lost = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's own name
        _LossyHandler.lost += 1


def lost_lines() -> int:
    """How many lines were not written, or not to their end, since the process started."""
    return _LossyHandler.lost


def configure_logging(name: str, level: str, form: str = "auto") -> logging.Logger:
    """The daemon's logger; ``level`` and ``form`` are those of `HostConfig`. May be called again.

    Libraries speak up from warnings on.
    """
    human = form == "human" or (form == "auto" and os.isatty(_STANDARD_ERROR))
    handler = _LossyHandler(_Descriptor(_STANDARD_ERROR))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                _stamp,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _human_line if human else _json_line,
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logger = logging.getLogger(name)
    logger.setLevel(level.upper())
    return logger


def _stamp(_logger: object, _method: str, event: Event) -> Event:
    record: logging.LogRecord = event["_record"]
    event["daemon"] = record.name
    event["ts"] = record.created
    return event


def _human_line(_logger: object, _method: str, event: Event) -> str:
    """TIME DAEMON LEVEL: text key=value; what follows an exception's line is its traceback.

    Further lines of a text are indented, so that none looks like another event.
    """
    moment = datetime.fromtimestamp(event.pop("ts"), UTC).astimezone()
    stamp = f"{moment:%Y-%m-%d %H:%M:%S},{moment.microsecond // 1000:03}"
    daemon, level = event.pop("daemon"), event.pop("level").upper()
    text, exception = _printable(str(event.pop("event"))), event.pop("exception", None)
    fields = "".join(f" {key}={_shown(value)}" for key, value in event.items())
    line = f"{stamp} {daemon} {level}: {text}{fields}"
    return f"{line}\n{exception}" if exception else line


def _json_line(_logger: object, _method: str, event: Event) -> str:
    moment = datetime.fromtimestamp(event.pop("ts"), UTC)
    first = {
        "ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": event.pop("level"),
        "daemon": event.pop("daemon"),
        "event": event.pop("event"),
    }
    return json.dumps({**first, **event}, default=str, ensure_ascii=False)


def _shown(value: object) -> str:
    """Quoted where the end of a bare value could not be told."""
    text = str(value)
    plain = text and text.isprintable() and not any(mark in text for mark in ' ="')
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())


def _printable(text: str) -> str:
    """Without what a terminal would obey."""
    lines = ("".join(map(_visible, line)) for line in text.split("\n"))
    return "\n    ".join(lines)


def _visible(character: str) -> str:
    is_plain = character.isprintable() or character == "\t"
    return character if is_plain else character.encode("unicode_escape").decode()
