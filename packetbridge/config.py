"""The packetbridge's options."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from common.config import (
    DEFAULT_BACKEND,
    DEFAULT_BRIDGE,
    DEFAULT_INDEX,
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
from common.keyring import DEFAULT_KEY_FILE
from common.wire import dscp
from packetbridge.core.service import Limits

_AUTO, _OFF = "auto", "off"

_DESCRIPTION = (
    "Take over connections from a balancer on the node that serves them: open each to the local server as"
    " if by the client, and send the server's replies to the client as the virtual IP."
)


@dataclass(frozen=True, slots=True)
class VipConfig:
    index: int
    vip: Endpoint
    backend: Endpoint


@dataclass(frozen=True, slots=True)
class PacketbridgeConfig:
    """Validated as a whole by `parse`."""

    bridge: IPv4Address
    vips: tuple[VipConfig, ...]
    max_flows: int
    adopt: bool
    """Whether listeners may be given connections without a handshake."""
    host: HostConfig


def parse(arguments: Sequence[str] | None = None) -> PacketbridgeConfig:
    return parse_command(make_parser(), arguments, _validated)


def make_parser() -> Parser:
    parser = Parser("packetbridge", _DESCRIPTION)
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        default=str(DEFAULT_BRIDGE),
        help="the bridge address: the address of this host that the balancer knows the node by",
    )
    parser.add_argument(
        "--backend",
        metavar="ADDR:PORT",
        default=DEFAULT_BACKEND,
        help="where the local server listens, on an address of this host",
    )
    parser.add_argument(
        "--vip",
        metavar="DSCP=ADDR[:PORT][@ADDR:PORT]",
        action="append",
        help="a virtual IP and port by the DSCP that stands for it, and its backend if it is not that of"
        f" --backend; repeat it for more (default: {DEFAULT_INDEX}={DEFAULT_VIP})",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--max-flows",
        metavar="N",
        default=str(Limits().flows),
        help="connections kept at most; handoffs of more are dropped",
    )
    parser.add_argument(
        "--adopt",
        choices=(_AUTO, _OFF),
        default=_AUTO,
        help="have the server's listening socket adopt connections without a handshake, if engine and kernel"
        " can do that; off where this host's firewall drops connections whose SYN it has not seen",
    )
    add_common_options(parser, DEFAULT_KEY_FILE)
    return parser


def _validated(options: argparse.Namespace) -> PacketbridgeConfig:
    bridge = parse_address(options.listen)
    backend = parse_endpoint(options.backend)
    texts = getattr(options, "vip", None) or [f"{DEFAULT_INDEX}={DEFAULT_VIP}"]
    vips = tuple(_parse_vip(text, backend) for text in texts)
    require_distinct("VIPs", "the DSCP", [vip.index for vip in vips])
    require_distinct("VIPs", "the address and port", [vip.vip for vip in vips])
    require_distinct("VIPs", "the backend", [vip.backend for vip in vips])
    for vip in vips:
        if bridge == vip.vip.address:
            raise ConfigError(f"--listen {bridge} is the address of a VIP: it must be one of this host alone")
    return PacketbridgeConfig(
        bridge=bridge,
        vips=vips,
        max_flows=parse_number(options.max_flows, 1, 10_000_000, "--max-flows"),
        adopt=options.adopt == _AUTO,
        host=host_config(options),
    )


def _parse_vip(text: str, default_backend: Endpoint) -> VipConfig:
    index, equals, rest = text.partition("=")
    if not equals:
        raise ConfigError(f"--vip {text!r} is not DSCP=ADDR[:PORT], such as {DEFAULT_INDEX}={DEFAULT_VIP}")
    vip, at, backend = rest.partition("@")
    return VipConfig(
        index=parse_number(index, dscp.MIN_INDEX, dscp.MAX_INDEX, "DSCP"),
        vip=parse_endpoint(vip),
        backend=parse_endpoint(backend) if at else default_backend,
    )
