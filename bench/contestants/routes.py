"""Without a balancer: the client asks the nodes themselves."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from lab import Lab

SHARED_ADDRESS = "192.168.33.50"
HASH_OF_PORTS_TOO = 1


def direct_address(lab: Lab) -> str:
    """An address of the first node that is no packetbridge's backend: nothing takes its replies."""
    return str(lab.topology.nodes[0].second_backend)


def direct(_lab: Lab) -> AbstractContextManager[None]:
    return nullcontext()


def ecmp_address(_lab: Lab) -> str:
    return SHARED_ADDRESS


@contextmanager
def ecmp(lab: Lab) -> Iterator[None]:
    """One address on all nodes, and in the router one route with all of them as next hops. The router chooses
    by a hash of addresses and ports, so that a flow stays on its node.
    """
    address = f"{SHARED_ADDRESS}/32"
    next_hops = [
        word
        for node in lab.topology.nodes
        for word in ("nexthop", "via", str(lab.topology.link(node.name).addresses[0]), "dev", node.name)
    ]
    with ExitStack() as undo:
        for node in lab.nodes:
            node.run(["ip", "address", "add", address, "dev", "eth0"])
            undo.callback(node.run, ["ip", "address", "delete", address, "dev", "eth0"])
        lab.router.sysctl("net.ipv4.fib_multipath_hash_policy", HASH_OF_PORTS_TOO)
        lab.router.run(["ip", "route", "add", address, *next_hops])
        undo.callback(lab.router.run, ["ip", "route", "delete", address])
        yield
