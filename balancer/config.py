"""What the balancer is configured to do: its file and options, validated as a whole."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from balancer import options as balancer_options
from balancer.core.roster import NoNode
from balancer.core.service import Limits, NonHttp, Timeouts
from balancer.document import (
    MAX_SEED,
    TEXT_TYPES,
    BalancerKeys,
    HealthConfig,
    NodeConfig,
    OnFail,
    PoolKeys,
    ServiceKeys,
)
from common import keyring, vip_map
from common.config import Endpoint, HostConfig
from common.hashing.request_key import KeySpec
from common.options import host_config, parse_command, read_document, restart_only_of_host
from common.toml import Document
from common.vip_map import VipMap

__all__ = [
    "BalancerConfig",
    "HealthConfig",
    "NoNode",
    "NodeConfig",
    "OnFail",
    "PoolConfig",
    "ServiceConfig",
    "load",
    "parse",
    "restart_only",
]


@dataclass(frozen=True, slots=True)
class PoolConfig:
    name: str
    nodes: tuple[NodeConfig, ...]
    health: HealthConfig | None
    on_fail: OnFail
    no_node: NoNode
    slow_start: float
    """Seconds; 0: none."""
    load_factor: float | None


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    name: str
    vip: Endpoint
    index: int
    """The VIP index, 1 to 63, which travels as the DSCP."""
    pool: PoolConfig
    key: KeySpec
    hash_seed: int
    non_http: NonHttp
    promised_scale: int


@dataclass(frozen=True, slots=True)
class BalancerConfig:
    services: tuple[ServiceConfig, ...]
    limits: Limits
    timeouts: Timeouts
    host: HostConfig
    path: Path | None
    """The configuration file, if there is one."""
    is_of_file: bool
    """Whether the file names what is served; else options and their defaults do."""
    warnings: tuple[str, ...] = ()
    """What an operator should know of it, one line each."""
    is_removal: bool = False
    """Nothing is to be served: what an earlier run left at work is to be removed."""

    @property
    def addresses(self) -> dict[str, IPv4Address]:
        """The bridge address of each node of all services, by its name."""
        return {node.name: node.address for service in self.services for node in service.pool.nodes}


def load(arguments: Sequence[str] | None = None) -> BalancerConfig:
    """Of the command's arguments and the file as it is now. `ConfigError` where something is wrong."""
    return _load(balancer_options.make_parser().parse_args(arguments))


def parse(arguments: Sequence[str] | None = None) -> BalancerConfig:
    """`load` for a command that starts: see `parse_command`."""
    return parse_command(balancer_options.make_parser(), arguments, _load, _checked)


def restart_only(old: BalancerConfig, new: BalancerConfig) -> list[str]:
    """The keys that differ and that a running balancer does not change."""
    tables = [name for name in ("limits", "timeouts") if getattr(old, name) != getattr(new, name)]
    return restart_only_of_host(old.host, new.host) + tables


def _load(options: argparse.Namespace) -> BalancerConfig:
    document = read_document("balancer", options)
    is_of_file = bool(document.array("service"))
    balancer_options.put(document, options)
    keys = document.decode(BalancerKeys, TEXT_TYPES)
    pools = _pools(document, keys.pool)
    needs_map = any(service.dscp == "map" for service in keys.service)
    found = vip_map.read(keys.vip_map.files) if needs_map else VipMap({}, ())
    return BalancerConfig(
        services=_services(document, keys.service, pools, found),
        limits=Limits(**msgspec.structs.asdict(keys.limits)),
        timeouts=Timeouts(**msgspec.structs.asdict(keys.timeouts)),
        host=host_config(document, keys, "balancer"),
        path=document.path,
        is_of_file=is_of_file,
        warnings=found.warnings,
        is_removal=hasattr(options, "remove"),
    )


def _checked(config: BalancerConfig) -> str:
    if not config.host.insecure:
        keyring.load(config.host.key_file)
    services, nodes = len(config.services), len(config.addresses)
    return f"ok, {services} service{'s' * (services != 1)}, {nodes} node{'s' * (nodes != 1)}"


def _pools(document: Document, pools: Sequence[PoolKeys]) -> dict[str, PoolConfig]:
    document.require_distinct((), "pools", "the name", [pool.name for pool in pools])
    for at, pool in enumerate(pools):
        document.require_distinct(("pool", at), "nodes", "the name", [node.name for node in pool.node])
        document.require_distinct(("pool", at), "nodes", "the address", [node.address for node in pool.node])
        if isinstance(pool.health, HealthConfig) and pool.health.timeout > pool.health.interval:
            raise document.error(
                ("pool", at, "health"),
                f"timeout {pool.health.timeout:g} is longer than the interval, {pool.health.interval:g}:"
                " a check must end before the next one begins",
            )
    _require_one_address_per_name(document, pools)
    return {pool.name: _pool(pool) for pool in pools}


def _require_one_address_per_name(document: Document, pools: Sequence[PoolKeys]) -> None:
    """A node may be in several pools, but a name means one node everywhere."""
    by_name: dict[str, NodeConfig] = {}
    by_address: dict[IPv4Address, NodeConfig] = {}
    for at, pool in enumerate(pools):
        for number, node in enumerate(pool.node):
            known = by_name.setdefault(node.name, node)
            if known.address != node.address:
                raise document.error(
                    ("pool", at, "node", number),
                    f"address {node.address} is not the one it has in another pool, {known.address}",
                )
            named = by_address.setdefault(node.address, node)
            if named.name != node.name:
                raise document.error(
                    ("pool", at, "node", number),
                    f"address {node.address} is that of node {named.name} in another pool",
                )


def _pool(keys: PoolKeys) -> PoolConfig:
    return PoolConfig(
        name=keys.name,
        nodes=keys.node,
        health=keys.health if isinstance(keys.health, HealthConfig) else None,
        on_fail=keys.on_fail,
        no_node=keys.no_node,
        slow_start=keys.slow_start,
        load_factor=keys.load_factor if isinstance(keys.load_factor, float) else None,
    )


def _services(
    document: Document, services: Sequence[ServiceKeys], pools: dict[str, PoolConfig], found: VipMap
) -> tuple[ServiceConfig, ...]:
    made = [
        _service(document, at, keys, _pool_of(document, at, keys, pools), found)
        for at, keys in enumerate(services)
    ]
    document.require_distinct((), "services", "the name", [service.name for service in made])
    document.require_distinct((), "services", "the VIP and port", [service.vip for service in made])
    document.require_distinct((), "services", "the DSCP", [service.index for service in made])
    vips = {service.vip.address for service in made}
    for pool in pools.values():
        for node in pool.nodes:
            if node.address in vips:
                raise document.error((), f"node {node.name!r} has the address of the VIP, {node.address}")
    return tuple(made)


def _service(
    document: Document, at: int, keys: ServiceKeys, pool: PoolConfig, found: VipMap
) -> ServiceConfig:
    if keys.hash_seed > MAX_SEED:
        raise document.refuse(("service", at, "hash-seed"), f"a number from 0 to {MAX_SEED}")
    index = found.indices.get(keys.listen.value.address) if keys.dscp == "map" else keys.dscp
    if not isinstance(index, int):
        raise document.error(
            ("service", at),
            f"dscp is to come out of vip-map, but none of its files names {keys.listen.value.address}",
        )
    return ServiceConfig(
        name=keys.name or str(keys.listen),
        vip=keys.listen.value,
        index=index,
        pool=pool,
        key=keys.hash_key.value,
        hash_seed=keys.hash_seed,
        non_http=keys.non_http,
        promised_scale=keys.window_scale,
    )


def _pool_of(document: Document, at: int, keys: ServiceKeys, pools: dict[str, PoolConfig]) -> PoolConfig:
    if keys.pool is None and len(pools) == 1:
        return next(iter(pools.values()))
    if keys.pool is None:
        raise document.error(("service", at), f"pool is missing: it is one of {', '.join(pools)}")
    if keys.pool not in pools:
        raise document.refuse(("service", at, "pool"), f"one of {', '.join(pools)}")
    return pools[keys.pool]
