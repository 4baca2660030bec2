"""The balancer's options."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from balancer.core.service import Limits, NonHttp
from common.config import (
    DEFAULT_INDEX,
    DEFAULT_NODE,
    DEFAULT_VIP,
    ConfigError,
    Endpoint,
    HostConfig,
    Parser,
    add_common_options,
    host_config,
    parse_address,
    parse_command,
    parse_endpoint,
    parse_number,
    require_distinct,
)
from common.hashing.request_key import DEFAULT_KEY_SPEC, KeySpec, parse_key_spec
from common.keyring import DEFAULT_KEY_FILE
from common.wire import dscp, tcp_options

DEFAULT_WEIGHT = 1
MAX_WEIGHT = 1000
DEFAULT_SCALE = 7
_DESCRIPTION = (
    "Answer clients on a virtual IP, read what they ask for, and hand each connection to the node that the"
    " hash of the URL chooses. Replies go from the node straight to the client."
)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    name: str
    address: IPv4Address
    """The node's bridge address."""
    weight: int


@dataclass(frozen=True, slots=True)
class BalancerConfig:
    """Validated as a whole by `parse`."""

    vip: Endpoint
    nodes: tuple[NodeConfig, ...]
    vip_index: int
    key: KeySpec
    hash_seed: int
    non_http: NonHttp
    promised_scale: int
    max_flows: int
    host: HostConfig


def parse(arguments: Sequence[str] | None = None) -> BalancerConfig:
    return parse_command(make_parser(), arguments, _validated)


def make_parser() -> Parser:
    parser = Parser("balancer", _DESCRIPTION)
    parser.add_argument(
        "--listen",
        metavar="ADDR[:PORT]",
        default=f"{DEFAULT_VIP}:80",
        help="the virtual IP and port; it may be an address of this host or one that is only routed here",
    )
    parser.add_argument(
        "--node",
        metavar="NAME=ADDR[@WEIGHT]",
        action="append",
        help="a node by its name, its packetbridge's address and its share of the URLs"
        f" (weight 0 to {MAX_WEIGHT}, default {DEFAULT_WEIGHT}; 0: none); repeat it for more nodes"
        f" (default: {DEFAULT_NODE})",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--dscp",
        metavar="N",
        default=str(DEFAULT_INDEX),
        help="the DSCP that stands for this VIP on the way to the nodes, 1 to 63",
    )
    parser.add_argument(
        "--hash-key",
        metavar="KEY",
        default=str(DEFAULT_KEY_SPEC),
        help="what of the URL chooses the node: `path` (without the query string), `uri` (with it), or"
        " `segments:N` (the first N segments of the path)",
    )
    parser.add_argument(
        "--hash-seed",
        metavar="N",
        default="0",
        help="seed of the hash; with a secret one nobody can aim all load at one node",
    )
    parser.add_argument(
        "--non-http",
        choices=[choice.value for choice in NonHttp],
        default=NonHttp.RESET.value,
        help="what becomes of a connection that does not begin with HTTP: reset it, or choose its node by"
        " the hash of its addresses and ports",
    )
    parser.add_argument(
        "--window-scale",
        metavar="N",
        default=str(DEFAULT_SCALE),
        help="the TCP window scale promised to clients: the smallest that any node's kernel offers",
    )
    parser.add_argument(
        "--max-flows",
        metavar="N",
        default=str(Limits().flows),
        help="connections kept at most; more are answered with 503",
    )
    add_common_options(parser, DEFAULT_KEY_FILE)
    return parser


def _validated(options: argparse.Namespace) -> BalancerConfig:
    vip = parse_endpoint(options.listen)
    nodes = tuple(_parse_node(text) for text in getattr(options, "node", None) or [DEFAULT_NODE])
    require_distinct("nodes", "the name", [node.name for node in nodes])
    require_distinct("nodes", "the address", [node.address for node in nodes])
    for node in nodes:
        if node.address == vip.address:
            raise ConfigError(f"node {node.name!r} has the address of the VIP, {vip.address}")
    try:
        key = parse_key_spec(options.hash_key)
    except ValueError as error:
        raise ConfigError(f"--hash-key: {error}") from None
    return BalancerConfig(
        vip=vip,
        nodes=nodes,
        vip_index=parse_number(options.dscp, dscp.MIN_INDEX, dscp.MAX_INDEX, "--dscp"),
        key=key,
        hash_seed=parse_number(options.hash_seed, 0, 2**64 - 1, "--hash-seed"),
        non_http=NonHttp(options.non_http),
        promised_scale=parse_number(options.window_scale, 0, tcp_options.MAX_WINDOW_SCALE, "--window-scale"),
        max_flows=parse_number(options.max_flows, 1, 10_000_000, "--max-flows"),
        host=host_config(options),
    )


def _parse_node(text: str) -> NodeConfig:
    name, equals, rest = text.partition("=")
    if not (equals and name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
        raise ConfigError(f"--node {text!r} is not NAME=ADDR[@WEIGHT], such as {DEFAULT_NODE}")
    address, at, weight = rest.partition("@")
    number = parse_number(weight, 0, MAX_WEIGHT, f"weight of node {name!r}") if at else DEFAULT_WEIGHT
    return NodeConfig(name, parse_address(address), number)
