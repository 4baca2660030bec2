from ipaddress import IPv4Address

import pytest

from common.net.errors import HostError
from common.net.interfaces import Interface, LinkType
from packetbridge.addresses import Addresses
from packetbridge.core.service import Service

BRIDGE, BACKEND = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
SERVICE = Service(1, bytes([192, 0, 2, 9]), 80, BRIDGE.packed, BACKEND.packed, 8080)


def interface(name: str, *addresses: IPv4Address) -> Interface:
    return Interface(2, name, LinkType.ETHERNET, 1500, True, False, False, 0, addresses)


def watched() -> Addresses:
    addresses = Addresses()
    addresses.take([SERVICE], [interface("eth0", BRIDGE, BACKEND)])
    return addresses


def test_nothing_is_said_of_addresses_that_stay() -> None:
    assert watched().look([interface("eth0", BRIDGE, BACKEND)]) == []


def test_address_that_goes_and_comes_back_is_spoken_of_once_each() -> None:
    addresses = watched()
    without = [interface("eth0", BACKEND)]
    assert addresses.look(without) == [
        "192.0.2.1 is on no interface of this host any more: what needs it is cut off"
    ]
    assert addresses.look(without) == []
    assert addresses.look([interface("eth0", BACKEND, BRIDGE)]) == ["192.0.2.1 is back, on eth0"]
    assert addresses.look([interface("eth0", BACKEND, BRIDGE)]) == []


def test_address_that_moves_is_spoken_of() -> None:
    found = [interface("eth0", BRIDGE), interface("eth1", BACKEND)]
    assert watched().look(found) == ["192.0.2.2 has moved from eth0 to eth1"]


def test_address_that_was_never_there_is_refused_and_nothing_changes() -> None:
    addresses = watched()
    moved = SERVICE._replace(backend=bytes([192, 0, 2, 7]))
    with pytest.raises(HostError, match=r"no interface has the address 192\.0\.2\.7"):
        addresses.take([moved], [interface("eth0", BRIDGE, BACKEND)])
    assert addresses.look([interface("eth0", BRIDGE)]) != []


def test_address_that_is_gone_at_the_moment_may_stay_in_the_configuration() -> None:
    addresses = watched()
    addresses.look([interface("eth0", BRIDGE)])
    other = SERVICE._replace(vip_index=2)
    addresses.take([SERVICE, other], [interface("eth0", BRIDGE)])
    assert addresses.look([interface("eth0", BRIDGE, BACKEND)]) == ["192.0.2.2 is back, on eth0"]


def test_address_that_is_no_longer_used_is_not_spoken_of() -> None:
    addresses = watched()
    addresses.take([SERVICE._replace(backend=BRIDGE.packed)], [])
    assert addresses.look([interface("eth0", BRIDGE)]) == []
