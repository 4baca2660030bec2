"""The RST that answers a segment for which there is no connection (RFC 9293 section 3.10.7.1)."""

from common.wire import seq, tcp
from common.wire.segment import Segment


def answer(segment: Segment) -> Segment | None:
    """The RST back to the segment's sender, from where it was sent to; None in answer to a RST."""
    if segment.flags & tcp.RST:
        return None
    if segment.flags & tcp.ACK:
        number, acknowledged, flags = segment.ack, 0, tcp.RST
    else:
        number, acknowledged, flags = 0, seq.add(segment.seq, segment.length), tcp.RST | tcp.ACK
    return Segment(
        source=segment.destination,
        destination=segment.source,
        source_port=segment.destination_port,
        destination_port=segment.source_port,
        seq=number,
        ack=acknowledged,
        flags=flags,
        window=0,
    )
