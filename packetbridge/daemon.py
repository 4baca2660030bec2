"""The packetbridge as a process: what it takes from the host, and what it gives back when it stops."""

import logging
import time
from contextlib import ExitStack, closing

from common.daemon import plane_counters, serve
from common.dataplane import Feed, RawPlane
from common.keyring import KeySource
from common.net import host, intake, interfaces
from common.net.errors import HostError
from common.net.interfaces import Interface
from common.net.ownership import OwnedTable, drop_rules
from common.net.packet_socket import Tap
from common.net.routes import ReplyRoutes
from common.net.sock_diag import SocketQuery
from common.net.tun import Tun
from common.wire.offload import Packet
from common.wire.segment import FlowKey
from packetbridge.config import PacketbridgeConfig
from packetbridge.core.engine import PacketbridgeCore
from packetbridge.core.service import Limits, Service
from packetbridge.journal import Journal, path_of

_COMPLAINTS = {
    "handoff_bad_tag": "handoffs with a wrong tag are dropped: has the balancer the same key file?",
    "handoff_too_old": "handoffs over a minute off are dropped: are the clocks of balancer and node right?",
    "unknown_dscp": "packets are dropped whose DSCP no --vip names: has the balancer the same --dscp?",
    "flows_full": "handoffs are dropped: there are as many connections as --max-flows allows",
}


def run(config: PacketbridgeConfig, logger: logging.Logger) -> None:
    """Serve until SIGTERM or SIGINT. `ConfigError` or `HostError`, the host being as it was, if it cannot."""
    host.require_privileges()
    keys = KeySource(config.key_file, is_insecure=config.insecure)
    host.require_tun_device()
    host.require_no_strict_rp_filter()
    found = interfaces.interfaces()
    for address in (config.bridge, *(vip.backend.address for vip in config.vips)):
        interfaces.interface_of(address, found)
    core = PacketbridgeCore(
        _services(config), keys.verify, lambda: int(time.time()), Limits(flows=config.max_flows)
    )
    tapped = interfaces.tap_interfaces(found)
    wanted = intake.of_packetbridge(config.bridge, [vip.vip.port for vip in config.vips])
    backends = [(vip.backend.address, vip.backend.port) for vip in config.vips]
    with ExitStack() as owned:
        tun = owned.enter_context(closing(Tun()))
        owned.enter_context(closing(OwnedTable(wanted.name, drop_rules(wanted, tapped))))
        taps = [owned.enter_context(closing(Tap(interface, wanted))) for interface in tapped]
        owned.enter_context(closing(ReplyRoutes(backends, tun.index)))
        journal = owned.enter_context(closing(Journal(path_of(config.state_dir, config.bridge), logger)))
        query = owned.enter_context(closing(SocketQuery()))

        kept = KeptCore(core, journal, query)
        from_tun = Feed(tun, core.plan_from_backend, kept.from_backend)
        from_taps = [Feed(tap, core.plan_from_balancer, kept.from_balancer) for tap in taps]
        plane = RawPlane(tun, [from_tun, *from_taps], kept, logger)
        plane.send(kept.restore(time.monotonic(), logger))
        serve(
            plane,
            keys,
            announce=lambda: _log_start(config, tapped, logger),
            counters=lambda: {
                **core.sizes,
                **core.counters,
                **plane_counters(plane, tun, taps),
                "journal_failures": journal.failures,
            },
            complaints=_COMPLAINTS,
            logger=logger,
        )


class KeptCore:
    """The core with what it asks of the host: a journal of its flows, and the kernel's word on sockets."""

    def __init__(self, core: PacketbridgeCore, journal: Journal, query: SocketQuery) -> None:
        self._core = core
        self._journal = journal
        self._query = query
        self.next_deadline = core.next_deadline

    def from_balancer(self, packet: Packet, now: float) -> list[Packet]:
        packets = self._core.from_balancer(packet, now)
        self._write_down()
        return packets

    def from_backend(self, packet: Packet, now: float) -> list[Packet]:
        packets = self._core.from_backend(packet, now)
        self._write_down()
        return packets

    def on_timeout(self, now: float) -> list[Packet]:
        packets, questions = self._core.on_timeout(now)
        for key in questions:
            packets += self._core.socket_exists(key, self._exists(key), now)
        self._write_down()
        return packets

    def restore(self, now: float, logger: logging.Logger) -> list[Packet]:
        """Splice what flows the last packetbridge left, as far as their sockets live; probe the others."""
        packets: list[Packet] = []
        left = self._journal.read()
        live = 0
        for record in left:
            exists = self._query.exists(record.key)
            packets += self._core.restore(record, now, exists)
            if exists:
                live += 1
            else:
                self._journal.erase(record.key)
        self._write_down()
        if left:
            logger.info("of %d flows left by the last run, %d are carried on", len(left), live)
        return packets

    def _exists(self, key: FlowKey) -> bool:
        """An idle flow of which the kernel says nothing is kept: it is asked again later."""
        try:
            return self._query.exists(key)
        except HostError:
            self._core.counters["socket_query_failed"] += 1
            return True

    def _write_down(self) -> None:
        if self._core.journal:
            self._journal.note(self._core.journal)
            self._core.journal.clear()


def _services(config: PacketbridgeConfig) -> list[Service]:
    bridge = config.bridge.packed
    return [Service(vip.index, *vip.vip.wire, bridge, *vip.backend.wire) for vip in config.vips]


def _log_start(config: PacketbridgeConfig, tapped: list[Interface], logger: logging.Logger) -> None:
    if config.insecure:
        logger.warning("insecure: whoever can send to %s can forge requests from any address", config.bridge)
    logger.info(
        "ready: bridge address %s on %s, %s, engine raw",
        config.bridge,
        ", ".join(interface.name for interface in tapped),
        ", ".join(f"DSCP {vip.index} = VIP {vip.vip} to {vip.backend}" for vip in config.vips),
    )
