"""The keys of the packetbridge's configuration file: types, bounds, defaults and what each means."""

from ipaddress import IPv4Address
from typing import Annotated, Literal

from msgspec import Meta, Struct

from common.config import (
    DEFAULT_BACKEND,
    DEFAULT_BRIDGE,
    DEFAULT_PORT,
    LOOPBACK,
    MAX_ENTRIES,
    MAX_SECONDS,
    ConfigError,
    Endpoint,
    HostKeys,
    MetricsKey,
    WrittenEndpoint,
    WrittenListener,
    parse_endpoint,
    parse_number,
)
from common.toml import TextType
from common.vip_map import VipMapKeys
from common.wire import dscp
from packetbridge.core.service import Limits, Timeouts

_VIP = "VIP"
_MAX_BYTES = 1 << 34
_LIMITS, _TIMEOUTS = Limits(), Timeouts()
_Entries = Annotated[int, Meta(ge=1, le=MAX_ENTRIES)]
_Bytes = Annotated[int, Meta(ge=65_536, le=_MAX_BYTES)]


class MapBackend:
    """What serves the VIPs of a map: a server at each VIP's own address, or one if there is one VIP."""

    def __init__(self, fixed: Endpoint | None, port: int | None) -> None:
        self.fixed = fixed
        self.port = port
        """At the VIP's own address; None: the service's port."""

    def of(self, vip: Endpoint) -> Endpoint:
        return self.fixed or Endpoint(vip.address, self.port or vip.port)


def _parse_map_backend(text: str) -> MapBackend:
    address, colon, port = text.partition(":")
    if address == _VIP:
        return MapBackend(None, parse_number(port, 1, 65535, "port") if colon else None)
    try:
        return MapBackend(parse_endpoint(text), None)
    except ConfigError as error:
        raise ConfigError(f"{error}, {_VIP} or {_VIP}:PORT") from None


TEXT_TYPES: dict[type, TextType] = {
    MapBackend: TextType(f'"{_VIP}", "{_VIP}:PORT" or "ADDR[:PORT]"', _parse_map_backend)
}


class _Keys(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    pass


class VipKeys(_Keys, frozen=True, kw_only=True):
    dscp: Annotated[
        Annotated[int, Meta(ge=dscp.MIN_INDEX, le=dscp.MAX_INDEX)] | Literal["map"],
        Meta(
            description="the DSCP that stands for the VIP, 1 to 63, the same as the balancer's; `map`: as the"
            " files of vip-map say"
        ),
    ]
    vip: Annotated[WrittenEndpoint, Meta(description="the virtual IP and port")]
    backend: Annotated[
        WrittenEndpoint | None,
        Meta(
            description="where the local server listens for it, on an address of this host; each VIP needs"
            " one of its own",
            extra={"default": "the key backend above"},
        ),
    ] = None


class BridgeVipMapKeys(VipMapKeys, frozen=True, kw_only=True):
    """With `backend`, all VIPs of the files that no [[vip]] names are served too."""

    port: Annotated[int, Meta(ge=1, le=65535, description="the port at which their clients connect")] = (
        DEFAULT_PORT
    )
    backend: Annotated[
        MapBackend | None,
        Meta(
            description="serve all VIPs of the files that no [[vip]] names. `VIP` is the VIP's own address,"
            " as L3DSR hosts have it on their loopback device, at `port`; `VIP:8080` another port there;"
            " ADDR:PORT one server, if there is one VIP",
            extra={"default": "none: the files only say what `map` stands for"},
        ),
    ] = None


class LimitKeys(_Keys, frozen=True, kw_only=True):
    flows: Annotated[_Entries, Meta(description="connections kept at most; handoffs of more are dropped")] = (
        _LIMITS.flows
    )
    tombstones: Annotated[_Entries, Meta(description="ended flows that are remembered for two minutes")] = (
        _LIMITS.tombstones
    )
    strangers: Annotated[_Entries, Meta(description="clients without a flow that are remembered")] = (
        _LIMITS.strangers
    )
    waiting_per_flow: Annotated[
        _Bytes, Meta(description="bytes of packets that wait for one flow's backend")
    ] = _LIMITS.waiting_per_flow
    waiting_in_all: Annotated[_Bytes, Meta(description="the same of all flows")] = _LIMITS.waiting_in_all
    resets_per_second: Annotated[
        float, Meta(ge=1.0, le=1e6, description="resets to clients of unknown flows")
    ] = _LIMITS.resets_per_second


class TimeoutKeys(_Keys, frozen=True, kw_only=True):
    idle: Annotated[
        float,
        Meta(
            ge=1.0,
            le=MAX_SECONDS,
            description="seconds for which an open flow may be silent before the kernel is asked for its"
            " socket",
        ),
    ] = _TIMEOUTS.idle


class PacketbridgeKeys(HostKeys, frozen=True, kw_only=True):
    """The whole file."""

    listen: Annotated[
        IPv4Address,
        Meta(description="the bridge address: the address of this host that the balancer knows the node by"),
    ] = DEFAULT_BRIDGE
    backend: Annotated[
        WrittenEndpoint,
        Meta(
            description="where the local server listens, on an address of this host, for a VIP that says"
            " nothing else"
        ),
    ] = WrittenEndpoint(parse_endpoint(DEFAULT_BACKEND))
    adopt: Annotated[
        Literal["auto", "off"],
        Meta(
            description="have the server's listening socket adopt connections without a handshake, if engine"
            " and kernel can do that; off where this host's firewall drops connections whose SYN it has not"
            " seen"
        ),
    ] = "auto"
    metrics: MetricsKey = WrittenListener(Endpoint(LOOPBACK, 9714))
    limits: LimitKeys = LimitKeys()
    timeouts: TimeoutKeys = TimeoutKeys()
    vip_map: BridgeVipMapKeys = BridgeVipMapKeys()
    vip: tuple[VipKeys, ...] = ()
