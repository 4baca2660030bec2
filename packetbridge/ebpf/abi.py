"""What the packetbridge's programs share with Python.

`bpf.generate` writes it as bpf/include/packetbridge_abi.h.
"""

from enum import IntEnum
from typing import NamedTuple

from common.bpf.abi import Activity
from common.bpf.layout import S8, S64, U8, U16, U32, U64, Be16, Be32, Layout, Pad1, Pad3
from common.wire import handoff


class StateNumber(IntEnum):
    """`packetbridge.core.machine.State` of a flow that has an entry, in the order in which it comes to more.

    Two are not the core's, those of a connection that the backend's listener adopts.
    """

    OPENING = 1
    ADOPTING = 2
    """The listener has been given the first payload, and nothing has come from there."""
    ECHOING = 3
    ESTABLISHED = 4
    ADOPTED = 5
    """As ESTABLISHED, with the same numbers on both legs."""


SPLICED = (StateNumber.ECHOING, StateNumber.ESTABLISHED, StateNumber.ADOPTED)
"""Those in which both legs are joined."""


class StandingNumber(IntEnum):
    """How a flow stands in its VIP's `OpenFlows`. Who turns it, by an atomic operation, counts that."""

    UNCOUNTED = 0
    """Until a program has looked at it, and when it is over."""
    COUNTED = 1
    LEAVING = 2
    """Who has set it removes or replaces the flow."""
    DOUBTED = 3
    """It was LEAVING when a sweep came by. If it is still there at the next, nobody removes it."""


class ServiceRow(NamedTuple):
    """Value of map `services`, an array whose index is the VIP's: `packetbridge.core.service.Service`."""

    vip: Be32
    bridge: Be32
    backend: Be32
    vip_port: Be16
    backend_port: Be16
    in_use: U8
    zero: Pad3 = b"\0\0\0"


class FlowRow(NamedTuple):
    """Value of map `flows`, key `FlowId`: `packetbridge.core.flow.Flow`."""

    client: Activity
    backend: Activity
    client_isn: U32
    balancer_isn: U32
    time: U32
    """Wall-clock seconds at which its first handoff was made."""
    seq_delta: U32
    value_delta: U32
    floor: U32
    """TSval of the backend's SYN-ACK."""
    backend_shift: S8
    """Left shift of the backend's window field; negative is a right shift."""
    client_shift: S8
    state: U8
    """`StateNumber`."""
    attempts: U8 = 0
    """How often the listener was given the first payload."""
    standing: U32 = 0
    """`StandingNumber`."""


class StashRow(NamedTuple):
    """Head of a value of map `stash`, key `FlowId`, for a flow whose backend has not answered.

    The payload that waits stands behind it, in a room of `STASH_PAYLOAD` bytes. ``waiting_`` is what belongs
    to it where a longer one has taken the place of the first handoff's.
    """

    replaced_isn: U32
    """The client's ISN of the flow whose place this one took, where `has_replaced`."""
    value: U32
    """The client's TSval."""
    echo: U32
    waiting_value: U32
    sum: U32
    """Of the payload, as bpf_csum_diff counts."""
    identification: Be16
    """Of the IP header, as the next one."""
    fragment: Be16
    window: U16
    """The client's in bytes."""
    waiting_window: U16
    mss: U16
    size: U16
    """Payload bytes."""
    window_scale: U8
    """The client's, or `NO_SCALE`."""
    promised_scale: U8
    options: U8
    """OPTION_SACK, OPTION_TIMESTAMPS."""
    fin: U8
    ecn: U8
    has_replaced: U8
    retries: U8
    zero: Pad1 = b"\0"


class TombstoneId(NamedTuple):
    """Key of map `tombstones` (LRU); the value is a u32, when the flow was buried."""

    client: Be32
    client_port: Be16
    vip_index: U8
    zero: U8
    client_isn: U32
    balancer_isn: U32


class OpenFlows(NamedTuple):
    """Value of map `open_flows`, an array whose index is the VIP's."""

    open: S64
    """Flows that are not over. The programs count as they go; what Python adds and deletes is counted by the
    next sweep. For a moment it may be below 0."""
    begun: U64
    """How often a flow's standing was about to be turned."""
    done: U64
    """How often that was, and is counted."""
    swept: U64
    """What the sweep that is running has counted so far."""
    open_before: S64
    """As the sweep began; so is the next."""
    done_before: U64


class SweepResult(NamedTuple):
    """What one run of the sweeping program counted."""

    flows: U64
    """Those that are left."""
    expired: U64
    is_full: U64
    """Whether a handoff has found no room since: then the next sweep does not wait for closed flows."""
    questions: U64
    """New ones in map `questions`: idle flows whose sockets Python is to ask the kernel for. The key is a
    `FlowId`, the value a u32, when it was asked; who has answered deletes the entry."""


class Counter(IntEnum):
    """Index into the per-CPU array `counters`; named as the core's counters that mean the same."""

    HANDOFF = 0
    SAME_HANDOFF = 1
    NEWER_HANDOFF = 2
    OLDER_HANDOFF = 3
    REPLAYED_HANDOFF = 4
    CLIENT_SEGMENT = 5
    NEW_ECHO = 6
    CLIENT_RST_IN_ORDER = 7
    CLIENT_RST_ELSEWHERE = 8
    SYN_ACK = 9
    SYN_ACK_WITH_TIMESTAMPS = 10
    SYN_ACK_LACKS_TIMESTAMPS = 11
    SYN_ACK_AGAIN = 12
    SYN_ACK_RENUMBERED = 13
    SYN_ACK_OF_REPLACED = 14
    SYN_ACK_OF_OTHER = 15
    BACKEND_SEGMENT = 16
    BACKEND_REFUSAL = 17
    BACKEND_RST = 18
    HANDOFF_BAD_TAG = 19
    HANDOFF_TOO_OLD = 20
    NOT_A_HANDOFF = 21
    BAD_HANDOFF_PAYLOAD = 22
    BAD_HANDOFF_OPTIONS = 23
    UNKNOWN_HANDOFF_VERSION = 24
    UNKNOWN_DSCP = 25
    WRONG_PORT = 26
    ABSURD_FLAGS = 27
    BAD_CHECKSUM = 28
    BAD_IP_CHECKSUM = 29
    FRAGMENT = 30
    IP_OPTIONS = 31
    TRUNCATED = 32
    BAD_DATA_OFFSET = 33
    BAD_TCP_OPTIONS = 34
    ICMP_PASSED = 35
    ICMP_OF_UNKNOWN_FLOW = 36
    ICMP_QUOTES_NO_VIP = 37
    ICMP_FROM_BACKEND = 38
    FLOWS_FULL = 39
    WAITING_FULL = 40
    OPENING_RETRIES_EXHAUSTED = 41
    STRANGERS_PASSED_UP = 42
    """Passed up: Python remembers them."""
    EARLY = 43
    """Passed up: Python keeps them until the backend has answered."""
    STRANGER_RESET = 44
    STRANGER_RESET_LIMITED = 45
    FLOWS_ADDED = 46
    FLOWS_REMOVED = 47
    STRANGERS_LIMITED = 48
    """Dropped: Python is given no more."""
    UNWRITTEN = 49
    """Dropped: the kernel had no memory for the packet as it was to be."""
    ADOPTED = 50
    """First payloads that the backend's listener was given, those that it was given again with them."""
    ADOPTION_REFUSED = 51
    """New handoffs that it could not be given, and that have a backend leg instead."""
    UNADOPTED = 52
    """Dropped: segments of a connection whose first payload the listener has not taken."""
    ADOPTION_IN_VAIN = 53
    """Connections that the listener has not taken and that have a backend leg at last."""
    BYTES_TO_BACKENDS = 54
    """IP bytes of clients' segments as the backends get them."""
    BYTES_TO_CLIENTS = 55
    """IP bytes of backends' segments as they leave, from the VIP."""


INDEX_SIZE = 4
"""Value of map `backends`: a VIP index."""
STASH_PAYLOAD = handoff.MAX_PAYLOAD

SERVICE = Layout(ServiceRow, "bridge_service")
FLOW = Layout(FlowRow, "bridge_flow")
STASH = Layout(StashRow, "stash_head")
TOMBSTONE = Layout(TombstoneId, "tombstone_id")
SWEEP_RESULT = Layout(SweepResult, "sweep_result")
OPEN_FLOWS = Layout(OpenFlows, "open_flows")
STRUCTS = (SERVICE, FLOW, STASH, TOMBSTONE, SWEEP_RESULT, OPEN_FLOWS)
