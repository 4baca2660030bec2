"""Network namespaces for tests: client - middle - server, routed, removed whatever happens."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Namespace:
    name: str

    def run(self, command: str) -> str:
        """A command's standard output; CalledProcessError if it fails."""
        arguments = ["ip", "netns", "exec", self.name, *command.split()]
        return subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread, and all that it opens or starts meanwhile, is in the namespace."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        target = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(target)
            yield
        finally:
            _enter(home)
            os.close(home)
            os.close(target)


@dataclass(frozen=True)
class Hosts:
    client: Namespace
    middle: Namespace
    server: Namespace


CLIENT, SERVER = IPv4Address("10.98.1.1"), IPv4Address("10.98.2.2")
MIDDLE = IPv4Address("10.98.1.2")
"""On its interface m0, towards the client."""
CLIENT_MAC, MIDDLE_MAC = bytes.fromhex("02000a620101"), bytes.fromhex("02000a620102")


@contextmanager
def three_hosts() -> Iterator[Hosts]:
    """Interfaces: c0 of the client, m0 and m1 of the middle, s0 of the server."""
    with ExitStack() as stack:
        client, middle, server = (stack.enter_context(_namespace(role)) for role in "cms")
        _link(client, "c0", CLIENT_MAC, middle, "m0", MIDDLE_MAC)
        _link(middle, "m1", bytes.fromhex("02000a620201"), server, "s0", bytes.fromhex("02000a620202"))
        client.run("ip address add 10.98.1.1/24 dev c0")
        middle.run("ip address add 10.98.1.2/24 dev m0")
        middle.run("ip address add 10.98.2.1/24 dev m1")
        server.run("ip address add 10.98.2.2/24 dev s0")
        client.run("ip route add 10.98.2.0/24 via 10.98.1.2")
        server.run("ip route add 10.98.1.0/24 via 10.98.2.1")
        middle.run("sysctl -q -w net.ipv4.conf.m0.forwarding=1 net.ipv4.conf.m1.forwarding=1")
        yield Hosts(client, middle, server)


@contextmanager
def _namespace(role: str) -> Iterator[Namespace]:
    namespace = Namespace(f"l3dsr-net-{os.getpid()}-{role}")
    subprocess.run(["ip", "netns", "add", namespace.name], check=True, timeout=60)
    try:
        namespace.run("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
        namespace.run("ip link set lo up")
        yield namespace
    finally:
        subprocess.run(["ip", "netns", "delete", namespace.name], check=True, timeout=60)


def _link(one: Namespace, end: str, mac: bytes, other: Namespace, other_end: str, other_mac: bytes) -> None:
    one.run(
        f"ip link add {end} address {mac.hex(':')} type veth"
        f" peer name {other_end} address {other_mac.hex(':')} netns {other.name}"
    )
    one.run(f"ip link set {end} up")
    other.run(f"ip link set {other_end} up")


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
