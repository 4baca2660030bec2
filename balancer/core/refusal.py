"""Segments of a connection that the balancer answers by itself (docs/design.md section 3).

An answer is one segment with FIN that acknowledges all contiguous bytes of the client. It is built again
for each retransmission, until the client has acknowledged it; after that only the client's bytes and FIN are
acknowledged.
"""

from balancer.core.connection import Answered, Handshake
from balancer.core.handshake import answer_stamps, answering
from balancer.core.service import Service
from common.wire import seq, tcp
from common.wire.segment import Segment


def answer(service: Service, segment: Segment, answered: Answered) -> Segment:
    """The whole answer, FIN included, in reply to ``segment``."""
    return answering(
        segment,
        seq_number=answered.handshake.acknowledged,
        ack=answered.next,
        flags=tcp.ACK | tcp.FIN | (tcp.PSH if answered.payload else 0),
        window=_window(service, answered.handshake),
        options=answer_stamps(segment),
        payload=answered.payload,
    )


def advanced(answered: Answered, segment: Segment) -> Answered:
    """With what the segment adds to the client's contiguous bytes."""
    end = seq.add(segment.seq, segment.length)
    if seq.le(segment.seq, answered.next) and seq.gt(end, answered.next):
        return answered._replace(next=end)
    return answered


def reply(service: Service, segment: Segment, answered: Answered) -> Segment | None:
    """What the segment needs: the answer again, an acknowledgment, or nothing."""
    is_probe = segment.length == 0 and seq.lt(segment.seq, answered.next)
    if segment.length == 0 and not is_probe:
        return None
    if segment.ack != answered.closed:
        return answer(service, segment, answered)
    return _acknowledge(service, segment, answered.handshake, answered.closed, answered.next)


def acknowledge_nothing(service: Service, segment: Segment, handshake: Handshake) -> Segment:
    """The ACK that a keepalive probe wants; it acknowledges no byte."""
    return _acknowledge(service, segment, handshake, handshake.acknowledged, handshake.first)


def _acknowledge(
    service: Service, segment: Segment, handshake: Handshake, number: int, acknowledged: int
) -> Segment:
    return answering(
        segment,
        seq_number=number,
        ack=acknowledged,
        flags=tcp.ACK,
        window=_window(service, handshake),
        options=answer_stamps(segment),
    )


def _window(service: Service, handshake: Handshake) -> int:
    """The preamble window as a header field: scaled, once both sides have agreed on a scale."""
    scale = 0 if handshake.window_scale is None else service.promised_scale
    return service.preamble_window >> scale
