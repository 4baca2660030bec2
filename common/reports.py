"""What daemons say of themselves: the documents that control socket, metrics and live page have in common.

As JSON they are objects with these keys. Times are in seconds, addresses in dotted decimals.
"""

import msgspec


class FlowReport(msgspec.Struct, frozen=True):
    """What one daemon knows of a flow, or the balancer of a connection that has no node."""

    client: str
    client_port: int
    vip_index: int
    node: str
    """Bridge address; empty where there is none."""
    state: str
    age: float | None
    """Since it got its node; of a packetbridge: since its handoff was made. None without a node."""
    idle: float | None
    details: dict[str, int | float | str | bool | None] = {}
    """What else there is, by its name in the field's terms: client_isn, seq_delta, mss, window_scale."""


class NodeReport(msgspec.Struct, frozen=True):
    """One node of one service, as the balancer sees it."""

    name: str
    address: str
    state: str
    """up, down, drain or maintenance."""
    reason: str
    """Why it is down, in words that name the part that is broken; empty otherwise."""
    weight: int
    """As configured, or as the operator has set it since."""
    effective_weight: float
    """What the table is made with: less than `weight` during a slow start, 0 where it gets no new flows."""
    share: float
    """Of the slots of the Maglev lookup table, 0 to 1."""
    flows: int | None
    """By its own report; None where there is none."""
    bytes_to_clients: int | None
    """IP bytes that the node has sent to clients as a VIP, of all its services together."""
    handoffs: int
    """New flows handed to it since the start."""
    handoffs_per_second: float
    channel: str
    """`ok`, or what is wrong with the channel to its packetbridge."""
    version: str
    """Of its packetbridge, empty while unknown."""
    checked: float | None
    """How long ago the last health check ended; None where there was none."""


class ServiceReport(msgspec.Struct, frozen=True):
    name: str
    vip: str
    """ADDR:PORT."""
    vip_index: int
    hash_key: str
    load_factor: float | None
    nodes: list[NodeReport]


class BalancerReport(msgspec.Struct, frozen=True, tag="balancer", tag_field="daemon"):
    version: str
    engine: str
    uptime: float
    generation: int
    """How many configurations were taken so far."""
    services: list[ServiceReport]
    counters: dict[str, int]
    """What only grows, bytes_to_nodes among it."""
    sizes: dict[str, int]
    """How much is remembered."""
    warnings: list[str] = []
    """What an operator should see to, one line each."""


class VipReport(msgspec.Struct, frozen=True):
    """One VIP of a packetbridge."""

    vip: str
    vip_index: int
    backend: str
    flows: int


class PacketbridgeReport(msgspec.Struct, frozen=True, tag="packetbridge", tag_field="daemon"):
    version: str
    engine: str
    uptime: float
    generation: int
    bridge: str
    vips: list[VipReport]
    counters: dict[str, int]
    """What only grows, bytes_to_clients and bytes_to_backends among it."""
    sizes: dict[str, int]
    warnings: list[str] = []


Report = BalancerReport | PacketbridgeReport


def parse_report(data: bytes) -> Report:
    """Raises `msgspec.DecodeError` or `msgspec.ValidationError`."""
    report: Report = msgspec.json.decode(data, type=BalancerReport | PacketbridgeReport)
    return report


class FlowSide(msgspec.Struct, frozen=True):
    """What one side knows of a flow: of each side one, in answer to `flow`."""

    side: str
    """balancer or packetbridge."""
    node: str
    """Name of the node; of a packetbridge that answers for itself its bridge address."""
    flow: FlowReport | None
    text: str = ""
    """Why there is nothing, or what else there is to say, in words."""


class Departure(msgspec.Struct, frozen=True):
    """What would change if a node left its service."""

    node: str
    successor: str
    """Where the key would go then; empty if nowhere."""
    moved: float
    """Share of all slots that would get another node, 0 to 1."""


class Explanation(msgspec.Struct, frozen=True):
    """Which node a URL belongs to, and why: the answer to `explain`."""

    service: str
    key: str
    """What is hashed. Bytes that are not UTF-8 as backslash escapes."""
    key_hash: str
    """XXH64 of it under the service's seed: 16 hex digits."""
    slot: int
    slots: int
    """Of the Maglev lookup table."""
    node: str
    """Who would get it now; empty if nobody."""
    sequence: list[str]
    """Nodes in the order of the key's look-ups, each once; `node` is the first that takes one more flow."""
    departures: list[Departure]
    """Of each node that is open to new flows."""
    text: str = ""
    """What is not as usual: no node is open, the first one of the sequence is above its bound."""


class ChannelReport(msgspec.Struct, frozen=True):
    """The channel between the balancer and one packetbridge: an element of the answer to `channels`."""

    node: str
    address: str
    """Bridge address."""
    state: str
    """ok, or what of a channel's states is not."""
    text: str
    """The same in words."""
    since: float
    """How long it has been in this state."""
    version: str
    """Of the packetbridge; empty while unknown."""
    round_trip: float | None
    clock_offset: float | None
    """The packetbridge's clock less the balancer's."""
    vip_map_problems: list[str]
    """Where both sides' maps of DSCP, VIP and port differ, one line each."""
    dscp_seen: dict[int, int | None]
    """By DSCP as sent: as it arrived; null: what is sent with it does not arrive."""


class CheckReport(msgspec.Struct, frozen=True):
    """The last health check of a node by one service: an element of the answer to `checks`."""

    service: str
    node: str
    ok: bool
    failure: str
    """Which part is broken, by its name in lower case with underscores; empty if none."""
    text: str
    """What was found, in words."""
    seconds: float
    """How long it took."""
    ago: float
