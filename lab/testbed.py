"""The lab: client, router, balancer and three nodes in network namespaces, with real NGINX on the nodes."""

import atexit
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from common.config import AUTO
from lab import network, run_directory, state_directory
from lab.content import Content
from lab.counters import increase
from lab.errors import LabError
from lab.host import Host
from lab.impairment import Weather
from lab.nginx import Nginx
from lab.process import Process
from lab.run_directory import RunDirectory
from lab.topology import Topology, load

ROUTER = "router"
# What the lab runs, and the Debian package it comes in.
PROGRAMS: Mapping[str, str] = {
    "ip": "iproute2",
    "nft": "nftables",
    "nginx": "nginx-light",
    "tcpdump": "tcpdump",
    "ethtool": "ethtool",
    "curl": "curl",
}
READY = "ready"
NO_CONFIGURATION = Path(os.devnull)
"""So that what this machine has in /etc is not read."""
READY_SECONDS = 60
"""For a daemon under an emulated processor, whose kernel verifies the programs: up to 20 s."""


class Lab:
    """Stands while its `with` block runs, and is gone after it, at the end of the process, and at SIGTERM.
    What a killed process leaves behind, `python -m lab down` removes.

    `mtu_sized` switches segmentation offloads off on all links; without `vip_local` the VIPs are routed to
    the balancer without being addresses of it; without `keep_order` the links are faster and reorder now and
    then; `engine` is what both daemons are told; `prefix` starts the namespaces' names.
    """

    def __init__(
        self,
        *,
        mtu_sized: bool = False,
        vip_local: bool = True,
        keep_order: bool = True,
        engine: str = AUTO,
        prefix: str | None = None,
    ) -> None:
        self.topology: Topology = load()
        self.hosts: dict[str, Host] = {}
        self.nginx: dict[str, Nginx] = {}
        self.engine = engine
        self._mtu_sized = mtu_sized
        self._vip_local = vip_local
        self._keep_order = keep_order
        self._prefix = prefix
        self._run_directory: RunDirectory | None = None

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self) -> None:
        """Raises LabError, with nothing left behind, where the lab cannot be built."""
        _check_host()
        _end_orderly_at_sigterm()
        names = [ROUTER, *(link.host for link in self.topology.links)]
        self._run_directory = run_directory.create(names, self._prefix)
        atexit.register(self.down)
        try:
            self._build(names)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End what runs in the lab and remove it; does nothing where the lab is down."""
        if self._run_directory is None:
            return
        for host in self.hosts.values():
            host.stop_all()
        self._run_directory.remove()
        self._run_directory = None
        atexit.unregister(self.down)

    def leave_standing(self) -> None:
        """The lab outlives this process, until `python -m lab down`."""
        atexit.unregister(self.down)
        self._running().leave_standing()
        self._run_directory = None

    @property
    def directory(self) -> Path:
        """Keys, logs, captures and content of this lab; gone with it."""
        return self._running().path

    @property
    def prefix(self) -> str:
        return self._running().prefix

    @property
    def client(self) -> Host:
        return self.hosts["client"]

    @property
    def router(self) -> Host:
        return self.hosts[ROUTER]

    @property
    def balancer(self) -> Host:
        return self.hosts["balancer"]

    @property
    def nodes(self) -> list[Host]:
        return [self.hosts[node.name] for node in self.topology.nodes]

    @property
    def key_file(self) -> Path:
        return self.directory / "handoff.key"

    def start_balancer(
        self, *extra_options: str, nodes: Sequence[str] | None = None, health: str = "off"
    ) -> Process:
        """At the topology's service. `extra_options` come last and so override. `nodes` are as the option
        --node has them, all of the topology unless given; `health` is as --health has it: most tests look at
        every packet, and want none that is not of their own.
        """
        service = self.topology.service
        if nodes is None:
            nodes = [f"{node.name}={node.bridge}" for node in self.topology.nodes]
        options = [f"--listen={service.vip}:{service.port}", f"--dscp={service.dscp}"]
        options += [f"--node={node}" for node in nodes]
        return self._start_daemon(self.balancer, "balancer", [*options, f"--health={health}"], extra_options)

    def start_packetbridge(self, node_name: str, *extra_options: str) -> Process:
        """`extra_options` come last and so override."""
        service = self.topology.service
        node = self.topology.node(node_name)
        options = [
            f"--listen={node.bridge}",
            f"--backend={node.backend}:{service.port}",
            f"--vip={service.dscp}={service.vip}:{service.port}",
        ]
        return self._start_daemon(self.hosts[node_name], "packetbridge", options, extra_options)

    def start_configured(self, host: Host, daemon: str, configuration: str, *extra_options: str) -> Process:
        """With a configuration file of this text, in the host's directory, and what every daemon of this lab
        is told.
        """
        path = self.configuration_file(host, daemon)
        path.write_text(configuration)
        return self._start_daemon(host, daemon, [], extra_options, configuration=path)

    def configuration_file(self, host: Host, daemon: str) -> Path:
        return host.directory / f"{daemon}.toml"

    def tool(
        self, host: Host, *arguments: str, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """`l3dsr` with these arguments on a host, told where its daemons' control sockets are."""
        return host.run(_tool_command(host, arguments), check=check, timeout=timeout)

    def start_tool(self, host: Host, *arguments: str) -> Process:
        """The same in the background."""
        return host.start(_tool_command(host, arguments), name="l3dsr")

    def start_daemons(self) -> None:
        """The balancer and every node's packetbridge."""
        for node in self.topology.nodes:
            self.start_packetbridge(node.name)
        self.start_balancer()

    def take_link(self, host_name: str) -> None:
        """The host's interface is deleted, with its addresses and routes."""
        network.take_link(self.router, self.hosts[host_name])

    def lay_link(self, host_name: str) -> None:
        """Again, as it was: an interface of the same name, with another index."""
        host = self.hosts[host_name]
        network.lay_link(self.router, host, self.topology, vip_local=self._vip_local)
        if self._mtu_sized:
            network.switch_offloads_off(self.router, [host])
        if self._keep_order:
            network.keep_order(self.router, [host])

    def set_link_mtu(self, host_name: str, mtu: int) -> None:
        """On both ends of the host's link: TCP knows and never sends more."""
        network.set_link_mtu(self.router, self.hosts[host_name], mtu)

    def set_path_mtu(self, host_name: str, mtu: int) -> None:
        """The way to the host narrows behind the router, which answers larger packets with ICMP
        "fragmentation needed"; the host does not know of it.
        """
        network.set_path_mtu(self.router, self.topology, host_name, mtu)

    def counters(self) -> dict[str, dict[str, int]]:
        """Of every host, by its name."""
        return {name: host.counters() for name, host in self.hosts.items()}

    def counters_since(self, before: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
        return {name: increase(before[name], after) for name, after in self.counters().items()}

    def _build(self, names: list[str]) -> None:
        for name in names:
            directory = self.directory / name
            directory.mkdir()
            self.hosts[name] = Host(name, f"{self.prefix}-{name}", directory)
            network.add_namespace(self.hosts[name].namespace)
        linked = [host for name, host in self.hosts.items() if name != ROUTER]
        network.connect(self.router, linked, self.topology, vip_local=self._vip_local)
        if self._mtu_sized:
            network.switch_offloads_off(self.router, linked)
        if self._keep_order:
            network.keep_order(self.router, linked)
        self.weather = Weather(self.router, self.topology)
        self._make_key()
        self.content = Content(self.directory / "content")
        self.content.write()
        for node in self.topology.nodes:
            self.nginx[node.name] = Nginx(self.hosts[node.name], node, self.content)
            self.nginx[node.name].begin_start()
        for nginx in self.nginx.values():
            nginx.wait_started()

    def _make_key(self) -> None:
        descriptor = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(16) + "\n")

    def _start_daemon(
        self,
        host: Host,
        name: str,
        options: Sequence[str],
        extra_options: Sequence[str],
        configuration: Path = NO_CONFIGURATION,
    ) -> Process:
        state_directory.make(host.state_directory)
        common = [
            f"--engine={self.engine}",
            f"--state-dir={host.state_directory}",
            f"--key-file={self.key_file}",
            "--log-format=human",
        ]
        program = str(daemon_program(name))
        argv = [program, f"--config={configuration}", *options, *common, *extra_options]
        process = host.start(argv, name=name)
        process.wait_for(READY, READY_SECONDS)
        return process

    def _running(self) -> RunDirectory:
        if self._run_directory is None:
            raise LabError("the lab is not up")
        return self._run_directory


def _tool_command(host: Host, arguments: Sequence[str]) -> list[str]:
    command, *rest = arguments
    return [str(daemon_program("l3dsr")), command, f"--state-dir={host.state_directory}", *rest]


def daemon_program(name: str) -> Path:
    """As installed beside the Python that runs the lab. Raises LabError where it is not."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise LabError(f"{path} does not exist; `make setup` installs it")
    return path


def _check_host() -> None:
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it makes network namespaces")
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise LabError(f"missing Debian packages: {' '.join(missing)}")


def _end_orderly_at_sigterm() -> None:
    """So that `with` blocks are left and atexit runs. A process that has its own way keeps it."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
