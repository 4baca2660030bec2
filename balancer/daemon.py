"""The balancer as a process: what it takes from the host, and what it gives back when it stops."""

import logging
from contextlib import ExitStack

from balancer import raw
from balancer.config import BalancerConfig
from balancer.core.service import Limits, Service, make_nodes
from balancer.ebpf import plane
from common import engine
from common.daemon import serve
from common.engine import Engine, Site
from common.keyring import KeySource
from common.net import host, intake, interfaces
from common.net.errors import HostError
from common.net.routes import route_mtu
from common.wire import handoff, ipv4

_MIN_PAYLOAD = 536
_COMPLAINTS = {
    "flow_table_full": "clients are answered 503: there are as many connections as --max-flows allows",
}


def run(config: BalancerConfig, logger: logging.Logger) -> None:
    """Serve until SIGTERM or SIGINT. `ConfigError` or `HostError`, the host as it was, if that cannot be."""
    host.require_privileges()
    keys = KeySource(config.host.key_file, is_insecure=config.host.insecure)
    host.require_tun_device()
    host.require_no_strict_rp_filter()
    mtu = min(route_mtu(node.address) for node in config.nodes)
    service = make_service(config, mtu)
    limits = Limits(flows=config.max_flows)
    site = Site(
        keys=keys,
        intake=intake.of_balancer(config.vip.address, config.vip.port),
        tapped=interfaces.tap_interfaces(interfaces.interfaces()),
        state_dir=config.host.state_dir,
        keep_flows=config.host.keep_flows,
        logger=logger,
    )
    with ExitStack() as owned:
        chosen = engine.start(
            config.host.engine,
            ebpf=lambda attempt: plane.start(service, mtu, limits, site, attempt),
            raw=lambda attempt: raw.start(service, limits, site, attempt),
            owned=owned,
            logger=logger,
        )
        serve(
            chosen,
            keys,
            announce=lambda: _log_start(config, site, chosen),
            complaints=_COMPLAINTS,
            logger=logger,
        )


def make_service(config: BalancerConfig, mtu: int) -> Service:
    """The core's view of the configuration; ``mtu`` is the smallest path MTU to any node, in bytes.

    `HostError` where no handoff fits into it.
    """
    vip, port = config.vip.wire
    nodes, table = make_nodes(
        vip, port, config.vip_index, {node.name: (node.address.packed, node.weight) for node in config.nodes}
    )
    payload = min(mtu - ipv4.HEADER_SIZE - handoff.HEADER_SIZE, handoff.MAX_PAYLOAD) & ~3
    if payload < _MIN_PAYLOAD:
        needed = ipv4.HEADER_SIZE + handoff.HEADER_SIZE + _MIN_PAYLOAD
        raise HostError(f"the path MTU to the nodes is {mtu}, too small for a handoff: raise it to {needed}")
    return Service(
        vip=vip,
        port=port,
        vip_index=config.vip_index,
        nodes=nodes,
        table=table,
        key=config.key,
        hash_seed=config.hash_seed,
        non_http=config.non_http,
        promised_scale=config.promised_scale,
        max_payload=payload,
    )


def _log_start(config: BalancerConfig, site: Site, chosen: Engine) -> None:
    if config.host.insecure:
        site.logger.warning("insecure: whoever can send to a node can forge requests from any address")
    site.logger.info(
        "ready: VIP %s as DSCP %d on %s, nodes %s, engine %s",
        config.vip,
        config.vip_index,
        ", ".join(interface.name for interface in site.tapped),
        ", ".join(f"{node.name}={node.address}@{node.weight}" for node in config.nodes),
        chosen.name,
    )
