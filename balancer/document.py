"""The keys of the balancer's configuration file: types, bounds, defaults and what each means."""

import re
from enum import Enum
from ipaddress import IPv4Address
from typing import Annotated, Literal

from msgspec import Meta, Struct

from balancer.core.roster import NoNode
from balancer.core.service import Limits, NonHttp, Timeouts
from common.config import (
    LOOPBACK,
    MAX_ENTRIES,
    MAX_SECONDS,
    MAX_WEIGHT,
    ConfigError,
    Endpoint,
    HostKeys,
    MetricsKey,
    Written,
    WrittenEndpoint,
    WrittenListener,
)
from common.hashing.request_key import DEFAULT_KEY_SPEC, KeySpec, parse_key_spec
from common.toml import TextType
from common.vip_map import VipMapKeys
from common.wire import dscp, tcp_options

DEFAULT_POOL = "default"
DEFAULT_WEIGHT = 1
DEFAULT_SCALE = 7
MAX_LOAD_FACTOR = 10.0
MAX_SEED = 2**64 - 1
_MAX_BYTES = 1 << 34
_MAX_CHECKS = 100

_STATUSES = re.compile(r"([2-5][0-9]{2})(?:-([2-5][0-9]{2}))?")
"""Of final answers: a check passes over the interim ones."""
_LIMITS, _TIMEOUTS = Limits(), Timeouts()


class OnFail(Enum):
    """What becomes of the flows of a node that went down."""

    KEEP = "keep"
    RESET = "reset"


def _parse_statuses(text: str) -> range:
    match = _STATUSES.fullmatch(text)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last:
            return range(first, last + 1)
    raise ConfigError(f"{text!r} is not a status from 200 to 599 or a range of them, such as 200-399")


def shown_statuses(statuses: range) -> str:
    """As they are written."""
    first, last = statuses[0], statuses[-1]
    return f"{first}-{last}" if last > first else str(first)


class WrittenKey(Written[KeySpec]):
    """See `parse_key_spec`."""


def _parse_key(text: str) -> WrittenKey:
    try:
        return WrittenKey(parse_key_spec(text))
    except ValueError as error:
        raise ConfigError(str(error)) from None


TEXT_TYPES = {
    WrittenKey: TextType('"path", "uri" or "segments:N"', _parse_key),
    range: TextType('a status from 200 to 599 or a range of them, such as "200-399"', _parse_statuses),
}

_NAME = r"\A[A-Za-z0-9._-]{1,64}\Z"
_A_NAME = {"allowed": "a name of 1 to 64 letters, digits, dots, hyphens and underscores"}
_Seconds = Annotated[float, Meta(ge=0.01, le=3600.0)]
_Times = Annotated[int, Meta(ge=1, le=_MAX_CHECKS)]
_Entries = Annotated[int, Meta(ge=1, le=MAX_ENTRIES)]


class _Keys(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    pass


class HealthConfig(_Keys, frozen=True, kw_only=True):
    """How a pool's nodes are asked whether they serve."""

    path: Annotated[
        str,
        Meta(
            pattern=r"\A/[!-~]{0,1000}\Z",
            description="what is asked for, by GET",
            extra={"allowed": "a path that begins with / and has no spaces"},
        ),
    ] = "/"
    host: Annotated[
        Annotated[str, Meta(pattern=r"\A[!-~]{1,255}\Z", extra={"allowed": "a host name"})] | None,
        Meta(description="the Host field of the request", extra={"default": "the VIP"}),
    ] = None
    expect: Annotated[
        tuple[range, ...],
        Meta(
            min_length=1,
            description="the statuses of an answer that is healthy; by default all but the server's errors,"
            " since any HTTP answer proves the path",
            extra={"allowed": 'a list such as ["200-299", "404"]', "default": '`["200-499"]`'},
        ),
    ] = (range(200, 500),)
    interval: Annotated[_Seconds, Meta(description="seconds from one check to the next")] = 2.0
    timeout: Annotated[
        _Seconds, Meta(description="seconds until an answer must be there; not longer than the interval")
    ] = 1.0
    rise: Annotated[_Times, Meta(description="good checks in a row after which a node is up")] = 2
    fall: Annotated[_Times, Meta(description="bad checks in a row after which a node is down")] = 3
    source: Annotated[
        IPv4Address | None,
        Meta(
            description="the address of this host that the checks come from",
            extra={"default": "that of the route to the node"},
        ),
    ] = None


class NodeConfig(_Keys, frozen=True, kw_only=True):
    name: Annotated[
        str, Meta(pattern=_NAME, description="its name, which places it in the lookup table", extra=_A_NAME)
    ]
    address: Annotated[IPv4Address, Meta(description="its bridge address, where its packetbridge listens")]
    weight: Annotated[
        int, Meta(ge=0, le=MAX_WEIGHT, description="its share of the URLs among the others' weights; 0: none")
    ] = DEFAULT_WEIGHT


class PoolKeys(_Keys, frozen=True, kw_only=True):
    name: Annotated[str, Meta(pattern=_NAME, description="what services call it", extra=_A_NAME)] = (
        DEFAULT_POOL
    )
    on_fail: Annotated[
        OnFail,
        Meta(description="what becomes of the flows of a node that went down: left alone, or reset"),
    ] = OnFail.KEEP
    no_node: Annotated[
        NoNode,
        Meta(
            description="what becomes of new connections while no node is up: answered 503, or all nodes are"
            " tried as if they were up"
        ),
    ] = NoNode.REFUSE
    slow_start: Annotated[
        float,
        Meta(
            ge=0.0,
            le=3600.0,
            description="seconds in which a node that came up again grows to its weight; 0: at once",
        ),
    ] = 0.0
    load_factor: Annotated[
        Annotated[float, Meta(gt=1.0, le=MAX_LOAD_FACTOR)] | Literal["off"],
        Meta(
            description="how many times its share of all flows a node may have before its keys pass on to the"
            " next in their sequence; 1.25 to 2 is sensible"
        ),
    ] = "off"
    health: Annotated[
        HealthConfig | Literal["off"],
        Meta(
            description="how nodes are checked; with `off` they count as up",
            extra={"default": "checks with the defaults below"},
        ),
    ] = HealthConfig()
    node: Annotated[tuple[NodeConfig, ...], Meta(min_length=1, description="its nodes")]


class ServiceKeys(_Keys, frozen=True, kw_only=True):
    name: Annotated[
        Annotated[str, Meta(pattern=_NAME, extra=_A_NAME)] | None,
        Meta(description="what people call it", extra={"default": "ADDR:PORT of listen"}),
    ] = None
    listen: Annotated[
        WrittenEndpoint,
        Meta(
            description="the virtual IP and port; it may be an address of this host or one that is only"
            " routed here"
        ),
    ]
    dscp: Annotated[
        Annotated[int, Meta(ge=dscp.MIN_INDEX, le=dscp.MAX_INDEX)] | Literal["map"],
        Meta(
            description="the DSCP that stands for this VIP on the way to the nodes, 1 to 63; `map`: as the"
            " files of vip-map say"
        ),
    ]
    pool: Annotated[
        str | None,
        Meta(description="the pool of its nodes", extra={"allowed": "text", "default": "the only pool"}),
    ] = None
    hash_key: Annotated[
        WrittenKey,
        Meta(
            description="what of the URL chooses the node: `path` (without the query string), `uri` (with"
            " it), or `segments:N` (the first N segments of the path)"
        ),
    ] = WrittenKey(DEFAULT_KEY_SPEC)
    hash_seed: Annotated[
        int,
        Meta(
            ge=0,
            description="seed of the hash; with a secret one nobody can aim all load at one node",
            extra={"allowed": f"a number from 0 to {MAX_SEED}"},
        ),
    ] = 0
    non_http: Annotated[
        NonHttp,
        Meta(
            description="what becomes of a connection that does not begin with HTTP: reset it, or choose its"
            " node by the hash of its addresses and ports"
        ),
    ] = NonHttp.RESET
    window_scale: Annotated[
        int,
        Meta(
            ge=0,
            le=tcp_options.MAX_WINDOW_SCALE,
            description="the TCP window scale promised to clients: the smallest that any node's"
            " kernel offers",
        ),
    ] = DEFAULT_SCALE


class LimitKeys(_Keys, frozen=True, kw_only=True):
    flows: Annotated[_Entries, Meta(description="connections kept at most; more are answered with 503")] = (
        _LIMITS.flows
    )
    half_open: Annotated[
        _Entries, Meta(description="handshakes whose options are remembered beyond what a cookie carries")
    ] = _LIMITS.half_open
    verified: Annotated[_Entries, Meta(description="connections that have said nothing yet")] = (
        _LIMITS.verified
    )
    collecting: Annotated[
        _Entries, Meta(description="connections whose first bytes do not tell the hash key yet")
    ] = _LIMITS.collecting
    collecting_bytes: Annotated[
        int, Meta(ge=65536, le=_MAX_BYTES, description="bytes that are kept of these, all in all")
    ] = _LIMITS.collecting_bytes
    answered: Annotated[_Entries, Meta(description="connections that the balancer answers itself")] = (
        _LIMITS.answered
    )
    resets_per_second: Annotated[
        float, Meta(ge=1.0, le=1e6, description="resets to clients of unknown flows")
    ] = _LIMITS.resets_per_second


class TimeoutKeys(_Keys, frozen=True, kw_only=True):
    idle: Annotated[
        float,
        Meta(ge=1.0, le=MAX_SECONDS, description="seconds for which an established flow may be silent"),
    ] = _TIMEOUTS.idle
    verified: Annotated[
        float,
        Meta(
            ge=1.0, le=MAX_SECONDS, description="seconds for which a client may say nothing after connecting"
        ),
    ] = _TIMEOUTS.verified
    preamble: Annotated[
        float,
        Meta(
            ge=0.001,
            le=10.0,
            description="seconds for which a connection's first bytes are waited for until they tell its"
            " hash key; then its addresses and ports choose the node",
        ),
    ] = _TIMEOUTS.preamble


class BalancerKeys(HostKeys, frozen=True, kw_only=True):
    """The whole file."""

    metrics: MetricsKey = WrittenListener(Endpoint(LOOPBACK, 9713))
    limits: LimitKeys = LimitKeys()
    timeouts: TimeoutKeys = TimeoutKeys()
    vip_map: VipMapKeys = VipMapKeys()
    pool: tuple[PoolKeys, ...]
    service: Annotated[tuple[ServiceKeys, ...], Meta(min_length=1)]
