"""The addresses of this host that a packetbridge relies on: the bridge address and those of the backends."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

from common.net.interfaces import Interface, interface_of
from packetbridge.core.service import Service


class Addresses:
    def __init__(self) -> None:
        self._carriers: dict[IPv4Address, str | None] = {}
        """The name of each address's interface when it was looked at last."""

    def take(self, services: Sequence[Service], found: Iterable[Interface]) -> None:
        """Look after those of ``services`` from now on.

        `HostError` where one that was not looked after is on none of the interfaces ``found``: then all is
        as it was.
        """
        found = list(found)
        fresh = {
            address: interface_of(address, found).name
            for address in _addresses_of(services)
            if address not in self._carriers
        }
        kept = {address: self._carriers.get(address) for address in _addresses_of(services)}
        self._carriers = {**kept, **fresh}

    def look(self, found: Iterable[Interface]) -> list[str]:
        """What has changed, in words."""
        carriers = {address: interface.name for interface in found for address in interface.addresses}
        said = []
        for address, before in self._carriers.items():
            now = carriers.get(address)
            if now == before:
                continue
            self._carriers[address] = now
            if now is None:
                said.append(f"{address} is on no interface of this host any more: what needs it is cut off")
            elif before is None:
                said.append(f"{address} is back, on {now}")
            else:
                said.append(f"{address} has moved from {before} to {now}")
        return said


def _addresses_of(services: Iterable[Service]) -> list[IPv4Address]:
    """Each once."""
    return [
        IPv4Address(address)
        for address in dict.fromkeys(each for served in services for each in (served.bridge, served.backend))
    ]
