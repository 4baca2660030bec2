"""A health check in the simulation: the balancer's probe, a real packetbridge core and a model server."""

from collections.abc import Callable

from balancer.core.probe import Check, Probe, make_request
from common.wire import segment
from common.wire.offload import Packet
from tests.sim.endpoint import Connection
from tests.sim.network import CLIENT, EPOCH, HTTP, PROMISED, VIPS, Network, _sign, backend_of
from tests.sim.timeline import Alarm

OWN = CLIENT
"""Where the simulation's nodes send their answers; here it is the balancer's own address."""
PORT = 61_000
GOOD = (range(200, 400),)


class CheckedNetwork(Network):
    """What comes to `OWN` is given to the probe; other arguments are those of `Network`."""

    def __init__(
        self,
        seed: int = 1,
        timeout: float = 1.0,
        path: str = "/object/5000",
        expect: tuple[range, ...] = GOOD,
        answer_delay: float = 0.0,
        skew: int = 0,
        wall_clock: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(seed, answer_delay=answer_delay, skew=skew)
        request = make_request(path, "192.168.33.10", "1.0")
        self.check = Check(VIPS[0], HTTP, 1, self.node.bridge, request, expect, timeout)
        isns = self.chance.getrandbits(32), self.chance.getrandbits(32)
        clock = wall_clock or (lambda: EPOCH + int(self.timeline.now))
        self.probe = Probe(self.check, (OWN, PORT), isns, _sign, clock)
        self._alarm = Alarm(self.timeline, self._on_alarm)

    def begin(self) -> None:
        self._send(self.probe.begin(self.timeline.now))

    def conclude(self) -> None:
        """Let the check come to its end, and what it leaves vanish."""
        self.begin()
        self.timeline.run(30, lambda: self.probe.is_closed or self.probe.is_silent)

    def _to_client(self, packet: Packet) -> None:
        self._send(self.probe.receive(segment.parse_untrusted(packet), self.timeline.now))

    def _on_alarm(self) -> None:
        self._send(self.probe.on_timeout(self.timeline.now))

    def _send(self, packets: list[Packet]) -> None:
        for packet in packets:
            self.balancer_to_node.send(packet)
        self._alarm.set(self.probe.next_deadline())

    def answer_with(self, data: bytes, *, closes: bool = True) -> None:
        """Have the server answer each connection's first bytes so, whatever they ask for."""
        at = backend_of(self.node)
        self.node.host.listen(at, lambda: Parrot(data, closes), PROMISED)

    def left_at_the_server(self) -> int:
        """Sockets of whatever kind."""
        host = self.node.host
        return len(host.connections) + len(host.requests) + len(host.waiting)


class Parrot:
    """A connection's application that says the same to everybody."""

    def __init__(self, data: bytes, closes: bool) -> None:
        self._data, self._closes = data, closes

    def on_open(self, connection: Connection) -> None: ...

    def on_data(self, connection: Connection, data: bytes) -> None:  # noqa: ARG002
        connection.write(self._data)
        self._data = b""
        if self._closes:
            connection.close()

    def on_end(self, connection: Connection) -> None:
        connection.close()

    def on_reset(self, connection: Connection) -> None: ...
