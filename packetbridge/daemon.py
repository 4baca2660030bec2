"""The packetbridge as a process: what it takes from the host, and what it gives back when it stops."""

import logging
from contextlib import ExitStack

from common import engine
from common.daemon import serve
from common.engine import Engine, Site
from common.keyring import KeySource
from common.net import host, intake, interfaces
from packetbridge import raw
from packetbridge.config import PacketbridgeConfig
from packetbridge.core.service import Limits, Service
from packetbridge.ebpf import plane

_COMPLAINTS = {
    "handoff_bad_tag": "handoffs with a wrong tag are dropped: has the balancer the same key file?",
    "handoff_too_old": "handoffs over a minute off are dropped: are the clocks of balancer and node right?",
    "unknown_dscp": "packets are dropped whose DSCP no --vip names: has the balancer the same --dscp?",
    "adoption_in_vain": "the server gets first payloads late: is its accept queue full, or does a firewall on"
    " this host drop connections whose SYN it has not seen (then: --adopt=off)?",
    "flows_full": "handoffs are dropped: there are as many connections as --max-flows allows",
}


def run(config: PacketbridgeConfig, logger: logging.Logger) -> None:
    """Serve until SIGTERM or SIGINT. `ConfigError` or `HostError`, the host being as it was, if it cannot."""
    host.require_privileges()
    keys = KeySource(config.host.key_file, is_insecure=config.host.insecure)
    host.require_tun_device()
    host.require_no_strict_rp_filter()
    found = interfaces.interfaces()
    for address in (config.bridge, *(vip.backend.address for vip in config.vips)):
        interfaces.interface_of(address, found)
    services = _services(config)
    backends = [(vip.backend.address, vip.backend.port) for vip in config.vips]
    limits = Limits(flows=config.max_flows)
    site = Site(
        keys=keys,
        intake=intake.of_packetbridge(config.bridge, [vip.vip.port for vip in config.vips]),
        tapped=interfaces.tap_interfaces(found),
        state_dir=config.host.state_dir,
        keep_flows=config.host.keep_flows,
        logger=logger,
    )
    with ExitStack() as owned:
        chosen = engine.start(
            config.host.engine,
            ebpf=lambda attempt: plane.start(services, backends, limits, site, attempt, adopt=config.adopt),
            raw=lambda attempt: raw.start(services, backends, limits, site, attempt),
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


def _services(config: PacketbridgeConfig) -> list[Service]:
    bridge = config.bridge.packed
    return [Service(vip.index, *vip.vip.wire, bridge, *vip.backend.wire) for vip in config.vips]


def _log_start(config: PacketbridgeConfig, site: Site, chosen: Engine) -> None:
    if config.host.insecure:
        site.logger.warning(
            "insecure: whoever can send to %s can forge requests from any address", config.bridge
        )
    site.logger.info(
        "ready: bridge address %s on %s, %s, engine %s",
        config.bridge,
        ", ".join(interface.name for interface in site.tapped),
        ", ".join(f"DSCP {vip.index} = VIP {vip.vip} to {vip.backend}" for vip in config.vips),
        chosen.name,
    )
