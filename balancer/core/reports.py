"""What the balancer says of a flow (`common.reports`)."""

from ipaddress import IPv4Address

from balancer.core.connection import Flow
from balancer.core.machine import State
from balancer.core.service import Service
from common.reports import FlowReport
from common.wire.segment import FlowKey, key_ports


def flow_report(service: Service, key: FlowKey, flow: Flow, now: float) -> FlowReport:
    """``key`` is client to VIP."""
    handshake = flow.handshake
    return FlowReport(
        client=str(IPv4Address(key[:4])),
        client_port=key_ports(key)[0],
        vip_index=service.vip_index,
        node=str(IPv4Address(flow.node.address)),
        state=State.ESTABLISHED.value,
        age=now - flow.begun,
        idle=now - flow.activity.seen,
        details={
            "service": f"{IPv4Address(service.vip)}:{service.port}",
            "client_isn": handshake.client_isn,
            "isn": handshake.isn,
            "mss": handshake.mss,
            "window_scale": handshake.window_scale,
            "sack": handshake.sack_permitted,
            "timestamps": handshake.timestamps,
            "next_seq": flow.activity.next,
            "phase": flow.activity.phase.name.lower(),
            "contested": now < flow.contested_until,
        },
    )
