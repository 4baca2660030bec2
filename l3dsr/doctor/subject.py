"""Which daemon's host is checked, and what it serves: by its configuration and, if it runs, its own word."""

from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import balancer.config
import packetbridge.config
from common.config import ConfigError, Endpoint, parse_endpoint
from common.reports import BalancerReport, PacketbridgeReport, Report
from l3dsr.sockets import BALANCER, PACKETBRIDGE


class Vip(NamedTuple):
    endpoint: Endpoint
    vip_index: int
    backend: Endpoint | None
    """Of a packetbridge."""


class Subject(NamedTuple):
    daemon: str
    """balancer or packetbridge."""
    vips: tuple[Vip, ...]
    bridge: IPv4Address | None
    """Of a packetbridge."""
    nodes: dict[str, IPv4Address]
    """Of a balancer: bridge addresses by name."""
    key_file: Path | None
    """None where it is said to do without."""
    adopt: bool
    """Of a packetbridge: whether listeners adopt connections, where engine and kernel can do that."""
    file: Path | None = None
    """The configuration file that this comes from."""
    engine: str = ""
    """raw or ebpf; empty as long as the daemon does not run."""

    @property
    def is_balancer(self) -> bool:
        return self.daemon == BALANCER


def configured(daemon: str, file: Path | None) -> Subject:
    """By ``file``, or by what the daemon would take without options. `ConfigError` where that is wrong."""
    arguments = ["--config", str(file)] if file else []
    if daemon == BALANCER:
        return _of_balancer(balancer.config.load(arguments))
    if daemon == PACKETBRIDGE:
        return _of_packetbridge(packetbridge.config.load(arguments))
    raise ConfigError(f"{daemon!r} is neither {BALANCER} nor {PACKETBRIDGE}")


def unconfigured(daemon: str) -> Subject:
    """What is known without a file."""
    return Subject(daemon, vips=(), bridge=None, nodes={}, key_file=None, adopt=False)


def as_running(subject: Subject, report: Report) -> Subject:
    """What the running daemon says counts more than a file, which it may not have been started with."""
    if isinstance(report, BalancerReport):
        return subject._replace(
            engine=report.engine,
            vips=tuple(Vip(parse_endpoint(each.vip), each.vip_index, None) for each in report.services),
            nodes={node.name: IPv4Address(node.address) for each in report.services for node in each.nodes},
        )
    return subject._replace(
        engine=report.engine,
        bridge=IPv4Address(report.bridge),
        vips=tuple(
            Vip(parse_endpoint(each.vip), each.vip_index, parse_endpoint(each.backend))
            for each in report.vips
        ),
    )


def is_of(report: Report, daemon: str) -> bool:
    return isinstance(report, BalancerReport if daemon == BALANCER else PacketbridgeReport)


def _of_balancer(config: balancer.config.BalancerConfig) -> Subject:
    return Subject(
        BALANCER,
        vips=tuple(Vip(service.vip, service.index, None) for service in config.services),
        bridge=None,
        nodes={node.name: node.address for service in config.services for node in service.pool.nodes},
        key_file=None if config.host.insecure else config.host.key_file,
        adopt=False,
        file=config.path,
    )


def _of_packetbridge(config: packetbridge.config.PacketbridgeConfig) -> Subject:
    return Subject(
        PACKETBRIDGE,
        vips=tuple(Vip(each.vip, each.index, each.backend) for each in config.vips),
        bridge=config.bridge,
        nodes={},
        key_file=None if config.host.insecure else config.host.key_file,
        adopt=config.adopt,
        file=config.path,
    )
