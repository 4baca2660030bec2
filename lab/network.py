"""The namespaces, links and routes: a routed star, no two hosts on one layer 2.

    client --- router --- balancer
               | | |
          node1 node2 node3

On a host its link is `eth0`; in the router it has the host's name. Only the router forwards, and it
does not filter by source (the nodes send with the VIP as source); all else is as the kernel makes it.
"""

import subprocess
from collections.abc import Iterable
from ipaddress import IPv4Network

from lab.errors import LabError
from lab.host import Host
from lab.topology import Link, Topology

HOST_INTERFACE = "eth0"
RECEIVING_CPUS = "/sys/class/net/{}/queues/rx-0/rps_cpus"
FIRST_CPU = "1"  # a mask
OFFLOADS_OFF = ["tso", "off", "gso", "off", "gro", "off"]


def add_namespace(name: str) -> None:
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"ip netns add {name}: {done.stderr}")


def connect(router: Host, hosts: Iterable[Host], topology: Topology, *, vip_local: bool) -> None:
    """Link every host to the router, with addresses and routes. With `vip_local` the VIPs are addresses of
    the balancer's interface; without, they are only routed to it.
    """
    hosts = list(hosts)
    _set_router_sysctls(router)
    for host in hosts:
        host.sysctl("net.ipv4.ip_forward", 0)
        lay_link(router, host, topology, vip_local=vip_local)


def lay_link(router: Host, host: Host, topology: Topology, *, vip_local: bool) -> None:
    """Between a host and the router, with addresses and routes."""
    link, routed = topology.link(host.name), topology.routed_addresses(host.name)
    local = () if host.name == "balancer" and not vip_local else routed
    _connect_router_end(router, host, link)
    _connect_host_end(host, link, [f"{address}/32" for address in local])
    gateway = link.addresses[0]
    _ip_batch(router, [f"route add {address}/32 via {gateway} dev {host.name}" for address in routed])


def take_link(router: Host, host: Host) -> None:
    """Both ends are deleted, with all addresses and routes."""
    router.run(["ip", "link", "delete", host.name])


def set_link_mtu(router: Host, host: Host, mtu: int) -> None:
    """Both ends: each side knows, so TCP never sends more."""
    host.run(["ip", "link", "set", HOST_INTERFACE, "mtu", str(mtu)])
    router.run(["ip", "link", "set", host.name, "mtu", str(mtu)])


def set_path_mtu(router: Host, topology: Topology, host: str, mtu: int) -> None:
    """Packets to `host` over `mtu` bytes get ICMP "fragmentation needed" from the router. The host's own
    link does not know, so what it announces as MSS is too much, as behind a narrow hop further on.
    """
    link = topology.link(host)
    commands = [
        f"route replace {link.subnet} dev {host} proto kernel scope link src {link.router} mtu lock {mtu}"
    ]
    commands += [
        f"route replace {address}/32 via {link.addresses[0]} dev {host} mtu lock {mtu}"
        for address in topology.routed_addresses(host)
    ]
    _ip_batch(router, commands)


def switch_offloads_off(router: Host, hosts: Iterable[Host]) -> None:
    """No superpackets on any link: each packet is one of at most the MTU."""
    for host in hosts:
        host.run(["ethtool", "-K", HOST_INTERFACE, *OFFLOADS_OFF])
        router.run(["ethtool", "-K", host.name, *OFFLOADS_OFF])


def keep_order(router: Host, hosts: Iterable[Host]) -> None:
    """Receive all links on one CPU, so that they keep order, as cables do. By itself a veth pair receives on
    the CPU that sent: a sender that moves to another one overtakes itself, and TCP retransmits without loss.
    """
    for host in hosts:
        host.run(["tee", RECEIVING_CPUS.format(HOST_INTERFACE)], input=FIRST_CPU)
        router.run(["tee", RECEIVING_CPUS.format(host.name)], input=FIRST_CPU)


def _set_router_sysctls(router: Host) -> None:
    router.sysctl("net.ipv4.ip_forward", 1)
    router.sysctl("net.ipv4.conf.all.rp_filter", 0)
    router.sysctl("net.ipv4.conf.default.rp_filter", 0)
    _ip_batch(router, ["link set lo up"])


def _connect_router_end(router: Host, host: Host, link: Link) -> None:
    _ip_batch(
        router,
        [
            f"link add {host.name} type veth peer name {HOST_INTERFACE} netns {host.namespace}",
            f"address add {_on_link(link.router, link.subnet)} dev {host.name}",
            f"link set {host.name} up",
        ],
    )


def _connect_host_end(host: Host, link: Link, further: Iterable[str]) -> None:
    own = [_on_link(address, link.subnet) for address in link.addresses]
    _ip_batch(
        host,
        [
            "link set lo up",
            *(f"address add {address} dev {HOST_INTERFACE}" for address in [*own, *further]),
            f"link set {HOST_INTERFACE} up",
            f"route add default via {link.router} dev {HOST_INTERFACE}",
        ],
    )


def _on_link(address: object, subnet: IPv4Network) -> str:
    return f"{address}/{subnet.prefixlen}"


def _ip_batch(host: Host, commands: Iterable[str]) -> None:
    host.run(["ip", "-batch", "-"], input="\n".join(commands) + "\n")
