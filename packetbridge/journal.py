"""The established flows on file, so that the next packetbridge on this node carries them on.

The file is a row of slots, one `record` each; a slot of zeros is free. On the raw data plane a flow is
written when its legs are joined and erased when it ends, with one write each. Maps outlive a kill, so the
eBPF plane writes its flows when it takes its programs away. Slots lie within a page of the file, which the
kernel copies as a whole, so that a process that is killed leaves nothing half done. It is no database: where
the machine itself stops, its sockets and so its flows are gone anyway.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Sequence, Set
from ipaddress import IPv4Address
from pathlib import Path

from common.net.errors import HostError
from common.wire.errors import WireError
from common.wire.offload import Packet
from common.wire.segment import FlowKey
from packetbridge.core import record
from packetbridge.core.record import SIZE, Ended, FlowRecord, JournalEvent, Opened

Existing = Callable[[Sequence[FlowKey]], Set[FlowKey]]
"""For which of these flows the kernel has a socket."""
SLOT_SIZE = 64
"""A divisor of the page size, and room for a record."""
_FREE = bytes(SIZE)


def path_of(directory: Path, bridge: IPv4Address) -> Path:
    return directory / f"packetbridge-{bridge}.flows"


class Journal:
    """Owns its file, which no other packetbridge may use meanwhile."""

    def __init__(self, path: Path, logger: logging.Logger) -> None:
        """`HostError` where the file cannot be used. ``logger`` is told of the first write that fails."""
        self.failures = 0
        """Writes that failed: flows that will not be carried on, or will be asked for in vain."""
        self._path = path
        self._logger = logger
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}; choose another --state-dir") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise HostError(f"{path} is in use by another packetbridge: choose another --state-dir") from None
        self._slots: dict[FlowKey, int] = {}
        self._free: list[int] = []
        self._end = 0
        """Number of the first slot that was never used."""
        self.read()

    def close(self) -> None:
        os.close(self._file)

    def read(self) -> list[FlowRecord]:
        """The flows that are in it. Slots that make no sense are freed."""
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        records = []
        self._slots.clear()
        self._free.clear()
        self._end = len(data) // SLOT_SIZE
        for slot in range(self._end):
            try:
                found = record.parse_untrusted(data[slot * SLOT_SIZE : slot * SLOT_SIZE + SIZE])
            except WireError:
                self._free.append(slot)
                continue
            self._slots[found.key] = slot
            records.append(found)
        return records

    def note(self, events: Iterable[JournalEvent]) -> None:
        for event in events:
            match event:
                case Opened(opened):
                    self._write(self._slot_of(opened.key), record.pack(opened))
                case Ended(key):
                    self.erase(key)

    def erase(self, key: FlowKey) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._write(slot, _FREE)
            self._free.append(slot)

    def clear(self) -> None:
        """Erase all flows."""
        os.ftruncate(self._file, 0)
        self.read()

    def _slot_of(self, key: FlowKey) -> int:
        slot = self._slots.get(key)
        if slot is None:
            if self._free:
                slot = self._free.pop()
            else:
                slot = self._end
                self._end += 1
            self._slots[key] = slot
        return slot

    def _write(self, slot: int, data: bytes) -> None:
        try:
            os.pwrite(self._file, data.ljust(SLOT_SIZE, b"\0"), slot * SLOT_SIZE)
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                self._logger.error(
                    "cannot write %s (%s): flows may not survive a restart", self._path, error.strerror
                )


def restore_all(
    journal: Journal,
    existing: Existing,
    restore: Callable[[FlowRecord, bool], list[Packet]],
    logger: logging.Logger,
) -> list[Packet]:
    """Have every flow that the last packetbridge left restored.

    ``restore`` is told of each whether the kernel has a socket. Returns what is to be sent.
    """
    packets: list[Packet] = []
    left = journal.read()
    live = existing([saved.key for saved in left])
    for saved in left:
        packets += restore(saved, saved.key in live)
    if left:
        logger.info("of %d flows left by the last run, %d are carried on", len(left), len(live))
    return packets
