"""Joining the client leg, whose server side the balancer numbered, to the backend leg.

    seq delta    Li - Si          server to client: seq += delta; client to server: ack and SACK -= delta
    value delta  X + 1 - TSval_b  server to client: TSval += delta; client to server: TSecr -= delta

X is the newest TSval of the balancer that the client echoed and TSval_b that of the backend's SYN-ACK, so the
first TSval through the splice is one tick above what the client has seen. A client that has seen nothing
newer still echoes X, which would become TSval_b - 1, a time before the backend's SYN-ACK. Linux does not
complete a handshake with it, so until the client's echo moves on it is raised to TSval_b.

The window of the backend is rescaled to the shift that the balancer promised. The client's own shift went to
the backend in the SYN; a backend that scales nothing takes the client's windows as they are, so there they
are expanded.
"""

from functools import lru_cache
from typing import NamedTuple

from common.wire import rewrite, seq, tcp_options
from common.wire.handoff import Handoff
from common.wire.rewrite import Rewrite, Splice, Target
from common.wire.segment import Segment
from common.wire.tcp_options import SynOptions
from packetbridge.core.service import Service


class Plans(NamedTuple):
    to_backend: Rewrite
    to_client: Rewrite


def join(client: Handoff, backend_isn: int, backend: SynOptions) -> Splice:
    """For what the handoff says of the client leg and the SYN-ACK of the backend leg."""
    value_delta = backend_shift = client_shift = 0
    if client.timestamps and backend.timestamps:
        value_delta = seq.add(client.timestamps.echo, 1 - backend.timestamps.value)
    if client.window_scale is not None:
        backend_shift = (backend.window_scale or 0) - client.promised_scale
        client_shift = client.window_scale if backend.window_scale is None else 0
    return Splice(seq.add(client.ack, -backend_isn), value_delta, backend_shift, client_shift)


def plans(service: Service, splice: Splice) -> Plans:
    to_backend, to_client = _targets(service)
    return Plans(Rewrite(to_backend, splice), Rewrite(to_client, splice))


def echo_of(received: Segment) -> int | None:
    """The segment's TSecr; None where there is none that can be read."""
    stamps = tcp_options.timestamps_untrusted(received.options)
    return stamps.echo if stamps else None


@lru_cache(maxsize=128)
def _targets(service: Service) -> tuple[Target, Target]:
    """Backend and VIP, which all flows of the service share."""
    bridge, backend = (service.bridge, service.vip_port), (service.backend, service.backend_port)
    vip = (service.vip, service.vip_port)
    return rewrite.to_destination(bridge, backend), rewrite.to_source(backend, vip)
