"""Both ends of the channel with real sockets, in one trio loop."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, closing
from ipaddress import IPv4Address
from pathlib import Path

import trio

from balancer.channel import Channels, Peer
from balancer.core.channel import NodeWord, State
from common.counters import Counters
from common.keyring import KeySource
from common.reports import FlowReport
from common.wire.channel import NodeFacts, ServedVip
from packetbridge.channel import Server

PERIOD = 0.1
VIP = bytes([192, 168, 33, 10])
CLIENT = bytes([203, 0, 113, 7])
FACTS = NodeFacts("0.1.0", "raw", 5.0, 1000, (ServedVip(1, VIP, 80, 3), ServedVip(7, VIP, 443, 4)))
FLOW = FlowReport(
    client="203.0.113.7",
    client_port=49152,
    vip_index=1,
    node="",
    state="established",
    age=1.5,
    idle=0.25,
    details={"seq_delta": 0xFFFFFFFF, "adopted": True, "backend": "10.0.0.1:80", "note": None, "rate": 1.5},
)
LOGGER = logging.getLogger("channel-test")


class Keys:
    """A key file, and the daemons' views of it."""

    def __init__(self, path: Path, *keys: bytes) -> None:
        self.path = path
        path.touch(0o600)
        self.write(*keys)
        self.source = KeySource(path, is_insecure=False)

    def write(self, *keys: bytes) -> None:
        self.path.write_text("\n".join(key.hex() for key in keys))


class BalancerEnd:
    def __init__(self, keys: KeySource, port: int, period: float = PERIOD) -> None:
        self.counters = Counters[str]()
        self.told: list[tuple[str, State]] = []
        self.asked: list[float] = []
        """When reports were asked for."""
        self._news = trio.Event()
        self.channels = Channels(
            keys, self._tell, self.counters, LOGGER, port=port, period=period, on_ask=self._note
        )

    def word(self, name: str = "n1") -> NodeWord:
        return self.channels.word(name)

    def _note(self, _name: str, now: float) -> None:
        self.asked.append(now)

    def _tell(self, name: str) -> None:
        self.told.append((name, self.word(name).state))
        self._news.set()
        self._news = trio.Event()

    async def until(
        self, holds: Callable[[NodeWord], bool], name: str = "n1", within: float = 60.0
    ) -> NodeWord:
        """The node's word as soon as it ``holds``."""
        with trio.fail_after(within):
            while not holds(self.word(name)):
                await self._news.wait()
        return self.word(name)

    async def until_state(self, state: State, name: str = "n1") -> NodeWord:
        return await self.until(lambda word: word.state is state, name)


class NodeEnd:
    """A packetbridge's server that says `FACTS`, and `FLOW` of the client's port 49152."""

    def __init__(self, address: str, keys: KeySource, port: int = 0, clock_error: int = 0) -> None:
        self.counters = Counters[str]()
        self.facts = FACTS
        self.server = Server(
            IPv4Address(address),
            keys,
            lambda: self.facts,
            lambda *asked: FLOW if asked == (CLIENT, 49152, 1) else None,
            self.counters,
            LOGGER,
            port=port,
            wall_ns=lambda: time.time_ns() + clock_error * 10**9,
        )
        self.port: int = self.server._socket.getsockname()[1]

    def open(self) -> AbstractContextManager[Server]:
        return closing(self.server)


def peer(address: str, *vip_indices: int, name: str = "n1") -> Peer:
    return Peer(name, IPv4Address(address).packed, vip_indices or (1,))


def converse(
    balancer: BalancerEnd, peers: Iterable[Peer], *nodes: NodeEnd, script: Callable[[], Awaitable[None]]
) -> None:
    """Run both ends while the ``script``, an async function, runs."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.server.run)
            balancer.channels.set_nodes(peers)
            nursery.start_soon(balancer.channels.run)
            await script()
            nursery.cancel_scope.cancel()

    trio.run(main)
