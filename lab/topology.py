"""The addresses and roles of lab and Vagrant boxes, read from topology.json and from nowhere else.

Every host hangs on the router by a link of its own. The router has a link's first address; the host
has the second, except the client, whose addresses are listed because tests want several of them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from lab.errors import LabError

TOPOLOGY_FILE = Path(__file__).with_name("topology.json")
HIGHEST_DSCP = 63
HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Service:
    vip: IPv4Address
    port: int
    dscp: int


@dataclass(frozen=True, slots=True)
class Node:
    """`bridge` is where the packetbridge takes handoffs, `backend` where NGINX listens; NGINX also
    listens on `second_backend`, for a second VIP on the same packetbridge.
    """

    name: str
    bridge: IPv4Address
    backend: IPv4Address
    second_backend: IPv4Address


@dataclass(frozen=True, slots=True)
class Client:
    addresses: tuple[IPv4Address, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """One host's link to the router; `addresses` are the host's own on it, the primary one first."""

    host: str
    subnet: IPv4Network
    router: IPv4Address
    addresses: tuple[IPv4Address, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    service: Service
    second_service: Service
    nodes: tuple[Node, ...]
    client: Client
    links: tuple[Link, ...]

    def node(self, name: str) -> Node:
        """Raises LabError where there is no such node."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise LabError(f"the topology has no node {name}")

    def link(self, host: str) -> Link:
        """Raises LabError where there is no such host."""
        for link in self.links:
            if link.host == host:
                return link
        raise LabError(f"the topology has no host {host}")

    def routed_addresses(self, host: str) -> tuple[IPv4Address, ...]:
        """What the router sends to `host` besides its link's subnet."""
        if host == "balancer":
            return (self.service.vip, self.second_service.vip)
        if host == "client":
            return ()
        node = self.node(host)
        return (node.bridge, node.backend, node.second_backend)


def load(path: Path = TOPOLOGY_FILE) -> Topology:
    """Raises LabError naming the file and the key where the file is not a topology."""
    try:
        return _topology(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError, LabError) as error:
        raise LabError(f"{path}: {error}") from error


def _topology(document: Mapping[str, Any]) -> Topology:
    entries = _checked(Topology, document, "topology")
    nodes = tuple(_node(entry) for entry in entries["nodes"])
    client_addresses = _checked(Client, entries["client"], "client")["addresses"]
    client = Client(tuple(IPv4Address(address) for address in client_addresses))
    expected = {"client", "balancer", *(node.name for node in nodes)}
    if set(entries["links"]) != expected:
        raise LabError(f"links: expected one each for {', '.join(sorted(expected))}")
    topology = Topology(
        service=_service(entries["service"], "service"),
        second_service=_service(entries["second_service"], "second_service"),
        nodes=nodes,
        client=client,
        links=tuple(_link(host, IPv4Network(subnet), client) for host, subnet in entries["links"].items()),
    )
    _refuse_duplicates(topology)
    return topology


def _checked(kind: type, entry: object, where: str) -> dict[str, Any]:
    """The entry, once its keys are exactly the fields of `kind`."""
    if not isinstance(entry, dict):
        raise LabError(f"{where}: expected an object")
    known = {field.name for field in fields(kind)}
    if unknown := set(entry) - known:
        raise LabError(f"{where}: unknown key {', '.join(sorted(unknown))}")
    if missing := known - set(entry):
        raise LabError(f"{where}: missing key {', '.join(sorted(missing))}")
    return entry


def _service(entry: object, where: str) -> Service:
    values = _checked(Service, entry, where)
    service = Service(IPv4Address(values["vip"]), int(values["port"]), int(values["dscp"]))
    if not 1 <= service.dscp <= HIGHEST_DSCP:
        raise LabError(f"{where}: dscp {service.dscp} is not one of 1..{HIGHEST_DSCP}")
    if not 1 <= service.port <= HIGHEST_PORT:
        raise LabError(f"{where}: port {service.port} is not one of 1..{HIGHEST_PORT}")
    return service


def _node(entry: object) -> Node:
    values = _checked(Node, entry, "nodes")
    return Node(
        name=str(values["name"]),
        bridge=IPv4Address(values["bridge"]),
        backend=IPv4Address(values["backend"]),
        second_backend=IPv4Address(values["second_backend"]),
    )


def _link(host: str, subnet: IPv4Network, client: Client) -> Link:
    router = subnet[1]
    addresses = client.addresses if host == "client" else (subnet[2],)
    if not addresses:
        raise LabError(f"links: {host} has no address")
    for address in addresses:
        if address not in subnet or address in {router, subnet.network_address, subnet.broadcast_address}:
            raise LabError(f"links: {address} is no host address of {subnet}")
    return Link(host, subnet, router, addresses)


def _refuse_duplicates(topology: Topology) -> None:
    seen: set[IPv4Address] = set()
    for address in _all_addresses(topology):
        if address in seen:
            raise LabError(f"{address} stands twice")
        seen.add(address)
    if topology.service.dscp == topology.second_service.dscp:
        raise LabError(f"dscp {topology.service.dscp} stands twice")


def _all_addresses(topology: Topology) -> Iterator[IPv4Address]:
    for link in topology.links:
        yield link.router
        yield from link.addresses
        yield from topology.routed_addresses(link.host)
