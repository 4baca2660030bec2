from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from common.net.errors import HostError
from common.net.interfaces import Interface, LinkType, interface_of, interfaces, tap_interfaces
from common.net.packet_socket import link_header_size

HOME, ELSEWHERE = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.9")
ETH = Interface(2, "eth0", LinkType.ETHERNET, 1500, True, False, False, 0, (HOME,))
LOOPBACK = replace(ETH, index=1, name="lo", is_loopback=True, addresses=(IPv4Address("127.0.0.1"),))
TUNNEL = replace(ETH, index=8, name="wg0", is_point_to_point=True, addresses=())


def test_interface_is_found_from_its_address() -> None:
    assert interface_of(HOME, [LOOPBACK, ETH]) is ETH


def test_address_of_no_interface_is_named() -> None:
    with pytest.raises(HostError, match=r"no interface has the address 192\.0\.2\.9: add it"):
        interface_of(ELSEWHERE, [LOOPBACK, ETH])


def test_taps_stand_where_packets_can_come_in() -> None:
    no_addresses = replace(ETH, index=3, addresses=())
    down = replace(ETH, index=4, is_up=False)
    enslaved = replace(ETH, index=5, master=6)
    bridge = replace(ETH, index=6, name="br0")
    among = [LOOPBACK, ETH, no_addresses, down, enslaved, bridge, TUNNEL]
    assert tap_interfaces(among) == [ETH, bridge, TUNNEL]


def test_host_without_interface_is_refused() -> None:
    with pytest.raises(HostError, match="no interface that is up has an IPv4 address"):
        tap_interfaces([LOOPBACK])


@pytest.mark.parametrize(
    ("link_type", "size"),
    [(LinkType.ETHERNET, 14), (LinkType.LOOPBACK, 14), (LinkType.NONE, 0), (LinkType.PPP, 0)],
)
def test_link_header_follows_from_the_link_type(link_type: LinkType, size: int) -> None:
    assert link_header_size(replace(ETH, link_type=link_type)) == size


def test_unknown_link_type_is_refused() -> None:
    with pytest.raises(HostError, match="interface eth0 has link type 32, which cannot be tapped"):
        link_header_size(replace(ETH, link_type=32))


def test_loopback_is_seen_by_everybody() -> None:
    loopback = interfaces()[0]
    assert (loopback.index, loopback.name, loopback.link_type) == (1, "lo", 772)
    assert loopback.is_loopback
