"""The balancer as a process: what it takes from the host, and what it gives back when it stops."""

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing

from balancer import raw
from balancer.channel import Channels, Peer
from balancer.checking import Verdicts, targets
from balancer.commands import BalancerCommands
from balancer.config import BalancerConfig, restart_only
from balancer.core.channel import State
from balancer.director import Director
from balancer.ebpf import plane
from balancer.engine import BalancerEngine
from balancer.inquiry import inquiry
from balancer.prober import Prober
from balancer.report import Reporter
from balancer.saved import SavedWords
from common import engine
from common.config import EBPF, ConfigError
from common.console import Desk, indexes_of
from common.counters import Counters
from common.daemon import Running, serve
from common.engine import Site
from common.keyring import KeySource
from common.net import host, privileges
from common.net.privileges import Capability
from common.net.routes import route_mtu
from common.net.watch import NetworkWatch
from common.options import refuse_loss
from common.outlets import Outlets
from common.problems import Problems

_COMPLAINTS = {
    "flow_table_full": "clients are answered 503: there are as many connections as --max-flows allows",
}


def run(config: BalancerConfig, again: Callable[[], BalancerConfig], logger: logging.Logger) -> None:
    """Serve until SIGTERM or SIGINT; ``again`` reads the configuration for a reload.

    `ConfigError` or `HostError`, the host being as it was, if it cannot.
    """
    host.require_privileges()
    keys = KeySource(config.host.key_file, is_insecure=config.host.insecure)
    host.require_tun_device()
    host.require_no_strict_rp_filter()
    director = Director(config, route_mtu, SavedWords(config.host.state_dir, logger), logger)
    services = director.services
    site = Site(keys, config.host.state_dir, config.host.keep_flows, logger)
    with ExitStack() as owned:
        watch = owned.enter_context(closing(NetworkWatch()))
        outlets = Outlets(config.host, owned)
        started = engine.start(
            config.host.engine,
            ebpf=lambda attempt: plane.start(services, config.limits, config.timeouts, site, attempt),
            raw=lambda attempt: raw.start(services, config.limits, config.timeouts, site, attempt),
            owned=owned,
            logger=logger,
        )
        director.direct(started)
        _Daemon(config, again, started, director, keys, outlets, logger).serve(watch)


def remove(config: BalancerConfig, logger: logging.Logger) -> None:
    """Take away what a run that kept its flows, or was killed, has left. `HostError` while one goes on."""
    host.require_privileges()
    keys = KeySource(config.host.key_file, is_insecure=True)
    plane.remove_left(Site(keys, config.host.state_dir, False, logger))


class _Daemon:
    """What moves packets, with all that is around it."""

    def __init__(
        self,
        config: BalancerConfig,
        again: Callable[[], BalancerConfig],
        started: BalancerEngine,
        director: Director,
        keys: KeySource,
        outlets: Outlets,
        logger: logging.Logger,
    ) -> None:
        self._config = config
        self._again = again
        self._engine = started.engine
        self._director = director
        self._keys = keys
        self._outlets = outlets
        self._logger = logger
        counters: Counters[str] = Counters()
        port = config.host.channel_port
        self._channels = Channels(keys, self._hear, counters, logger, port=port, on_ask=self._ask)
        self._verdicts = Verdicts(director)
        inquire = inquiry(self._channels, lambda: director.services)
        self._prober = Prober(keys.sign, self._verdicts.take, inquire, counters, logger)
        self._reporter = Reporter(started, director, self._channels, lambda: counters, self._warnings)
        self._differences: dict[str, Problems] = {}
        self._follow_director()

    def serve(self, watch: NetworkWatch) -> None:
        desk = Desk(
            engine=self._engine,
            report=self._reporter.report,
            reload=self._reload,
            nodes_called=self._addresses_called,
            indexes_of=self._indexes_of,
        )
        commands = BalancerCommands(
            desk, self._director, self._reporter, self._channels, self._verdicts, self._follow_director
        )
        running = Running(
            reload=self._reload,
            announce=self._announce,
            complaints=_COMPLAINTS,
            tasks=[
                self._director.run,
                self._channels.run,
                self._prober.run,
                *self._outlets.tasks(commands.all(), self._reporter.report, self._logger),
            ],
        )
        privileges.drop(in_reserve=[Capability.SYS_ADMIN] if self._engine.name == EBPF else [])
        serve(self._engine._replace(tend=self._tend), running, watch, self._logger)

    def _tend(self) -> list[str]:
        """The prober first: where the plane cannot be restored, nodes must not count as failed besides."""
        self._director.look_at_paths()
        return [*self._prober.tend(), *self._engine.tend()]

    def _reload(self) -> list[str]:
        """All of it, or nothing."""
        wanted = self._again()
        refuse_loss(self._config, wanted, "service")
        if fixed := restart_only(self._config, wanted):
            raise ConfigError(f"{', '.join(fixed)} cannot change while the balancer runs: restart it")
        keyring = self._keys.read()
        self._director.configure(wanted)
        self._config = wanted
        self._follow_director()
        self._logger.setLevel(wanted.host.log_level.upper())
        self._keys.take(keyring)
        self._engine.take_keys()
        said = [
            f"{_counted(len(wanted.services), 'service')}, generation {self._director.generation}",
            *wanted.warnings,
        ]
        self._logger.info("reloaded: %s", "; ".join(said))
        return said

    def _warnings(self) -> list[str]:
        """What concerns no node."""
        refused = [f"not in force yet: {refusal}"] if (refusal := self._director.refusal) else []
        return [*self._config.warnings, *host.obstacles(), *self._prober.problems(), *refused]

    def _follow_director(self) -> None:
        """Its nodes, and which of them are to be checked, may have changed."""
        having: dict[str, list[int]] = {name: [] for name in self._config.addresses}
        for index, served in self._director.served.items():
            for node in served.config.pool.nodes:
                having[node.name].append(index)
        addresses = self._config.addresses
        self._channels.set_nodes(
            Peer(name, addresses[name].packed, tuple(indexes)) for name, indexes in having.items()
        )
        known = self._differences
        self._differences = {name: known.get(name) or Problems(self._logger, node=name) for name in addresses}
        self._prober.set_targets(targets(self._director))
        self._verdicts.forget_strangers()

    def _ask(self, name: str, now: float) -> None:
        address = self._config.addresses.get(name)
        if address is not None:
            self._director.ask(address.packed, now)

    def _hear(self, name: str) -> None:
        """A node's channel has something to say."""
        word = self._channels.word(name)
        address = self._config.addresses[name].packed
        if word.state is State.OK and word.report is not None and word.asked is not None:
            flows = {vip.vip_index: vip.flows for vip in word.report.facts.vips}
            self._director.hear(address, flows, word.asked)
            self._differences[name].are(self._reporter.differences(name))
        else:
            self._director.hear_nothing(address)

    def _addresses_called(self, name: str) -> set[str]:
        addresses = self._config.addresses
        if name not in addresses:
            raise ConfigError(f"there is no node {name}; there are {', '.join(sorted(addresses))}")
        return {str(addresses[name])}

    def _indexes_of(self, vip: str | None) -> list[int]:
        return indexes_of(vip, {each.vip: each.index for each in self._config.services})

    def _announce(self) -> None:
        config = self._config
        if config.host.insecure:
            self._logger.warning("insecure: whoever can send to a node can forge requests from any address")
        for warning in config.warnings:
            self._logger.warning("%s", warning)
        for service in config.services:
            self._logger.info(
                "service %s: VIP %s as DSCP %d, nodes %s",
                service.name,
                service.vip,
                service.index,
                ", ".join(f"{node.name}={node.address}@{node.weight}" for node in service.pool.nodes),
            )
        self._logger.info(
            "ready: %s, engine %s", _counted(len(config.services), "service"), self._engine.name
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
