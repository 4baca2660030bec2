"""What both commands' options have in common: their types, defaults and errors.

The defaults fit the lab and the Vagrant boxes (lab/topology.json).
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import NoReturn, TypeVar

DEFAULT_VIP = IPv4Address("192.168.33.10")
DEFAULT_PORT = 80
DEFAULT_INDEX = 1
DEFAULT_NODE = "node1=192.168.33.20"
DEFAULT_BRIDGE = IPv4Address("192.168.33.20")
DEFAULT_BACKEND = "192.168.33.30:80"
DEFAULT_STATE_DIR = Path("/run/l3dsr")
AUTO, EBPF, RAW = ENGINES = ("auto", "ebpf", "raw")
LOG_LEVELS = ("debug", "info", "warning", "error")


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


def parse_address(text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise ConfigError(f"{text!r} is not an IPv4 address such as 192.168.33.10") from None
    if address.is_multicast or address.is_unspecified or address.is_loopback or address.is_reserved:
        raise ConfigError(f"{address} is not the address of one host")
    return address


def parse_endpoint(text: str) -> Endpoint:
    """ADDR[:PORT]."""
    address, colon, port = text.partition(":")
    return Endpoint(parse_address(address), parse_number(port, 1, 65535, "port") if colon else DEFAULT_PORT)


def parse_number(text: str, low: int, high: int, what: str) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise ConfigError(f"{what} {text!r} is not a number from {low} to {high}")
    return int(text)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """The same text on every terminal, so that documents can quote it."""
    return argparse.ArgumentDefaultsHelpFormatter(prog, max_help_position=30, width=100)


class Parser(argparse.ArgumentParser):
    """Explains every option with its default; an error is one line and exit code 2."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(
            prog=name,
            description=description,
            formatter_class=_formatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


Settings = TypeVar("Settings")


def parse_command(
    parser: Parser, arguments: Sequence[str] | None, validate: Callable[[argparse.Namespace], Settings]
) -> Settings:
    """A command's options, validated as a whole.

    Exits with 0 after --help, and with 2 and one line on standard error if something is wrong.
    """
    options = parser.parse_args(arguments)
    try:
        return validate(options)
    except ConfigError as error:
        parser.error(str(error))


def require_distinct(whose: str, what: str, values: Sequence[object]) -> None:
    """`ConfigError` "two ``whose`` have ``what`` ..." where a value stands twice."""
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"two {whose} have {what} {value}: each needs its own")


def add_common_options(parser: Parser, default_key_file: Path) -> None:
    secrecy = parser.add_mutually_exclusive_group()
    secrecy.add_argument(
        "--key-file",
        metavar="FILE",
        type=Path,
        default=default_key_file,
        help="the handoff key, the same on the balancer and its nodes: one or two lines of 32 hex digits,"
        " current and previous; read again at SIGHUP",
    )
    secrecy.add_argument(
        "--insecure",
        action="store_true",
        help="no secret key: whoever can send to a node can then forge requests from any address",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=AUTO,
        help="the data plane: eBPF programs in the kernel, or Python and raw sockets; `auto` takes the"
        " programs where they load",
    )
    parser.add_argument(
        "--keep-flows",
        action="store_true",
        help="with the eBPF engine: when stopped, leave the programs at work, so that established flows go on"
        " and the next start takes them over",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=Path,
        default=DEFAULT_STATE_DIR,
        help="where what outlives the process is kept: flows that a restart carries on, pins of eBPF maps",
    )
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="what to log to standard error"
    )


def host_config(options: argparse.Namespace) -> HostConfig:
    """Of the options of `add_common_options`."""
    return HostConfig(
        engine=options.engine,
        keep_flows=options.keep_flows,
        state_dir=options.state_dir,
        key_file=options.key_file,
        insecure=options.insecure,
        log_level=options.log_level,
    )


def configure_logging(name: str, level: str) -> logging.Logger:
    """The daemon's logger: one line per event, on standard error. Libraries speak up from warnings on."""
    logging.basicConfig(level="WARNING", format="%(asctime)s %(name)s %(levelname)s: %(message)s", force=True)
    logger = logging.getLogger(name)
    logger.setLevel(level.upper())
    return logger
