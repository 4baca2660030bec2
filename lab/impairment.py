"""Worse weather in the router: losses, copies, and the impairer of lab.impairer.

nftables counts and drops exactly, but its random numbers have no seed, it cannot hold a packet back,
and one superpacket is one packet to it (`Lab(mtu_sized=True)` has none). The impairer has a seed and
can reorder and delay. What passes through the impairer is not seen by the rules made here.

A `condition` is an nftables expression of the family ip: `tcp flags syn`, `ip length > 1000`.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from lab.disorder import Faults
from lab.errors import LabError
from lab.host import Host
from lab.process import Process
from lab.topology import Topology

NODES = "nodes"
NUMGEN_LIMIT = 4294967295
PROBABILITY_UNIT = 1_000_000
MARK_BASE = 0x4C33_0000
RULE_PRIORITY = 100
CHAIN_PRIORITY = -150
REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Direction:
    """Packets that enter the router from one of `sources` and leave it to one of `targets`: names of hosts,
    or NODES for all nodes.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]


TO_VIP = Direction(("client",), ("balancer",))
FROM_VIP = Direction(("balancer",), ("client",))
TO_NODE = Direction(("balancer",), (NODES,))
FROM_NODE = Direction((NODES,), ("client",))
TO_CLIENT = Direction(("balancer", NODES), ("client",))


class Impairment:
    """What is in force, and how often it struck."""

    def __init__(self, router: Host, table: str) -> None:
        self._router = router
        self._table = table
        self._final: int | None = None

    def hits(self) -> int:
        """Packets that were dropped, copied or sent through the impairer so far; also after the end."""
        if self._final is not None:
            return self._final
        listing = json.loads(self._router.run(["nft", "-j", "list", "table", "ip", self._table]).stdout)
        return next(int(entry["counter"]["packets"]) for entry in listing["nftables"] if "counter" in entry)

    def end(self) -> None:
        self._final = self.hits()
        self._router.run(["nft", "delete", "table", "ip", self._table])


class Weather:
    """All impairments of one lab; each is a context manager with an nftables table of its own."""

    def __init__(self, router: Host, topology: Topology) -> None:
        self._router = router
        self._topology = topology
        self._numbers = count(1)

    @contextmanager
    def loss(self, direction: Direction, probability: float, condition: str = "") -> Iterator[Impairment]:
        """Drop packets at random."""
        match = f"{self._match(direction)} {condition} {_chance(probability)}"
        with self._table("forward", f"{match} counter name hits drop") as impairment:
            yield impairment

    @contextmanager
    def drop(
        self, direction: Direction, condition: str = "", *, skip: int = 0, packets: int = 1
    ) -> Iterator[Impairment]:
        """Let `skip` matching packets pass, drop the `packets` after them, let the rest pass."""
        turns = str(skip) if packets == 1 else f"{skip}-{skip + packets - 1}"
        turn = f"numgen inc mod {NUMGEN_LIMIT} {turns}"
        match = f"{self._match(direction)} {condition} {turn}"
        with self._table("forward", f"{match} counter name hits drop") as impairment:
            yield impairment

    @contextmanager
    def duplicate(
        self, direction: Direction, probability: float = 1.0, condition: str = ""
    ) -> Iterator[Impairment]:
        """Send a copy of a packet right before it."""
        match = f"{self._match(direction)} {condition} {_chance(probability)}"
        copies = []
        for target in self._names(direction.targets):
            gateway = self._topology.link(target).addresses[0]
            copies.append(f'oifname "{target}" dup to {gateway} device "{target}"')
        rule = f"{match} counter name hits jump copy"
        with self._table("forward", rule, copies) as impairment:
            yield impairment

    @contextmanager
    def impairer(self, direction: Direction, faults: Faults, condition: str = "") -> Iterator[Impairment]:
        """Send packets through a lab.impairer. What it still holds at the end is delivered then."""
        number = next(self._numbers)
        device = f"impair{number}"
        mark = str(MARK_BASE + number)
        match = f"{self._match_before_routing(direction)} {condition}"
        rule = ["fwmark", mark, "lookup", mark, "priority", str(RULE_PRIORITY)]
        program = self._start_impairer(device, faults)
        try:
            program.wait_for("ready")
            self._router.run(["ip", "route", "add", "default", "dev", device, "table", mark])
            self._router.run(["ip", "rule", "add", *rule])
            try:
                with self._table(
                    "prerouting", f"{match} counter name hits meta mark set {mark}"
                ) as impairment:
                    yield impairment
            finally:
                self._router.run(["ip", "rule", "delete", *rule])
        finally:
            code = program.stop()
        if code != 0:
            raise LabError(f"the impairer ended with {code}:\n{program.read_log()}")

    def _start_impairer(self, device: str, faults: Faults) -> Process:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(faults).items()]
        return self._router.start(
            [sys.executable, "-m", "lab.impairer", f"--device={device}", *options],
            name="impairer",
            environment={"PYTHONPATH": str(REPOSITORY)},
        )

    @contextmanager
    def _table(self, hook: str, rule: str, copies: Iterable[str] = ()) -> Iterator[Impairment]:
        name = f"lab{next(self._numbers)}"
        lines = [
            f"table ip {name} {{",
            "counter hits { }",
            "chain copy {",
            *copies,
            "}",
            "chain impair {",
            f"type filter hook {hook} priority {CHAIN_PRIORITY}; policy accept;",
            rule,
            "}",
            "}",
        ]
        self._router.run(["nft", "-f", "-"], input="\n".join(lines) + "\n")
        impairment = Impairment(self._router, name)
        try:
            yield impairment
        finally:
            impairment.end()

    def _match(self, direction: Direction) -> str:
        sources = ", ".join(f'"{name}"' for name in self._names(direction.sources))
        targets = ", ".join(f'"{name}"' for name in self._names(direction.targets))
        return f"iifname {{ {sources} }} oifname {{ {targets} }}"

    def _match_before_routing(self, direction: Direction) -> str:
        sources = ", ".join(f'"{name}"' for name in self._names(direction.sources))
        destinations = [
            str(destination)
            for name in self._names(direction.targets)
            for destination in (self._topology.link(name).subnet, *self._topology.routed_addresses(name))
        ]
        return f"iifname {{ {sources} }} ip daddr {{ {', '.join(destinations)} }}"

    def _names(self, names: Iterable[str]) -> list[str]:
        nodes = [node.name for node in self._topology.nodes]
        return [single for name in names for single in (nodes if name == NODES else [name])]


def _chance(probability: float) -> str:
    share = round(probability * PROBABILITY_UNIT)
    return "" if share == PROBABILITY_UNIT else f"numgen random mod {PROBABILITY_UNIT} < {share}"
