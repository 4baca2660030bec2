"""What the balancer's programs share with Python. `bpf.generate` writes it as bpf/include/balancer_abi.h."""

from enum import IntEnum
from typing import NamedTuple

from common.bpf.abi import MAGLEV_SIZE, MAX_SERVICES, Activity
from common.bpf.layout import S64, U8, U16, U32, U64, Be16, Be32, Layout, Pad1, Pad3


class KeyKind(IntEnum):
    """`common.hashing.request_key.KeySpec.kind`, as far as the programs know it."""

    UNREAD = 0
    """A kind that only Python reads: every first payload is passed up."""
    PATH = 1
    URI = 2
    SEGMENTS = 3


class NonHttpNumber(IntEnum):
    """`balancer.core.service.NonHttp`, numbered."""

    RESET = 0
    HASH = 1


class ServiceRow(NamedTuple):
    """Value of map `services`, whose key is the VIP and port (`Endpoint`)."""

    vip: Be32
    port: Be16
    vip_index: U8
    key_kind: U8
    """`KeyKind`."""
    hash_seed: U64
    key_argument: U32
    """Of SEGMENTS: how many."""
    target_limit: U32
    """Bytes of a request-target."""
    max_payload: U16
    """Payload bytes of a handoff; a multiple of 4."""
    node_mtu: U16
    """Bytes of the largest IP packet that is sent to nodes without asking the kernel."""
    promised_scale: U8
    non_http: U8
    """`NonHttpNumber`."""
    table: U8
    """Index into map `tables`; 0: no node can take a connection."""
    zero: Pad1 = b"\0"


class HelloRow(NamedTuple):
    """Value of map `half_open`, key `FlowId`: `balancer.core.connection.Hello`."""

    client_isn: U32
    since: U32
    mss: U16
    """As the SYN said it; 0 where it said none."""
    window_scale: U8
    """Or `NO_SCALE`."""
    options: U8
    """OPTION_SACK, OPTION_TIMESTAMPS."""


class VerifiedRow(NamedTuple):
    """Value of map `verified`, key `FlowId`: `balancer.core.connection.Handshake`."""

    client_isn: U32
    isn: U32
    since: U32
    mss: U16
    window_scale: U8
    options: U8


class FlowRow(NamedTuple):
    """Value of map `flows`, key `FlowId`: `balancer.core.connection.Flow`."""

    client: Activity
    client_isn: U32
    isn: U32
    node: Be32
    """Bridge address; also the slot value of the Maglev tables, and the key of `routes`."""
    begun: U32
    contested_until: U32
    """0: not contested."""
    mss: U16
    window_scale: U8
    options: U8
    """OPTION_SACK, OPTION_TIMESTAMPS, FIRST_WAS_CUT."""


class RouteRow(NamedTuple):
    """Value of map `routes`, key the node's address: how packets leave for it."""

    ifindex: U32
    """0: the kernel decides, by way of the daemon's TUN."""
    next_hop: Be32
    """The gateway, or the node itself."""
    marked: U32 = 0
    """Whether the program `mark_routes` has found flows of the node since Python wrote the row."""


class NodeId(NamedTuple):
    """Key of maps `nodes` and `handed`."""

    node: Be32
    """Bridge address."""
    vip_index: U8
    zero: Pad3 = b"\0\0\0"


class NodeRow(NamedTuple):
    """Value of map `nodes`: how many flows a node has, but for those in map `handed`."""

    base: S64
    weight: U32
    """0: it is closed to new flows."""
    is_bounded: U8
    """It says how many flows it has; one that does not takes any number."""
    zero: Pad3 = b"\0\0\0"


class ServiceLoad(NamedTuple):
    """Value of map `loads`, by VIP index: sums over the nodes that are bounded."""

    base: S64
    """Flows, but for those in map `handed_total`."""
    factor: U32
    """`Service.load_factor`."""
    weights: U32


class ChoiceNumber(IntEnum):
    """What the choice of a node came to."""

    FIRST = 0
    """The node of the first look-up."""
    BOUNDED_AWAY = 1
    """That of a later one, because those before it had as many flows as they may."""
    ALL_AT_BOUND = 2
    """That of the first all the same."""


class SweepResult(NamedTuple):
    """What one run of the sweeping program counted."""

    flows: U64
    """Those that are left."""
    expired: U64


class LimitNumber(IntEnum):
    """Index into map `limits`."""

    CLAIMS = 0
    RESETS = 1


class Counter(IntEnum):
    """Index into the per-CPU array `counters`; named as the core's counters that mean the same."""

    ANSWER_SYN = 0
    REMEMBER = 1
    ANSWER_PROBE = 2
    COLLECT = 3
    FORGET = 4
    IGNORE = 5
    RESET = 6
    CONTEST = 7
    HAND_OFF_AGAIN = 8
    FORWARD = 9
    START_OVER = 10
    RESETS_SENT = 11
    RESETS_SUPPRESSED = 12
    FORWARD_ICMP = 13
    FORWARD_PLAIN = 14
    """Ordinary data of a flow, for which the core has a plan and no counter."""
    HANDOFFS = 15
    PASSED_UP = 16
    PASSED_UP_LIMITED = 17
    """Python had enough to decide: the node of the 4-tuple, or dropped."""
    NOT_HTTP = 18
    FLOW_TABLE_FULL = 19
    FLOWS_ADDED = 20
    FLOWS_REMOVED = 21
    NO_ROUTE = 22
    """Of packets to a node: the kernel looks for a way."""
    DROPPED_FRAGMENT = 23
    DROPPED_IP_OPTIONS = 24
    DROPPED_TRUNCATED = 25
    DROPPED_BAD_DATA_OFFSET = 26
    DROPPED_BAD_FLAGS = 27
    DROPPED_BAD_CHECKSUM = 28
    DROPPED_BAD_IP_CHECKSUM = 29
    DROPPED_ICMP_OF_UNKNOWN_FLOW = 30
    DROPPED_UNSIGNED = 31
    """There was no key to sign a handoff with."""
    DROPPED_UNWRITABLE = 32
    """The kernel had no memory to change the packet."""
    VERIFIED_TABLE_FULL = 33
    BOUNDED_AWAY = 34
    ALL_AT_BOUND = 35
    BYTES_TO_NODES = 36


FIRST_WAS_CUT = 4
"""Bit of a flow's `options`: its first payload was more than a handoff takes; nothing has answered yet."""
TABLES = 2 * MAX_SERVICES
"""Each VIP index has two places, at itself and `MAX_SERVICES` behind it: the row says which one counts."""
MAX_NODES = 16_384
"""Of all services together."""
TABLE_SIZE = 4 * MAGLEV_SIZE
"""Bytes of a Maglev table: each slot is a node's address."""
KEY_KINDS = {"path": KeyKind.PATH, "uri": KeyKind.URI, "segments": KeyKind.SEGMENTS}

SERVICE = Layout(ServiceRow, "balancer_service")
HELLO = Layout(HelloRow, "hello")
VERIFIED = Layout(VerifiedRow, "handshake")
FLOW = Layout(FlowRow, "balancer_flow")
ROUTE = Layout(RouteRow, "route")
NODE_ID = Layout(NodeId, "node_id")
NODE = Layout(NodeRow, "node_row")
SERVICE_LOAD = Layout(ServiceLoad, "service_load")
SWEEP_RESULT = Layout(SweepResult, "sweep_result")
STRUCTS = (SERVICE, HELLO, VERIFIED, FLOW, ROUTE, NODE_ID, NODE, SERVICE_LOAD, SWEEP_RESULT)
