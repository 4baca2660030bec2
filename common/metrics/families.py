"""All metrics, in the naming conventions of Prometheus.

Every counter and size of a report is in one of them. Those of a kind share a family and are told apart by a
label; what no other family knows is in `EVENTS` under its own name. docs/metrics.md is made from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

COUNTER, GAUGE = "counter", "gauge"
BALANCER, PACKETBRIDGE = "balancer", "packetbridge"
NODE_STATES = ("up", "down", "drain", "maintenance")


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Metrics of one name and meaning."""

    name: str
    """Without the daemon's prefix, and without the `_total` that a counter's samples end with."""
    kind: str
    """`COUNTER` or `GAUGE`."""
    meaning: str
    labels: tuple[str, ...] = ()
    daemons: tuple[str, ...] = (BALANCER, PACKETBRIDGE)
    counted: Mapping[str, str] = field(default_factory=dict)
    """The counters of a report that are in it, and the label of each: an empty one where the family has none.
    They are there from the start."""
    prefix: str = ""
    """Counters that start with this are in it too, the rest of the name being the label."""

    def metric(self, daemon: str) -> str:
        """Its name, as exposed."""
        return f"l3dsr_{daemon}_{self.name}{'_total' if self.kind == COUNTER else ''}"


def _gauge(name: str, meaning: str, *labels: str) -> Family:
    return Family(name, GAUGE, meaning, labels)


def _of_service(name: str, meaning: str, *labels: str, kind: str = GAUGE) -> Family:
    return Family(name, kind, meaning, ("service", *labels), (BALANCER,))


def _of_node(name: str, meaning: str, *labels: str, kind: str = GAUGE) -> Family:
    return _of_service(name, meaning, "node", *labels, kind=kind)


def _of_vip(name: str, meaning: str, *labels: str) -> Family:
    return Family(name, GAUGE, meaning, ("vip", *labels), (PACKETBRIDGE,))


def _one_counter(name: str, meaning: str, counter: str, daemon: str = "") -> Family:
    return Family(name, COUNTER, meaning, (), _daemons(daemon), {counter: ""})


def _by_label(
    name: str, meaning: str, label: str, counted: Mapping[str, str], daemon: str = "", prefix: str = ""
) -> Family:
    return Family(name, COUNTER, meaning, (label,), _daemons(daemon), counted, prefix)


def _daemons(one: str) -> tuple[str, ...]:
    return (one,) if one else (BALANCER, PACKETBRIDGE)


def _as_they_are(*names: str) -> dict[str, str]:
    return {name: name for name in names}


INFO = _gauge("info", "1, with the version and the data plane that runs.", "version", "engine")
UPTIME = _gauge("uptime_seconds", "Time since the daemon started.")
GENERATION = _gauge("configuration_generation", "How many configurations were taken since the start.")
WARNINGS = _gauge("warnings", "How many things an operator should see to; `l3dsr status` names them.")
ENTRIES = _gauge("table_entries", "How much is remembered, by table.", "table")
MEMORY = _gauge("table_memory_bytes", "Memory in use, by table.", "table")

SERVICE_INFO = _of_service("service_info", "1, with what the service is.", "vip", "dscp", "hash_key")
LOAD_FACTOR = _of_service(
    "service_load_factor_ratio",
    "Bound of a node's flows as a multiple of the average; missing where loads are not bounded.",
)
NODE_STATE = _of_node("node_state", "1 for the state that the node is in, 0 for the others.", "state")
NODE_WEIGHT = _of_node("node_weight", "Configured weight, or what the operator has set since.")
NODE_EFFECTIVE_WEIGHT = _of_node("node_effective_weight", "Weight that the lookup table is made with.")
NODE_SHARE = _of_node("node_table_share_ratio", "Part of the Maglev lookup table that is the node's.")
NODE_FLOWS = _of_node("node_flows", "Flows of the node, by its own report.")
NODE_BYTES = Family(
    "node_sent_to_clients_bytes",
    COUNTER,
    "Bytes to clients, of all services, by the node's own report.",
    ("node",),
    (BALANCER,),
)
NODE_HANDOFFS = _of_node("node_handoffs", "New flows handed to the node.", kind=COUNTER)
NODE_CHANNEL = _of_node("node_channel_up", "1 where the node's packetbridge answers on the channel.")
NODE_CHECK_AGE = _of_node("node_check_age_seconds", "Time since the last health check ended.")

VIP_INFO = _of_vip("vip_info", "1, with what the VIP is.", "dscp", "backend")
VIP_FLOWS = _of_vip("flows", "Flows of the VIP on this node.")

TO_NODES = _one_counter(
    "sent_to_nodes_bytes", "Bytes that went through the balancer.", "bytes_to_nodes", daemon=BALANCER
)
TO_CLIENTS = _one_counter(
    "sent_to_clients_bytes",
    "Bytes delivered to clients, past the balancer.",
    "bytes_to_clients",
    daemon=PACKETBRIDGE,
)
TO_BACKENDS = _one_counter(
    "sent_to_backends_bytes", "Bytes passed on to the backends.", "bytes_to_backends", daemon=PACKETBRIDGE
)
HANDOFFS = _by_label(
    "handoffs",
    "Valid handoffs: new ones, and those of a connection that is known.",
    "kind",
    {
        "handoff": "new",
        "same_handoff": "same",
        "newer_handoff": "newer",
        "older_handoff": "older",
        "replayed_handoff": "replayed",
    },
    PACKETBRIDGE,
)
HANDOFFS_REFUSED = _by_label(
    "handoffs_refused",
    "Handoffs dropped, by reason.",
    "reason",
    {
        "handoff_bad_tag": "bad_tag",
        "handoff_too_old": "too_old",
        "not_a_handoff": "not_a_handoff",
        "bad_handoff_payload": "bad_payload",
        "bad_handoff_options": "bad_options",
        "unknown_handoff_version": "unknown_version",
    },
    PACKETBRIDGE,
)
SYNS_ANSWERED = _one_counter("syns_answered", "SYN-ACKs sent.", "answer_syn", daemon=BALANCER)
KEYLESS_FLOWS = _one_counter(
    "keyless_flows",
    "Flows that went to the node of their 4-tuple: their first payload told no hash key in time.",
    "give_up_key",
    daemon=BALANCER,
)
ERROR_ANSWERS = _by_label(
    "error_answers",
    "HTTP errors that the balancer has answered with itself.",
    "status",
    {"answered_400": "400", "answered_414": "414", "answered_503": "503"},
    BALANCER,
)
_RESETS = "RSTs sent to clients of unknown flows."
_RESETS_LIMITED = "RSTs not sent, as there were too many."
BALANCER_RESETS = _one_counter("resets", _RESETS, "resets_sent", daemon=BALANCER)
PACKETBRIDGE_RESETS = _one_counter("resets", _RESETS, "stranger_reset", daemon=PACKETBRIDGE)
BALANCER_RESETS_LIMITED = _one_counter(
    "resets_limited", _RESETS_LIMITED, "resets_suppressed", daemon=BALANCER
)
PACKETBRIDGE_RESETS_LIMITED = _one_counter(
    "resets_limited", _RESETS_LIMITED, "stranger_reset_limited", daemon=PACKETBRIDGE
)
BALANCER_DROPS = _by_label(
    "dropped_packets", "Packets dropped, by reason.", "reason", {}, BALANCER, prefix="dropped_"
)
PACKETBRIDGE_DROPS = _by_label(
    "dropped_packets",
    "Packets dropped, by reason.",
    "reason",
    _as_they_are(
        "unknown_dscp",
        "wrong_port",
        "absurd_flags",
        "bad_checksum",
        "bad_ip_checksum",
        "fragment",
        "ip_options",
        "truncated",
        "bad_data_offset",
        "bad_tcp_options",
        "icmp_of_unknown_flow",
        "icmp_quotes_no_vip",
        "icmp_from_backend",
        "icmp_quotes_no_tcp",
        "not_an_icmp_error",
        "not_tcp",
        "strangers_limited",
        "unadopted",
        "unwritten",
        "wrong_destination",
    ),
    PACKETBRIDGE,
    prefix="dropped_",
)
BACKEND_REFUSALS = _one_counter(
    "backend_refusals",
    "Connections that the backend refused with RST: its port is closed.",
    "backend_refusal",
    daemon=PACKETBRIDGE,
)
BACKEND_TIMEOUTS = _one_counter(
    "backend_timeouts",
    "Connections that the backend never answered.",
    "opening_retries_exhausted",
    daemon=PACKETBRIDGE,
)
_FULL = "Times that something found no room, by table."
BALANCER_TABLE_FULL = _by_label(
    "table_full",
    _FULL,
    "table",
    {
        "flow_table_full": "flows",
        "verified_table_full": "verified",
        "answered_table_full": "answered",
        "preamble_no_room": "collecting",
    },
    BALANCER,
)
PACKETBRIDGE_TABLE_FULL = _by_label(
    "table_full",
    _FULL,
    "table",
    {"flows_full": "flows", "waiting_full": "waiting", "strangers_full": "strangers"},
    PACKETBRIDGE,
)
DEVICE_ERRORS = _by_label(
    "device_errors",
    "Packets that a tap or the TUN device lost or refused.",
    "error",
    _as_they_are("tap_errors", "tap_kernel_drops", "tap_malformed", "tun_malformed", "tun_refused"),
)
JOURNAL_FAILURES = _one_counter(
    "journal_failures",
    "Times that the journal of flows could not be written.",
    "journal_failures",
    daemon=PACKETBRIDGE,
)
CHANNEL = _by_label(
    "channel_events", "What has happened on the channel, by kind.", "kind", {}, prefix="channel_"
)
HEALTH_CHECKS = _by_label(
    "health_checks",
    "Health checks that have ended, by result.",
    "result",
    {"checks_passed": "passed", "checks_failed": "failed"},
    BALANCER,
)
BOUNDED_FLOWS = _by_label(
    "bounded_flows",
    "Flows whose first choice had as many as it may: those that went on to another node, and those that"
    " stayed as all were at their bound.",
    "outcome",
    {"bounded_away": "away", "all_at_bound": "stayed"},
    BALANCER,
)
BUGS = _one_counter("bugs", "Packets that a bug has cost; the log has the details.", "bugs")
EVENTS = _by_label("events", "All other counters, by their names in the log.", "event", {})

COUNTED = (
    TO_NODES,
    TO_CLIENTS,
    TO_BACKENDS,
    HANDOFFS,
    HANDOFFS_REFUSED,
    SYNS_ANSWERED,
    KEYLESS_FLOWS,
    ERROR_ANSWERS,
    BALANCER_RESETS,
    PACKETBRIDGE_RESETS,
    BALANCER_RESETS_LIMITED,
    PACKETBRIDGE_RESETS_LIMITED,
    BALANCER_DROPS,
    PACKETBRIDGE_DROPS,
    BACKEND_REFUSALS,
    BACKEND_TIMEOUTS,
    BALANCER_TABLE_FULL,
    PACKETBRIDGE_TABLE_FULL,
    DEVICE_ERRORS,
    JOURNAL_FAILURES,
    HEALTH_CHECKS,
    BOUNDED_FLOWS,
    CHANNEL,
    BUGS,
    EVENTS,
)
"""Made from a report's counters."""
FAMILIES = (
    *(INFO, UPTIME, GENERATION, WARNINGS, SERVICE_INFO, LOAD_FACTOR),
    *(NODE_STATE, NODE_WEIGHT, NODE_EFFECTIVE_WEIGHT, NODE_SHARE, NODE_FLOWS, NODE_BYTES),
    *(NODE_HANDOFFS, NODE_CHANNEL, NODE_CHECK_AGE, VIP_INFO, VIP_FLOWS, ENTRIES, MEMORY),
    *COUNTED,
)


def family_of(counter: str, daemon: str) -> tuple[Family, str]:
    """Which family a counter of a daemon's report belongs to, and its label there."""
    for family in COUNTED:
        if daemon in family.daemons:
            if counter in family.counted:
                return family, family.counted[counter]
            if family.prefix and counter.startswith(family.prefix):
                return family, counter.removeprefix(family.prefix)
    return EVENTS, counter
