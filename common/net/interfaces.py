"""The host's network interfaces, found from addresses by rtnetlink(7)."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address
from socket import AF_INET

from pyroute2 import IPRoute

from common.net.errors import HostError

_IFF_UP, _IFF_LOOPBACK, _IFF_POINTOPOINT = 0x1, 0x8, 0x10


class LinkType(IntEnum):
    """The ARPHRD constants of linux/if_arp.h that carry IPv4 in a way known to us."""

    ETHERNET = 1
    PPP = 512
    RAW_IP = 519
    IPIP_TUNNEL = 768
    LOOPBACK = 772
    GRE_TUNNEL = 778
    NONE = 0xFFFE


@dataclass(frozen=True, slots=True)
class Interface:
    index: int
    name: str
    link_type: int
    """ARPHRD number; `LinkType` has those that matter."""
    mtu: int
    is_up: bool
    is_loopback: bool
    is_point_to_point: bool
    master: int
    """Index of the bridge or bond that this one is enslaved to, or 0."""
    addresses: tuple[IPv4Address, ...]


def interfaces() -> list[Interface]:
    """By index, with their IPv4 addresses."""
    with IPRoute() as netlink:
        addresses: dict[int, list[IPv4Address]] = {}
        for message in netlink.get_addr(family=AF_INET):
            local = IPv4Address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
            addresses.setdefault(message["index"], []).append(local)
        found = []
        for link in netlink.get_links():
            flags = link["flags"]
            found.append(
                Interface(
                    index=link["index"],
                    name=link.get_attr("IFLA_IFNAME"),
                    link_type=link["ifi_type"],
                    mtu=link.get_attr("IFLA_MTU"),
                    is_up=bool(flags & _IFF_UP),
                    is_loopback=bool(flags & _IFF_LOOPBACK),
                    is_point_to_point=bool(flags & _IFF_POINTOPOINT),
                    master=link.get_attr("IFLA_MASTER") or 0,
                    addresses=tuple(addresses.get(link["index"], ())),
                )
            )
    return sorted(found, key=lambda interface: interface.index)


def interface_of(address: IPv4Address, among: Iterable[Interface]) -> Interface:
    """The one that carries ``address``; `HostError` if none does."""
    for interface in among:
        if address in interface.addresses:
            return interface
    raise HostError(f"no interface has the address {address}: add it (ip address add {address}/32 dev ...)")


def open_interfaces(among: Iterable[Interface]) -> list[Interface]:
    """Those through which IPv4 packets can come from other hosts; the own TUN is one of them.

    A bridge or bond is tapped itself, not what is enslaved to it, so that each packet is seen once.
    Other TUNs of ours are among them: a packetbridge may get its handoffs from a balancer on its own host.
    """
    return [
        interface
        for interface in among
        if interface.is_up
        and not interface.is_loopback
        and not interface.master
        and (interface.addresses or interface.is_point_to_point)
    ]


def tap_interfaces(among: Iterable[Interface]) -> list[Interface]:
    """`open_interfaces`, to be asked before the own TUN is there; `HostError` where there are none."""
    found = open_interfaces(among)
    if not found:
        raise HostError(
            "no interface that is up has an IPv4 address: set one up (ip address add ... dev ...)"
        )
    return found
