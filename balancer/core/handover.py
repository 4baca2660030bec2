"""Handing a connection to its node (docs/design.md section 3, step 4, and section 4)."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from balancer.core.connection import Handshake
from balancer.core.service import Node, Service
from common.wire import dscp, handoff, seq, tcp, tcp_options
from common.wire import segment as segments
from common.wire.handoff import Handoff
from common.wire.offload import GSO_NONE
from common.wire.segment import Segment

_MAX_WINDOW = 0xFFFF


class Parcel(NamedTuple):
    """A first payload on its way: the handoff, and what of a superpacket does not fit into it."""

    handoff: Segment
    rest: tuple[Segment, ...]
    """Addressed to the VIP still."""


def pack(
    service: Service,
    node: Node,
    handshake: Handshake,
    segment: Segment,
    sign: Callable[[Handoff], Handoff],
    wall_seconds: int,
) -> Parcel | None:
    """The parcel for the segment at the stream's start; None if it must be cut and its checksum is wrong."""
    pieces = list(_cut(segment, service.max_payload))
    if len(pieces) > 1 and not segments.checksum_holds(segment):
        return None
    first, *rest = pieces
    message = sign(
        Handoff(
            client=segment.source,
            node=node.address,
            client_port=segment.source_port,
            service_port=segment.destination_port,
            vip_index=service.vip_index,
            seq=handshake.client_isn,
            ack=handshake.isn,
            window=min(segment.window << (handshake.window_scale or 0), _MAX_WINDOW),
            mss=handshake.mss,
            window_scale=handshake.window_scale,
            sack_permitted=handshake.sack_permitted,
            timestamps=tcp_options.timestamps_untrusted(segment.options) if handshake.timestamps else None,
            promised_scale=0 if handshake.window_scale is None else service.promised_scale,
            fin=bool(first.flags & tcp.FIN),
            time=handoff.time_of(wall_seconds),
            payload=first.payload,
            ecn=dscp.ecn_of(segment.tos),
        )
    )
    return Parcel(_single(segments.with_checksum_of(handoff.emit(message), first)), tuple(rest))


def _cut(segment: Segment, size: int) -> Iterator[Segment]:
    """The segment in pieces of at most ``size`` bytes; PSH and FIN go with the last one."""
    payload = segment.payload
    if len(payload) <= size:
        yield segment
        return
    whole = segment._replace(checksum=None) if not segment.offload.needs_checksum else segment
    for at in range(0, len(payload), size):
        last = at + size >= len(payload)
        piece = whole._replace(
            seq=seq.add(segment.seq, at),
            payload=payload[at : at + size],
            flags=segment.flags if last else segment.flags & ~(tcp.PSH | tcp.FIN),
        )
        yield _single(segments.with_checksum_of(piece, whole))


def _single(segment: Segment) -> Segment:
    """One packet, not to be cut by the kernel even if the client's superpacket stood for smaller ones."""
    return segment._replace(offload=segment.offload._replace(gso_type=GSO_NONE, gso_size=0))
