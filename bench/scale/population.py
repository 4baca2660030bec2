"""Flows by the million, as the programs would have noted them: all standing open and heard of just now.

The clients are of the addresses kept for benchmarks (RFC 2544, 198.18.0.0/15): flow number n has port
FIRST_PORT + n % 2^PORT_BITS of address FIRST_ADDRESS + n // 2^PORT_BITS.
"""

import ctypes
import struct
import time
from ipaddress import IPv4Address

from balancer.ebpf import abi as balancer_abi
from common.bpf import libbpf
from common.bpf.abi import NO_SCALE, OPTION_TIMESTAMPS, ActivityCell, PhaseNumber
from common.bpf.maps import HashMap
from packetbridge.ebpf import abi as packetbridge_abi

FIRST_ADDRESS = IPv4Address("198.18.0.0")
FIRST_PORT = 1024
PORT_BITS = 15
CLIENT_ISN, VIP_ISN, BACKEND_ISN = 1_000_000, 2_000_000, 3_000_000
VALUE_DELTA = 5000
FLOOR = 7000
"""TSval of the backend's SYN-ACK."""
_KEY = struct.Struct(">IHBx")  # of common.bpf.abi.FlowId
_BATCH = 10_000


def fill(flows: HashMap, row: bytes, vip_index: int, count: int) -> None:
    """With flows of these numbers: 0 to ``count`` - 1. Those that are there are written anew. `OSError`."""
    library = libbpf.library()
    for first in range(0, count, _BATCH):
        numbers = range(first, min(first + _BATCH, count))
        keys = b"".join(_key(number, vip_index) for number in numbers)
        written = ctypes.c_uint32(len(numbers))
        libbpf.check(
            library.bpf_map_update_batch(
                flows.descriptor, keys, row * len(numbers), ctypes.byref(written), None
            )
        )


def _key(number: int, vip_index: int) -> bytes:
    address = int(FIRST_ADDRESS) + (number >> PORT_BITS)
    return _KEY.pack(address, FIRST_PORT + (number & (1 << PORT_BITS) - 1), vip_index)


def balancer_row(node: IPv4Address) -> bytes:
    row = balancer_abi.FlowRow(
        client=_open(CLIENT_ISN),
        client_isn=CLIENT_ISN,
        isn=VIP_ISN,
        node=node.packed,
        begun=_now(),
        contested_until=0,
        mss=1460,
        window_scale=NO_SCALE,
        options=OPTION_TIMESTAMPS,
    )
    return balancer_abi.FLOW.pack(row)


def packetbridge_row() -> bytes:
    row = packetbridge_abi.FlowRow(
        client=_open(CLIENT_ISN),
        backend=_open(BACKEND_ISN),
        client_isn=CLIENT_ISN,
        balancer_isn=VIP_ISN,
        time=int(time.time()),
        seq_delta=(VIP_ISN - BACKEND_ISN) % (1 << 32),
        value_delta=VALUE_DELTA,
        floor=FLOOR,
        backend_shift=0,
        client_shift=0,
        state=packetbridge_abi.StateNumber.ESTABLISHED,
    )
    return packetbridge_abi.FLOW.pack(row)


def _open(isn: int) -> ActivityCell:
    return ActivityCell(next=isn + 1, fin=0, seen=_now(), phase=PhaseNumber.OPEN, has_fin=0)


def _now() -> int:
    return int(time.monotonic())
