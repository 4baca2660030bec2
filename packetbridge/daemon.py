"""The packetbridge as a process: what it takes from the host, and what it gives back when it stops."""

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing

from common import engine
from common.config import EBPF, ConfigError
from common.console import Desk, indexes_of
from common.counters import Counters
from common.daemon import Running, serve
from common.engine import Site
from common.keyring import KeySource
from common.net import host, privileges
from common.net.privileges import Capability
from common.net.routes import remove_leftovers
from common.net.watch import NetworkWatch
from common.options import refuse_loss
from common.outlets import Outlets
from packetbridge import raw
from packetbridge.channel import Server
from packetbridge.commands import packetbridge_commands
from packetbridge.config import PacketbridgeConfig, restart_only
from packetbridge.core.service import Service
from packetbridge.ebpf import plane
from packetbridge.engine import PacketbridgeEngine
from packetbridge.journal import Journal, path_of
from packetbridge.report import Reporter

_COMPLAINTS = {
    "handoff_bad_tag": "handoffs with a wrong tag are dropped: has the balancer the same key file?",
    "handoff_too_old": "handoffs over a minute off are dropped: are the clocks of balancer and node right?",
    "unknown_dscp": "packets are dropped whose DSCP no --vip names: has the balancer the same --dscp?",
    "adoption_in_vain": "the server gets first payloads late: is its accept queue full, or does a firewall on"
    " this host drop connections whose SYN it has not seen (then: --adopt=off)?",
    "flows_full": "handoffs are dropped: there are as many connections as --max-flows allows",
}


def run(config: PacketbridgeConfig, again: Callable[[], PacketbridgeConfig], logger: logging.Logger) -> None:
    """Serve until SIGTERM or SIGINT; ``again`` reads the configuration for a reload.

    `ConfigError` or `HostError`, the host being as it was, if it cannot.
    """
    host.require_privileges()
    keys = KeySource(config.host.key_file, is_insecure=config.host.insecure)
    host.require_tun_device()
    host.require_no_strict_rp_filter()
    services = _services(config)
    site = Site(keys, config.host.state_dir, config.host.keep_flows, logger)
    with ExitStack() as owned:
        watch = owned.enter_context(closing(NetworkWatch()))
        outlets = Outlets(config.host, owned)
        started = engine.start(
            config.host.engine,
            ebpf=lambda attempt: plane.start(
                services, config.limits, config.timeouts, site, attempt, adopt=config.adopt
            ),
            raw=lambda attempt: raw.start(services, config.limits, config.timeouts, site, attempt),
            owned=owned,
            logger=logger,
        )
        _Daemon(config, again, started, keys, outlets, logger).serve(owned, watch)


def remove(config: PacketbridgeConfig, logger: logging.Logger) -> None:
    """Take away what a run that kept its flows, or was killed, has left: all but the journal, for the next.

    `HostError` while one goes on.
    """
    host.require_privileges()
    keys = KeySource(config.host.key_file, is_insecure=True)
    site = Site(keys, config.host.state_dir, False, logger)
    with closing(Journal(path_of(site.state_dir, config.bridge), logger)) as journal:
        plane.remove_left(site, config.bridge, journal)
    remove_leftovers()


class _Daemon:
    """What moves packets, with all that is around it."""

    def __init__(
        self,
        config: PacketbridgeConfig,
        again: Callable[[], PacketbridgeConfig],
        started: PacketbridgeEngine,
        keys: KeySource,
        outlets: Outlets,
        logger: logging.Logger,
    ) -> None:
        self._config = config
        self._again = again
        self._engine = started.engine
        self._keys = keys
        self._outlets = outlets
        self._logger = logger
        self._counters: Counters[str] = Counters()
        self._reporter = Reporter(started, config, lambda: self._counters)

    def serve(self, owned: ExitStack, watch: NetworkWatch) -> None:
        config = self._config
        channel = Server(
            config.bridge,
            self._keys,
            self._reporter.facts,
            self._engine.find,
            self._counters,
            self._logger,
            port=config.host.channel_port,
        )
        owned.enter_context(closing(channel))
        desk = Desk(
            engine=self._engine,
            report=self._reporter.report,
            reload=self._reload,
            nodes_called=self._nodes_called,
            indexes_of=self._indexes_of,
        )
        outlets = self._outlets.tasks(packetbridge_commands(desk), self._reporter.report, self._logger)
        running = Running(
            reload=self._reload,
            announce=self._announce,
            complaints=_COMPLAINTS,
            tasks=[channel.run, *outlets],
        )
        privileges.drop(in_reserve=[Capability.SYS_ADMIN] if self._engine.name == EBPF else [])
        serve(self._engine, running, watch, self._logger)

    def _reload(self) -> list[str]:
        """All of it, or nothing."""
        wanted = self._again()
        refuse_loss(self._config, wanted, "vip")
        if fixed := restart_only(self._config, wanted):
            raise ConfigError(f"{', '.join(fixed)} cannot change while the packetbridge runs: restart it")
        keyring = self._keys.read()
        self._engine.apply(_services(wanted))
        self._keys.take(keyring)
        self._engine.take_keys()
        self._logger.setLevel(wanted.host.log_level.upper())
        self._config = self._reporter.config = wanted
        self._reporter.generation += 1
        said = [
            f"{len(wanted.vips)} VIP{'s' * (len(wanted.vips) != 1)}, generation {self._reporter.generation}",
            *wanted.warnings,
        ]
        self._logger.info("reloaded: %s", "; ".join(said))
        return said

    def _nodes_called(self, name: str) -> set[str]:
        raise ConfigError(f"no node is known by the name {name} here: {self._config.bridge} is this one")

    def _indexes_of(self, vip: str | None) -> list[int]:
        return indexes_of(vip, {each.vip: each.index for each in self._config.vips})

    def _announce(self) -> None:
        config = self._config
        if config.host.insecure:
            self._logger.warning(
                "insecure: whoever can send to %s can forge requests from any address", config.bridge
            )
        for warning in config.warnings:
            self._logger.warning("%s", warning)
        self._logger.info(
            "ready: bridge address %s, %s, engine %s",
            config.bridge,
            ", ".join(f"DSCP {vip.index} = VIP {vip.vip} to {vip.backend}" for vip in config.vips),
            self._engine.name,
        )


def _services(config: PacketbridgeConfig) -> list[Service]:
    bridge = config.bridge.packed
    return [Service(vip.index, *vip.vip.wire, bridge, *vip.backend.wire) for vip in config.vips]
