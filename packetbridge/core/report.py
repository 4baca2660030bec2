"""What a packetbridge says of its flows (`common.reports`)."""

from ipaddress import IPv4Address

from common.reports import FlowReport
from common.tcp.activity import Activity
from common.wire.rewrite import Splice
from common.wire.segment import FlowKey, key_ports
from packetbridge.core.flow import Flow, Origin
from packetbridge.core.machine import State
from packetbridge.core.service import Service


def of(flow: Flow, now: float, wall_seconds: int) -> FlowReport:
    splice = None if flow.state is State.OPENING else flow.splice
    ends = flow.client, flow.backend
    return flow_report(flow.service, flow.key, flow.state.name, flow.origin, splice, ends, now, wall_seconds)


def flow_report(
    service: Service,
    key: FlowKey,
    state: str,
    origin: Origin,
    splice: Splice | None,
    ends: tuple[Activity, Activity],
    now: float,
    wall_seconds: int,
) -> FlowReport:
    """``key`` is backend to client, ``ends`` are client and backend; a flow that opens has no ``splice``.

    The next sequence numbers are those of each end's own leg.
    """
    client, backend = ends
    return FlowReport(
        client=str(IPv4Address(key[4:8])),
        client_port=key_ports(key)[1],
        vip_index=service.vip_index,
        node=str(IPv4Address(service.bridge)),
        state=state.lower(),
        age=float(wall_seconds - origin.time),
        idle=max(0.0, now - max(client.seen, backend.seen)),
        details={
            "vip": f"{IPv4Address(service.vip)}:{service.vip_port}",
            "backend": f"{IPv4Address(service.backend)}:{service.backend_port}",
            "client_isn": origin.client_isn,
            "balancer_isn": origin.balancer_isn,
            "client_phase": client.phase.name.lower(),
            "client_next_seq": client.next,
            "backend_phase": backend.phase.name.lower() if splice else None,
            "backend_next_seq": backend.next if splice else None,
            "seq_delta": splice.seq_delta if splice else None,
            "tsval_delta": splice.value_delta if splice else None,
            "backend_window_shift": splice.server_window_shift if splice else None,
            "client_window_shift": splice.client_window_shift if splice else None,
        },
    )
