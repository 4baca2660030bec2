"""An established flow as the journal keeps it, so that a packetbridge that was killed can splice it again.

    0    version (1)
    1    VIP index, as DSCP
    2    VIP's address (4) and port (2)
    8    flow key, backend to client (12)
    20   client's ISN (4), balancer's ISN (4), wall-clock seconds of the handoff (4)
    32   seq delta (4), value delta (4)
    40   window shift of the backend (1) and of the client (1), both signed
    42   flags (1): bit 0, the client has echoed nothing of the backend's yet
    43   then: TSval of the backend's SYN-ACK (4), otherwise 0

The byte order is the network's. The VIP and the backend are in it so that a changed configuration is noticed.
"""

import struct
from typing import NamedTuple

from common.wire import dscp, tcp_options
from common.wire.buffer import Buffer
from common.wire.errors import WireError
from common.wire.rewrite import Splice
from common.wire.segment import FlowKey
from packetbridge.core.flow import Echoing, Flow, Origin
from packetbridge.core.service import Service

VERSION = 1
_ECHOING = 1
_RECORD = struct.Struct(">BB4sH12sIIIIIbbBI")
SIZE = _RECORD.size


class FlowRecord(NamedTuple):
    vip_index: int
    vip: bytes
    vip_port: int
    key: FlowKey
    """Backend to client."""
    origin: Origin
    splice: Splice
    floor: int | None
    """TSval of the backend's SYN-ACK, as long as the client has echoed nothing of the backend's."""

    def is_of(self, service: Service) -> bool:
        """Whether the service is still what it was when the record was made."""
        backend = service.backend_key(self.key[4:8], int.from_bytes(self.key[10:12], "big"))
        return (self.vip_index, self.vip, self.vip_port, self.key) == (*service[:3], backend)


class Opened(NamedTuple):
    record: FlowRecord


class Ended(NamedTuple):
    key: FlowKey


JournalEvent = Opened | Ended


def of(flow: Flow) -> FlowRecord:
    """Of a spliced flow."""
    floor = flow.prelude.floor if isinstance(flow.prelude, Echoing) else None
    return FlowRecord(*flow.service[:3], flow.key, flow.origin, flow.splice, floor)


def pack(record: FlowRecord) -> bytes:
    """`SIZE` bytes."""
    return _RECORD.pack(
        VERSION,
        *record[:4],
        *record.origin,
        *record.splice,
        0 if record.floor is None else _ECHOING,
        record.floor or 0,
    )


def parse_untrusted(data: Buffer) -> FlowRecord:
    """A record whose layout is right; whether the service still exists is not known here."""
    if len(data) != SIZE:
        raise WireError("bad_record_size")
    version, index, vip, vip_port, key, *numbers = _RECORD.unpack(data)
    *origin, seq_delta, value_delta, backend_shift, client_shift, flags, floor = numbers
    splice = Splice(seq_delta, value_delta, backend_shift, client_shift)
    if version != VERSION or flags not in (0, _ECHOING) or (floor and not flags):
        raise WireError("unknown_record_version")
    if not dscp.MIN_INDEX <= index <= dscp.MAX_INDEX:
        raise WireError("bad_record")
    if max(abs(backend_shift), abs(client_shift)) > tcp_options.MAX_WINDOW_SCALE:
        raise WireError("bad_record")
    return FlowRecord(index, vip, vip_port, key, Origin(*origin), splice, floor if flags else None)
