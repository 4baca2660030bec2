"""How large a handoff to the nodes may be, by the path MTUs as last found."""

import logging
from collections.abc import Callable, Iterable, Sequence, Set
from ipaddress import IPv4Address

from balancer.core.path_mtu import MIN_PAYLOAD, payload_within
from common.net.errors import HostError
from common.problems import Problems
from common.threads import in_thread
from common.wire import handoff, ipv4

PathMtu = Callable[[IPv4Address], int]
"""Of a node's bridge address, in bytes; `HostError` where there is no route."""


class Paths:
    """To nodes, by their bridge addresses. Where a route is gone, what was found before stands."""

    def __init__(self, addresses: Iterable[IPv4Address], path_mtu: PathMtu, logger: logging.Logger) -> None:
        """A node without a route is one more that is down: it is looked for again."""
        self._path_mtu = path_mtu
        self._missing = Problems(logger)
        self._found: dict[IPv4Address, int | str] = {address: self._asked(address) for address in addresses}
        """The path MTU, or why there is none yet."""

    def add(self, addresses: Iterable[IPv4Address]) -> None:
        """Those that are new. `HostError` where one of them has no route."""
        for address in addresses:
            if address not in self._found:
                self._found[address] = self._path_mtu(address)

    def payload(self, addresses: Sequence[IPv4Address]) -> int:
        """Bytes that a handoff to any of these may carry; `HostError` where no handoff fits, or where none of
        them has had a route.
        """
        mtus = [mtu for address in addresses if isinstance(mtu := self._found[address], int)]
        if not mtus:
            raise HostError(str(self._found[addresses[0]]))
        payload = payload_within(min(mtus))
        if payload < MIN_PAYLOAD:
            needed = ipv4.HEADER_SIZE + handoff.HEADER_SIZE + MIN_PAYLOAD
            raise HostError(
                f"the path MTU to the nodes is {min(mtus)}, too small for a handoff: raise it to {needed}"
            )
        return payload

    async def look(self, wanted: Callable[[], Set[IPv4Address]]) -> None:
        """Find them anew, and forget all but those that are ``wanted`` by then.

        In a thread: to ask takes a millisecond or two for each node.
        """
        addresses = wanted()
        asked = await in_thread(lambda: {address: self._asked(address) for address in addresses})
        present = wanted()
        self._found |= {
            address: answer
            for address, answer in asked.items()
            if isinstance(answer, int) or not isinstance(self._found.get(address), int)
        }
        self._found = {address: answer for address, answer in self._found.items() if address in present}
        self.say_missing()

    def say_missing(self) -> None:
        """Log which have had no route yet, each once, and which have got theirs."""
        self._missing.are(answer for answer in self._found.values() if isinstance(answer, str))

    def _asked(self, address: IPv4Address) -> int | str:
        try:
            return self._path_mtu(address)
        except HostError as error:
            return str(error)
