"""Residences as the tests start them, and what they can see of them.

The programs are the tests' own: each notes in the map `flows`, under its interface, which load it is of.
"""

import logging
import socket
from ctypes import byref, c_uint32
from itertools import product

from common.bpf import libbpf
from common.bpf.attach import Direction
from common.bpf.maps import HashMap
from common.bpf.residence import Place, Plan, Residence
from tests.root.namespaces import MIDDLE, Hosts

_TCX_HOOKS = {"egress": 47, "ingress": 46}  # enum bpf_attach_type
LOGGER = logging.getLogger("residence")
ETHERNET, NONE = 14, 0


def place(interface: str, program: str = "note", direction: Direction = Direction.INGRESS) -> Place:
    return Place(socket.if_nametoindex(interface), direction, program, ETHERNET)


def run(plan: Plan, *places: Place, generation: int = 1) -> Residence:
    """A daemon's start, as far as it concerns the kernel."""
    made = Residence(plan, LOGGER)
    made.load({"generation": generation}, {each.link_header_size for each in places})
    made.publish(places)
    return made


def flows(made: Residence) -> HashMap:
    return HashMap(made.map("flows"))


def noted(made: Residence, place: Place) -> tuple[int, int] | None:
    """The last program at the interface: its generation and link header."""
    value = flows(made).lookup(place.ifindex.to_bytes(4, "little"))
    return None if value is None else divmod(int.from_bytes(value, "little"), 256)


def forget(made: Residence, place: Place) -> None:
    flows(made).delete(place.ifindex.to_bytes(4, "little"))


def ping(hosts: Hosts) -> None:
    hosts.client.run(f"ping -c 1 -W 10 {MIDDLE}")


def ping_behind(hosts: Hosts) -> None:
    hosts.server.run("ping -c 1 -W 10 10.98.2.1")


def attached(hosts: Hosts) -> list[str]:
    """Where the kernel runs programs, and which way they are attached."""
    found = []
    for name, (direction, hook) in product(("m0", "m1"), _TCX_HOOKS.items()):
        count = c_uint32(0)
        index = socket.if_nametoindex(name)
        libbpf.library().bpf_prog_query(index, hook, 0, None, None, byref(count))
        filters = hosts.middle.run(f"tc filter show dev {name} {direction}").count("handle")
        found += [f"{name} tcx/{direction}"] * count.value + [f"{name} clsact/{direction}"] * filters
    return found


def nothing_is_left(hosts: Hosts, plan: Plan) -> bool:
    qdiscs = hosts.middle.run("tc qdisc show")
    return attached(hosts) == [] and "clsact" not in qdiscs and not plan.pins.exists()


def is_at(hosts: Hosts, way: str, *places: str) -> bool:
    return attached(hosts) == [f"{each} {way}/ingress" for each in places]
