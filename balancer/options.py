"""The balancer's options, and how they override its configuration file."""

import argparse
from collections.abc import Iterable
from typing import Any

import msgspec

from balancer.document import (
    DEFAULT_POOL,
    DEFAULT_WEIGHT,
    BalancerKeys,
    HealthConfig,
    LimitKeys,
    PoolKeys,
    ServiceKeys,
    shown_statuses,
)
from common.config import (
    DEFAULT_INDEX,
    DEFAULT_NODE,
    DEFAULT_PORT,
    DEFAULT_VIP,
    MAX_WEIGHT,
    OFF,
    ConfigError,
)
from common.options import Parser, Setting, add_host_options, put_host_options, put_settings
from common.toml import Document

_DESCRIPTION = (
    "Answer clients on a virtual IP, read what they ask for, and hand each connection to the node that the"
    " hash of the URL chooses. Replies go from the node straight to the client."
)
_DEFAULT_LISTEN = f"{DEFAULT_VIP}:{DEFAULT_PORT}"


def _of(
    schema: type[msgspec.Struct], table: str, name: str, metavar: str | None, default: str | None = None
) -> Setting:
    return Setting(f"--{name}", (table, 0, name), schema, metavar, default)


_LISTEN = _of(ServiceKeys, "service", "listen", "ADDR[:PORT]", _DEFAULT_LISTEN)
_OF_SERVICE = (
    _of(ServiceKeys, "service", "dscp", "N", str(DEFAULT_INDEX)),
    _of(ServiceKeys, "service", "hash-key", "KEY"),
    _of(ServiceKeys, "service", "hash-seed", "N"),
    _of(ServiceKeys, "service", "non-http", None),
    _of(ServiceKeys, "service", "window-scale", "N"),
)
_OF_POOL = (
    _of(PoolKeys, "pool", "on-fail", None),
    _of(PoolKeys, "pool", "no-node", None),
    _of(PoolKeys, "pool", "load-factor", "C|off"),
    _of(PoolKeys, "pool", "slow-start", "SECONDS"),
)
_OF_HEALTH = tuple(
    Setting(f"--health-{name}", ("pool", 0, "health", name), HealthConfig, metavar)
    for name, metavar in (("interval", "SECONDS"), ("timeout", "SECONDS"), ("rise", "N"), ("fall", "N"))
)
_EXPECT = "--health-expect"
_OF_DAEMON = (Setting("--max-flows", ("limits", "flows"), LimitKeys, "N"),)


def make_parser() -> Parser:
    parser = Parser("balancer", _DESCRIPTION)
    parser.add_setting(_LISTEN)
    parser.explain(
        "--node",
        DEFAULT_NODE,
        "a node by its name, its packetbridge's address and its share of the URLs (weight 0 to"
        f" {MAX_WEIGHT}, default {DEFAULT_WEIGHT}; 0: none); repeat it for more nodes",
        metavar="NAME=ADDR[@WEIGHT]",
        action="append",
    )
    for setting in _OF_SERVICE:
        parser.add_setting(setting)
    parser.explain(
        "--health",
        "/",
        "the path that nodes are asked for to see whether they serve, or `off`",
        metavar="PATH|off",
    )
    parser.explain(
        _EXPECT,
        ",".join(map(shown_statuses, HealthConfig().expect)),
        "the statuses of an answer that is healthy",
        metavar="STATUS[-STATUS],...",
    )
    for setting in (*_OF_HEALTH, *_OF_POOL, *_OF_DAEMON):
        parser.add_setting(setting)
    add_host_options(parser, BalancerKeys)
    return parser


def put(document: Document, options: argparse.Namespace) -> None:
    """Write options over what the file says; without a service in it, those or their defaults make one.

    `ConfigError` where it is not clear which service is meant.
    """
    one_service = (_LISTEN, *_OF_SERVICE, *_OF_POOL, *_OF_HEALTH)
    given = [setting.option for setting in one_service if hasattr(options, setting.destination)]
    others = {"node": "--node", "health": "--health", "health_expect": _EXPECT}
    given += [option for name, option in others.items() if hasattr(options, name)]
    services = document.array("service")
    if given and len(services) > 1:
        raise document.error(
            (), f"{given[0]} is for one service, but there are {len(services)} here: change the file instead"
        )
    _complete(document, replaces_nodes=hasattr(options, "node"))
    put_settings(document, options, (_LISTEN, *_OF_SERVICE))
    at = _pool_of_service(document) if given else 0
    put_settings(document, options, _in_pool(at, _OF_POOL))
    if hasattr(options, "node"):
        _put_nodes(document, at, options.node)
    if hasattr(options, "health"):
        _put_health(document, at, options.health)
    _put_checks(document, at, options)
    put_settings(document, options, _OF_DAEMON)
    put_host_options(document, options, BalancerKeys)


def _complete(document: Document, *, replaces_nodes: bool) -> None:
    """Make what the file leaves to options and their defaults: a service, and the pool of its nodes."""
    tables = document.tables
    if not document.array("service"):
        if document.array("pool"):
            raise document.error((), "there is a pool, but no [[service]] that uses it")
        name, _, address = DEFAULT_NODE.partition("=")
        tables["service"] = [{"listen": _DEFAULT_LISTEN, "dscp": DEFAULT_INDEX}]
        tables["pool"] = [{"node": [{"name": name, "address": address}]}]
    elif not document.array("pool"):
        if not replaces_nodes:
            raise document.error((), "there is a service, but no [[pool]] with its nodes")
        tables["pool"] = [{}]


def _pool_of_service(document: Document) -> int:
    """Where the pool of the first service stands, as far as that can be told before all is checked."""
    wanted = document.array("service")[0].get("pool")
    names = [pool.get("name", DEFAULT_POOL) for pool in document.array("pool")]
    return names.index(wanted) if wanted in names else 0


def _put_nodes(document: Document, pool: int, texts: list[str]) -> None:
    nodes: list[dict[str, Any]] = []
    document.put(("pool", pool, "node"), nodes, "--node", "")
    for at, text in enumerate(texts):
        name, equals, rest = text.partition("=")
        if not equals:
            raise ConfigError(f"--node {text!r} is not NAME=ADDR[@WEIGHT], such as {DEFAULT_NODE}")
        address, sign, weight = rest.partition("@")
        nodes.append({})
        place = ("pool", pool, "node", at)
        document.put((*place, "name"), name, "--node: name", name)
        document.put((*place, "address"), address, f"--node {name}", address)
        if sign:
            number = int(weight) if weight.isascii() and weight.isdigit() and len(weight) < 9 else weight
            document.put((*place, "weight"), number, f"weight of node {name!r}", weight)


def _in_pool(at: int, settings: Iterable[Setting]) -> list[Setting]:
    return [Setting(of.option, ("pool", at, *of.place[2:]), of.schema, of.metavar) for of in settings]


def _put_checks(document: Document, pool: int, options: argparse.Namespace) -> None:
    """How checks are made; `ConfigError` where there are none."""
    given = [setting.option for setting in _OF_HEALTH if hasattr(options, setting.destination)]
    if hasattr(options, "health_expect"):
        given.append(_EXPECT)
    if given and document.array("pool")[pool].get("health") == OFF:
        raise ConfigError(f"{given[0]}: health checks are off")
    put_settings(document, options, _in_pool(pool, _OF_HEALTH))
    if hasattr(options, "health_expect"):
        text = options.health_expect
        document.put(("pool", pool, "health", "expect"), text.split(","), _EXPECT, text)


def _put_health(document: Document, pool: int, text: str) -> None:
    if text == OFF:
        document.put(("pool", pool, "health"), OFF, "--health", text)
        return
    if document.array("pool")[pool].get("health") == OFF:
        document.put(("pool", pool, "health"), {}, "--health", text)
    document.put(("pool", pool, "health", "path"), text, "--health", text)
