"""What the balancer says of a connection (`common.reports`)."""

from ipaddress import IPv4Address

from balancer.core.connection import Answered, Collecting, Flow, Handshake
from balancer.core.connections import Connections
from balancer.core.machine import State
from balancer.core.service import Service
from common.reports import FlowReport
from common.wire.segment import FlowKey, key_ports

_Detail = int | float | str | bool | None


def connection_report(
    service: Service, key: FlowKey, connections: Connections, now: float
) -> FlowReport | None:
    """Of a flow, or of a connection that has no node; None for one that is half open or not known."""
    if (flow := connections.flows.get(key)) is not None:
        return flow_report(service, key, flow, now)
    if (collecting := connections.collecting.get(key)) is not None:
        return _without_node(service, key, State.COLLECTING, collecting.handshake, _held(collecting))
    if (answered := connections.answered.get(key)) is not None:
        return _without_node(service, key, State.ANSWERED, answered.handshake, _said(answered))
    if (handshake := connections.verified.get(key)) is not None:
        return _without_node(service, key, State.VERIFIED, handshake, {})
    return None


def flow_report(service: Service, key: FlowKey, flow: Flow, now: float) -> FlowReport:
    """``key`` is client to VIP."""
    return FlowReport(
        client=str(IPv4Address(key[:4])),
        client_port=key_ports(key)[0],
        vip_index=service.vip_index,
        node=str(IPv4Address(flow.node.address)),
        state=State.ESTABLISHED.value,
        age=now - flow.begun,
        idle=now - flow.activity.seen,
        details={
            **_negotiated(service, flow.handshake),
            "next_seq": flow.activity.next,
            "phase": flow.activity.phase.name.lower(),
            "contested": now < flow.contested_until,
        },
    )


def _without_node(
    service: Service, key: FlowKey, state: State, handshake: Handshake, details: dict[str, _Detail]
) -> FlowReport:
    return FlowReport(
        client=str(IPv4Address(key[:4])),
        client_port=key_ports(key)[0],
        vip_index=service.vip_index,
        node="",
        state=state.value,
        age=None,
        idle=None,
        details={**_negotiated(service, handshake), **details},
    )


def _negotiated(service: Service, handshake: Handshake) -> dict[str, _Detail]:
    return {
        "service": f"{IPv4Address(service.vip)}:{service.port}",
        "client_isn": handshake.client_isn,
        "isn": handshake.isn,
        "mss": handshake.mss,
        "window_scale": handshake.window_scale,
        "sack": handshake.sack_permitted,
        "timestamps": handshake.timestamps,
    }


def _held(collecting: Collecting) -> dict[str, _Detail]:
    return {"segments_held": len(collecting.segments), "bytes_in_order": len(collecting.prefix)}


def _said(answered: Answered) -> dict[str, _Detail]:
    """The answer's status line."""
    return {
        "answer": answered.payload.partition(b"\r\n")[0].decode("ascii", errors="backslashreplace") or None
    }
