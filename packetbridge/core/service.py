"""What a packetbridge serves, and how much it may remember."""

from collections.abc import Sequence
from typing import NamedTuple

from common.tcp.activity import IDLE_SECONDS, Phase
from common.wire import dscp
from common.wire.segment import FlowKey, flow_key, key_ports


class Service(NamedTuple):
    """One VIP of this node. Addresses are 4 bytes in network order."""

    vip_index: int
    """The DSCP that stands for the VIP on the way from the balancer."""
    vip: bytes
    vip_port: int
    bridge: bytes
    """Where the balancer sends tagged packets."""
    backend: bytes
    backend_port: int

    def client_key(self, backend_key: FlowKey) -> FlowKey:
        """The key of client to bridge for that of backend to client."""
        return flow_key(backend_key[4:8], key_ports(backend_key)[1], self.bridge, self.vip_port)

    def backend_key(self, client: bytes, client_port: int) -> FlowKey:
        """Backend to client: what names a flow on this node, since no two services share a backend."""
        return flow_key(self.backend, self.backend_port, client, client_port)


class Limits(NamedTuple):
    """Bounds of what strangers and clients can make us keep."""

    flows: int = 100_000
    tombstones: int = 65_536
    strangers: int = 4_096
    waiting_per_flow: int = 64 << 10
    """Bytes of IP packets that wait for one flow's backend."""
    waiting_in_all: int = 16 << 20
    resets_per_second: float = 1_000.0
    """RSTs to clients of unknown flows; as many may go at once."""


class Timeouts(NamedTuple):
    """In seconds."""

    idle: float = IDLE_SECONDS[Phase.OPEN]
    """How long an open flow may be silent before the kernel is asked for its socket."""

    def of_phase(self, phase: Phase) -> float:
        """How long an end in this phase may be silent."""
        return self.idle if phase in (Phase.OPEN, Phase.FIN_AHEAD) else min(IDLE_SECONDS[phase], self.idle)


def check(services: Sequence[Service]) -> None:
    """Raises ValueError where two services could not be told apart, or an index is no DSCP."""
    indices: set[int] = set()
    backends: set[tuple[bytes, int]] = set()
    for service in services:
        backend = (service.backend, service.backend_port)
        if not dscp.MIN_INDEX <= service.vip_index <= dscp.MAX_INDEX:
            raise ValueError(f"VIP index {service.vip_index} is not within 1 to 63")
        if service.vip_index in indices:
            raise ValueError(f"two VIPs have the index {service.vip_index}")
        if backend in backends:
            address = ".".join(map(str, service.backend))
            raise ValueError(f"two VIPs share the backend {address}:{service.backend_port}")
        indices.add(service.vip_index)
        backends.add(backend)
