"""What both daemons' programs share with Python. `bpf.generate` writes it as bpf/include/abi.h.

Times are u32 seconds of CLOCK_MONOTONIC (`time.monotonic()`, bpf_ktime_get_ns()), if nothing else is said.
"""

from enum import IntEnum
from typing import Annotated, NamedTuple

from common.bpf.layout import S64, U8, U32, U64, Be16, Be32, Layout, Pad1, Pad2

LAYOUT_VERSION = 2
"""Of all maps. Maps of another version are never used again."""

NO_SCALE = 15
"""A window scale that was not negotiated, as in our TSval."""
OPTION_SACK, OPTION_TIMESTAMPS = 1, 2
"""Bits of `options` fields."""
WENT_ROUND = 0x4C330001
"""Marks a packet that a program has sent through its CPU's backlog, so that it goes there once."""
MAX_SERVICES = 64
"""VIP indexes are 1 to 63."""
MAGLEV_SIZE = 65537


class FlowId(NamedTuple):
    """A flow's key in the maps of both daemons."""

    client: Be32
    client_port: Be16
    vip_index: U8
    """The VIP's, which stands for VIP and port, or for the backend."""
    zero: Pad1 = b"\0"


class Endpoint(NamedTuple):
    """Key of the maps that tell a service by its VIP or backend."""

    address: Be32
    port: Be16
    zero: Pad2 = b"\0\0"


class PhaseNumber(IntEnum):
    """`common.tcp.activity.Phase`, numbered."""

    OPEN = 0
    FIN_AHEAD = 1
    FINISHED = 2
    RESET = 3


class SignNumber(IntEnum):
    """`common.tcp.activity.Sign`, numbered."""

    DATA = 0
    FIN_IN_ORDER = 1
    FIN_AHEAD = 2
    BEHIND_FIN = 3
    INSTEAD_OF_FIN = 4
    BEFORE_FIN = 5
    RST_IN_ORDER = 6
    RST_ELSEWHERE = 7


class ActivityCell(NamedTuple):
    """`common.tcp.activity.Activity`. Several CPUs may write at once: each number stays one that was true."""

    next: U32
    fin: U32
    """Where `has_fin`."""
    seen: U32
    phase: U8
    """`PhaseNumber`."""
    has_fin: U8
    zero: Pad2 = b"\0\0"


class HandoffKeys(NamedTuple):
    """SipHash keys as two little-endian halves each; the current one signs, both verify."""

    current_low: U64
    current_high: U64
    previous_low: U64
    previous_high: U64
    current_id: U8
    previous_id: U8
    has_previous: U8
    zero: Pad1 = b"\0"
    zero_end: U32 = 0


class Clock(NamedTuple):
    """What turns the monotonic clock into wall-clock time."""

    wall_offset_ns: S64


class Forgetting(NamedTuple):
    """What the program `forget_services` is run with."""

    vip_indexes: U64
    """Bit n stands for index n."""
    flows: U64
    """Those that it has forgotten; of a packetbridge, that were not over."""


FLOW_ID = Layout(FlowId, "flow_id")
ENDPOINT = Layout(Endpoint, "endpoint")
ACTIVITY = Layout(ActivityCell, "activity")
HANDOFF_KEYS = Layout(HandoffKeys, "handoff_keys")
CLOCK = Layout(Clock, "clock")
FORGETTING = Layout(Forgetting, "forgetting")

Activity = Annotated[ActivityCell, ACTIVITY]
SHARED = (FLOW_ID, ENDPOINT, ACTIVITY, HANDOFF_KEYS, CLOCK, FORGETTING)
