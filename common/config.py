"""What both daemons' configurations have in common: their values, types, defaults and errors.

The defaults fit the lab and the Vagrant boxes (lab/topology.json).
"""

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from msgspec import Meta, Struct

DEFAULT_VIP = IPv4Address("192.168.33.10")
DEFAULT_PORT = 80
DEFAULT_INDEX = 1
DEFAULT_NODE = "node1=192.168.33.20"
DEFAULT_BRIDGE = IPv4Address("192.168.33.20")
DEFAULT_BACKEND = "192.168.33.30:80"
DEFAULT_STATE_DIR = Path("/run/l3dsr")
DEFAULT_KEY_FILE = Path("/etc/l3dsr/handoff.key")
DEFAULT_CONFIG_DIR = Path("/etc/l3dsr")
DEFAULT_CONTROL_GROUP = "l3dsr"
DEFAULT_CHANNEL_PORT = 19507
LOOPBACK = IPv4Address("127.0.0.1")
AUTO, EBPF, RAW = ENGINES = ("auto", "ebpf", "raw")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "human", "json")
MAX_SECONDS = 604_800.0
MAX_ENTRIES = 10_000_000
MAX_SOCKET_PATH = 107
"""Bytes that a Unix socket's address has room for (unix(7))."""
MAX_WEIGHT = 1000
"""Of a node. What is reckoned with weights and flows has room for it."""
OFF = "off"

Value = TypeVar("Value")


class ConfigError(Exception):
    """A configuration that cannot be used: one line that says what is wrong, where, and what is allowed."""


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    address: IPv4Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def wire(self) -> tuple[bytes, int]:
        """Address in network order, and port."""
        return self.address.packed, self.port


class Written(Generic[Value]):
    """A value that a configuration file writes as text, of a type that msgspec would read from a table."""

    def __init__(self, value: Value) -> None:
        self.value = value

    def __str__(self) -> str:
        return str(self.value)


class WrittenEndpoint(Written[Endpoint]):
    """See `parse_endpoint`."""


class WrittenListener(Written[Endpoint | None]):
    """Where a daemon's own server listens, if it does: see `parse_listener`."""

    def __str__(self) -> str:
        return str(self.value or OFF)


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What both daemons need to be told of the process, whatever they serve."""

    engine: str
    """One of `ENGINES`."""
    keep_flows: bool
    state_dir: Path
    key_file: Path
    insecure: bool
    log_level: str
    """One of `LOG_LEVELS`."""
    log_format: str
    """One of `LOG_FORMATS`."""
    control: Path
    """The control socket."""
    control_group: str
    """Who may use it beside root. The default group need not exist; any other does."""
    metrics: Endpoint | None
    channel_port: int
    """UDP."""


MetricsKey = Annotated[
    WrittenListener,
    Meta(
        description="where HTTP serves Prometheus metrics at `/metrics`, and a live page at `/`; `off`:"
        " nowhere"
    ),
]


class HostKeys(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """The keys of a configuration file that stand for `HostConfig`."""

    engine: Annotated[
        Literal["auto", "ebpf", "raw"],
        Meta(
            description="the data plane: eBPF programs in the kernel, or Python and raw sockets; `auto` takes"
            " the programs where they load"
        ),
    ] = "auto"
    keep_flows: Annotated[
        bool,
        Meta(
            description="with the eBPF engine: when stopped, leave the programs at work, so that established"
            " flows go on and the next start takes them over"
        ),
    ] = False
    state_dir: Annotated[
        Path,
        Meta(
            description="where what outlives the process is kept: flows that a restart carries on, pins of"
            " eBPF maps"
        ),
    ] = DEFAULT_STATE_DIR
    key_file: Annotated[
        Path,
        Meta(
            description="the handoff key, the same on the balancer and its nodes: one or two lines of 32 hex"
            " digits, current and previous; read again at SIGHUP"
        ),
    ] = DEFAULT_KEY_FILE
    insecure: Annotated[
        bool,
        Meta(
            description="no secret key: whoever can send to a node can then forge requests from any address"
        ),
    ] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="what to log to standard error")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "human", "json"],
        Meta(
            description="the form of the log: lines for people, or a JSON object per line; `auto` writes for"
            " people on a terminal and JSON elsewhere"
        ),
    ] = "auto"
    control: Annotated[
        Path | None,
        Meta(
            description="the control socket, through which `l3dsr` talks to the daemon",
            extra={"default": "DAEMON.sock in the state directory"},
        ),
    ] = None
    control_group: Annotated[
        str,
        Meta(
            min_length=1,
            extra={"allowed": "the name of a group"},
            description="the group that may use the control socket beside root; the default one need not"
            " exist",
        ),
    ] = DEFAULT_CONTROL_GROUP
    metrics: MetricsKey
    channel_port: Annotated[
        int,
        Meta(
            ge=1,
            le=65535,
            description="the UDP port of the channel between balancer and nodes, the same on all of them",
        ),
    ] = DEFAULT_CHANNEL_PORT


def parse_address(text: str) -> IPv4Address:
    address = _parse_ipv4(text)
    if address.is_multicast or address.is_unspecified or address.is_loopback or address.is_reserved:
        raise ConfigError(f"{address} is not the address of one host")
    return address


def parse_endpoint(text: str) -> Endpoint:
    """ADDR[:PORT]."""
    address, colon, port = text.partition(":")
    if ":" in port:
        raise ConfigError(f"{text!r} is not ADDR[:PORT] with an IPv4 address, such as 192.168.33.10:80")
    return Endpoint(parse_address(address), parse_number(port, 1, 65535, "port") if colon else DEFAULT_PORT)


def parse_listener(text: str) -> Endpoint | None:
    """ADDR:PORT, where ADDR may be a loopback address or 0.0.0.0, or `OFF`."""
    if text == OFF:
        return None
    address, colon, port = text.partition(":")
    if not colon or ":" in port:
        raise ConfigError(f"{text!r} is not ADDR:PORT, such as {LOOPBACK}:9713, or {OFF}")
    return Endpoint(_parse_ipv4(address), parse_number(port, 1, 65535, "port"))


def _parse_ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise ConfigError(f"{text!r} is not an IPv4 address such as 192.168.33.10") from None


def parse_number(text: str, low: int, high: int, what: str) -> int:
    # The length is looked at first: int() refuses thousands of digits with an error of its own.
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and low <= int(text) <= high):
        raise ConfigError(f"{what} {text!r} is not a number from {low} to {high}")
    return int(text)
