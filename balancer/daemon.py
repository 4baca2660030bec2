"""The balancer as a process: what it takes from the host, and what it gives back when it stops."""

import logging
import os
import time
from contextlib import ExitStack, closing

from balancer.config import BalancerConfig
from balancer.core.engine import BalancerCore
from balancer.core.service import Limits, Service, make_nodes
from common import keyring
from common.daemon import plane_counters, serve
from common.dataplane import Feed, RawPlane
from common.keyring import KeySource
from common.net import host, intake, interfaces
from common.net.errors import HostError
from common.net.interfaces import Interface
from common.net.ownership import OwnedTable, drop_rules
from common.net.packet_socket import Tap
from common.net.routes import route_mtu
from common.net.tun import Tun
from common.wire import handoff, ipv4

_MIN_PAYLOAD = 536
_COMPLAINTS = {
    "flow_table_full": "clients are answered 503: there are as many connections as --max-flows allows",
}


def run(config: BalancerConfig, logger: logging.Logger) -> None:
    """Serve until SIGTERM or SIGINT. `ConfigError` or `HostError`, the host as it was, if that cannot be."""
    host.require_privileges()
    keys = KeySource(config.key_file, is_insecure=config.insecure)
    host.require_tun_device()
    host.require_no_strict_rp_filter()
    core = BalancerCore(
        make_service(config),
        keyring.make_mac(os.urandom(keyring.KEY_SIZE)),
        keys.sign,
        lambda: int(time.time()),
        Limits(flows=config.max_flows),
    )
    tapped = interfaces.tap_interfaces(interfaces.interfaces())
    wanted = intake.of_balancer(config.vip.address, config.vip.port)
    with ExitStack() as owned:
        tun = owned.enter_context(closing(Tun()))
        owned.enter_context(closing(OwnedTable(wanted.name, drop_rules(wanted, tapped))))
        taps = [owned.enter_context(closing(Tap(interface, wanted))) for interface in tapped]
        # Nothing is routed to this TUN; it is read to notice when somebody deletes it.
        from_tun = Feed(tun, lambda *_: None, lambda *_: [])
        from_taps = [Feed(tap, core.plan, core.receive) for tap in taps]
        plane = RawPlane(tun, [from_tun, *from_taps], core, logger)
        serve(
            plane,
            keys,
            announce=lambda: _log_start(config, tapped, logger),
            counters=lambda: {**core.sizes, **core.counters, **plane_counters(plane, tun, taps)},
            complaints=_COMPLAINTS,
            logger=logger,
        )


def make_service(config: BalancerConfig) -> Service:
    """The core's view of the configuration. `HostError` where a node cannot be reached."""
    vip, port = config.vip.wire
    nodes, table = make_nodes(
        vip, port, config.vip_index, {node.name: (node.address.packed, node.weight) for node in config.nodes}
    )
    mtu = min(route_mtu(node.address) for node in config.nodes)
    payload = min(mtu - ipv4.HEADER_SIZE - handoff.HEADER_SIZE, handoff.MAX_PAYLOAD)
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


def _log_start(config: BalancerConfig, tapped: list[Interface], logger: logging.Logger) -> None:
    if config.insecure:
        logger.warning("insecure: whoever can send to a node can forge requests from any address")
    logger.info(
        "ready: VIP %s as DSCP %d on %s, nodes %s, engine raw",
        config.vip,
        config.vip_index,
        ", ".join(interface.name for interface in tapped),
        ", ".join(f"{node.name}={node.address}@{node.weight}" for node in config.nodes),
    )
