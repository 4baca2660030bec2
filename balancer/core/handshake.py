"""Shaking hands with a client (docs/design.md section 3; RFC 9293 section 3.5; RFC 4987 section 3.6)."""

from collections.abc import Iterable

from balancer.core.connection import Handshake, Hello
from balancer.core.flow_table import HandshakeTable
from balancer.core.service import Service, keys_among
from common.wire import seq, syncookie, tcp, tcp_options
from common.wire.errors import WireError
from common.wire.mac import Mac
from common.wire.segment import FlowKey, Segment
from common.wire.syncookie import StampedOptions
from common.wire.tcp_options import SynOptions, Timestamps

TIMESTAMPS_SIZE = 12
"""Bytes that the timestamps option and its padding take from every segment."""


class Greeter:
    """Answers SYNs, and recognises who has been answered."""

    def __init__(self, mac: Mac, half_open: HandshakeTable[Hello]) -> None:
        self._mac = mac
        self._half_open = half_open

    def answer_syn(self, service: Service, segment: Segment, now: float) -> Segment:
        """The SYN-ACK. Data in the SYN and what its options ask beyond our five are ignored."""
        said = _said(segment)
        self._half_open.delete(segment.key)  # so that this handshake gets a whole life of its own
        remembered = self._half_open.put(segment.key, Hello(segment.seq, said), now)
        if said.timestamps is None and not remembered:
            said = said._replace(window_scale=None, sack_permitted=False)
        mss = said.mss or tcp_options.DEFAULT_MSS
        isn = syncookie.make(self._mac, segment.key, segment.seq, mss, _period(now))
        return answering(
            segment,
            seq_number=isn,
            ack=seq.add(segment.seq, 1),
            flags=tcp.SYN | tcp.ACK,
            window=service.preamble_window,
            options=tcp_options.emit_syn(_offer(service, said, now)),
        )

    def recognise(self, segment: Segment, now: float) -> Handshake | None:
        """The handshake that this segment proves to be completed, if there was one.

        Its sequence number is the first after the client's ISN, or that itself (a keepalive probe), or, where
        the SYN is remembered, anything behind.
        """
        isn = seq.add(segment.ack, -1)
        hello = self._half_open.get(segment.key)
        candidates = {seq.add(segment.seq, -1), segment.seq}
        if hello is not None:
            candidates.add(hello.client_isn)
        for client_isn in candidates:
            mss = syncookie.check(self._mac, segment.key, client_isn, isn, _period(now))
            if mss is not None:
                known = hello.options if hello and hello.client_isn == client_isn else None
                return _handshake(segment, client_isn, isn, mss, known)
        return None

    def forget(self, key: FlowKey, handshake: Handshake) -> None:
        """The handshake is complete, and remembered elsewhere."""
        hello = self._half_open.get(key)
        if hello is not None and hello.client_isn == handshake.client_isn:
            self._half_open.delete(key)

    def awaits(self, key: FlowKey) -> bool:
        """Whether a SYN of the 4-tuple has been answered whose handshake is not complete."""
        return self._half_open.get(key) is not None

    def expire(self, now: float) -> None:
        self._half_open.expire(now)

    def next_deadline(self) -> float | None:
        return self._half_open.next_deadline()

    def __len__(self) -> int:
        return len(self._half_open)

    def forget_services(self, services: Iterable[Service]) -> None:
        """Nobody who has been answered for them is known any more."""
        for key in keys_among(self._half_open.keys(), services):
            self._half_open.delete(key)


def answering(
    segment: Segment,
    *,
    seq_number: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes = b"",
    payload: bytes = b"",
) -> Segment:
    """A segment of ours back to where ``segment`` came from."""
    return Segment(
        source=segment.destination,
        destination=segment.source,
        source_port=segment.destination_port,
        destination_port=segment.source_port,
        seq=seq_number,
        ack=ack,
        flags=flags,
        window=window,
        options=options,
        payload=payload,
    )


def answer_stamps(segment: Segment) -> bytes:
    """Timestamps for an answer to ``segment``.

    Our TSval stays what the client last echoed, since a node's continues it.
    """
    stamps = tcp_options.timestamps_untrusted(segment.options)
    return tcp_options.emit_timestamps(stamps and Timestamps(stamps.echo, stamps.value))


def _offer(service: Service, said: SynOptions, now: float) -> SynOptions:
    mss = service.max_payload
    stamps = None
    if said.timestamps is not None:
        mss += TIMESTAMPS_SIZE
        carried = StampedOptions(said.window_scale, said.sack_permitted)
        stamps = Timestamps(syncookie.stamp(clock_ticks(now), carried), said.timestamps.value)
    scale = None if said.window_scale is None else service.promised_scale
    return SynOptions(mss, scale, said.sack_permitted, stamps)


def _said(segment: Segment) -> SynOptions:
    """A SYN's options; malformed ones count as none."""
    try:
        return tcp_options.syn_options(tcp_options.parse_untrusted(segment.options))
    except WireError:
        return SynOptions()


def _handshake(segment: Segment, client_isn: int, isn: int, mss: int, known: SynOptions | None) -> Handshake:
    stamps = tcp_options.timestamps_untrusted(segment.options)
    if known is not None:
        mss = known.mss or tcp_options.DEFAULT_MSS
        stamped = known.timestamps is not None
        return Handshake(client_isn, isn, mss, known.window_scale, known.sack_permitted, stamped)
    carried = StampedOptions(None, False) if stamps is None else syncookie.read_stamp(stamps.echo)
    return Handshake(client_isn, isn, mss, carried.window_scale, carried.sack_permitted, stamps is not None)


def _period(now: float) -> int:
    return int(now) // syncookie.PERIOD_SECONDS


def clock_ticks(now: float) -> int:
    """The clock of our timestamps: milliseconds (RFC 7323 section 5.4)."""
    return int(now * 1000) % seq.MODULUS
