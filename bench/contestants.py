"""Who is measured: ways for the client to reach one NGINX."""

from dataclasses import dataclass

from lab import Topology


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    host: str
    port: int

    def url(self, path: str) -> str:
        """`path` begins with a slash."""
        return f"http://{self.host}:{self.port}{path}"


@dataclass(frozen=True, slots=True)
class Field:
    """All contestants of a comparison; `direct` is what the others are divided by."""

    direct: Contestant
    balanced: Contestant
    """The one that the thresholds are for."""
    again: Contestant
    """`direct` under another name: what its ratio to `direct` differs from 1 is noise."""

    @property
    def in_turn(self) -> tuple[Contestant, ...]:
        return (self.direct, self.balanced, self.again)


def field_of(topology: Topology) -> Field:
    """Every workload asks for one path only, so through the balancer, too, one NGINX has all of the load.

    Direct connections go to NGINX's second address: all replies from the first one pass the packetbridge.
    """
    service = topology.service
    backend = str(topology.nodes[0].second_backend)
    return Field(
        direct=Contestant("direct", backend, service.port),
        balanced=Contestant("l3dsr-raw", str(service.vip), service.port),
        again=Contestant("direct again", backend, service.port),
    )
