"""Rewriting a packet of an established flow in place: the one hot function of the raw data plane.

A `Rewrite` replaces one end's address and port, sets the DSCP, and shifts sequence numbers, timestamps and
the window. What it is made of is shared: the `Target` by all flows that go there, the `Splice` by a flow's
two directions. `apply` edits the receive buffer, where the virtio_net_hdr stands immediately in front of the
IP header, and updates both checksums incrementally (RFC 1624). Where the kernel has still to compute the TCP
checksum, its field holds a pseudo-header sum and only addresses count.
"""

import struct
from typing import NamedTuple

from common.wire import checksum, dscp, ipv4, offload, seq, tcp, tcp_options
from common.wire.offload import Packet

_MASK = seq.MODULUS - 1
_MAX_WINDOW = 0xFFFF
_WORD = struct.Struct(">H")
_SHIFTED = struct.Struct(">IIHHH")
"""Seq, ack, offset and flags, window and checksum, at offset 4 of the TCP header."""
_PAIR = struct.Struct(">II")
_Deltas = tuple[int, int, int, int]
"""Of seq, ack, TSval and TSecr."""


class Target(NamedTuple):
    """The end that takes the place of another."""

    address: bytes
    port: bytes
    """Two bytes, network order."""
    address_at: int
    """Offset from the IP header of the address that is replaced."""
    port_at: int
    dscp: int
    """The new DSCP as it stands in the TOS byte, ECN bits zero."""
    address_delta: int
    ports_delta: int


class Splice(NamedTuple):
    """How two legs differ. Deltas, modulo 2^32, are what the server's numbers grow by for the client."""

    seq_delta: int
    value_delta: int
    """Of TSval."""
    server_window_shift: int
    """Left shift of the server's window field; negative is a right shift."""
    client_window_shift: int
    """The same of the client's."""


class Rewrite(NamedTuple):
    """Towards a server the numbers that it acknowledges and echoes change, from it those that it sends.

    SACK blocks move with the acknowledgment number.
    """

    target: Target
    splice: Splice | None = None
    """None where nothing changes beyond address, port and DSCP."""


def to_destination(old: tuple[bytes, int], new: tuple[bytes, int], *, index: int = 0) -> Target:
    """For client to server: (address, port) of the destination; ``index`` becomes the DSCP."""
    return _target(old, new, ipv4.DESTINATION_AT, ipv4.HEADER_SIZE + 2, index)


def to_source(old: tuple[bytes, int], new: tuple[bytes, int]) -> Target:
    """For server to client: (address, port) of the source; the DSCP is cleared."""
    return _target(old, new, ipv4.SOURCE_AT, ipv4.HEADER_SIZE, 0)


def apply(plan: Rewrite, buffer: bytearray, at: int) -> None:
    """Rewrite the unfragmented TCP packet without IP options whose IP header stands at ``at``.

    The caller has seen that its TCP header lies within it. Malformed TCP options are left as they are.
    """
    (address, port, address_at, port_at, new_dscp, address_delta, ports_delta), splice = plan
    tos = buffer[at + 1]
    new_tos = new_dscp | tos & dscp.ECN_MASK
    buffer[at + 1] = new_tos
    (ip_check,) = _WORD.unpack_from(buffer, at + 10)
    _WORD.pack_into(buffer, at + 10, checksum.update(ip_check, address_delta + new_tos - tos))
    address_at += at
    port_at += at
    buffer[address_at : address_at + 4] = address
    buffer[port_at : port_at + 2] = port

    tcp_at = at + ipv4.HEADER_SIZE
    delta = address_delta + ports_delta
    if splice is not None:
        seq_delta, value_delta, server_shift, client_shift = splice
        if port_at == tcp_at:
            delta += _shift(buffer, tcp_at, (seq_delta, 0, value_delta, 0), server_shift)
        else:
            delta += _shift(buffer, tcp_at, (0, -seq_delta, 0, -value_delta), client_shift)
    check_at = tcp_at + tcp.CHECKSUM_AT
    (check,) = _WORD.unpack_from(buffer, check_at)
    if buffer[at - offload.SIZE] & offload.NEEDS_CHECKSUM:
        check = checksum.update_partial(check, address_delta)
    else:
        check = checksum.update(check, delta)
    _WORD.pack_into(buffer, check_at, check)


def applied(plan: Rewrite, packet: Packet) -> Packet:
    """`apply` on a packet that does not stand in the receive buffer."""
    buffer = bytearray(offload.emit(packet.offload) + packet.data)
    apply(plan, buffer, offload.SIZE)
    return Packet(bytes(buffer[offload.SIZE :]), packet.offload)


def with_echo(packet: Packet, echo: int) -> Packet:
    """The TCP packet with this TSecr, if it has timestamps, its checksum as right as it was."""
    at = _echo_at(packet.data)
    return packet if at is None else _with_echo_at(packet, at, echo)


def with_raised_echo(packet: Packet, floor: int) -> Packet:
    """The packet, with its TSecr raised to ``floor`` if it is before that."""
    at = _echo_at(packet.data)
    if at is None or seq.ge(int.from_bytes(packet.data[at : at + 4], "big"), floor):
        return packet
    return _with_echo_at(packet, at, floor)


def _with_echo_at(packet: Packet, at: int, echo: int) -> Packet:
    made = bytearray(packet.data)
    made[at : at + 4] = echo.to_bytes(4, "big")
    if not packet.offload.needs_checksum:
        check_at = ipv4.HEADER_SIZE + tcp.CHECKSUM_AT
        (check,) = _WORD.unpack_from(made, check_at)
        delta = echo - int.from_bytes(packet.data[at : at + 4], "big")
        _WORD.pack_into(made, check_at, checksum.update(check, delta * (256 if at % 2 else 1)))
    return packet._replace(data=bytes(made))


def _echo_at(data: bytes) -> int | None:
    options_at = ipv4.HEADER_SIZE + tcp.HEADER_SIZE
    end = ipv4.HEADER_SIZE + (data[ipv4.HEADER_SIZE + tcp.OFFSET_AT] >> 4) * 4
    at = tcp_options.timestamps_at(data[options_at:end])
    return None if at is None else options_at + at + 4


def _shift(buffer: bytearray, tcp_at: int, deltas: _Deltas, window_shift: int) -> int:
    """Move numbers, window and options; returns the delta of the checksum."""
    seq_delta, ack_delta, value_delta, echo_delta = deltas
    seq_number, ack, offset_flags, window, check = _SHIFTED.unpack_from(buffer, tcp_at + 4)
    new_seq = seq_number + seq_delta & _MASK
    new_ack = ack + ack_delta & _MASK if offset_flags & tcp.ACK else ack
    new_window = min(window << window_shift, _MAX_WINDOW) if window_shift >= 0 else window >> -window_shift
    _SHIFTED.pack_into(buffer, tcp_at + 4, new_seq, new_ack, offset_flags, new_window, check)
    delta: int = new_seq - seq_number + new_ack - ack + new_window - window

    size = offset_flags >> 12 << 2
    options_at = tcp_at + tcp.HEADER_SIZE
    if size == 32 and buffer[options_at : options_at + 4] == tcp_options.USUAL_TIMESTAMPS:
        return delta + _add_pair(buffer, options_at + 4, value_delta, echo_delta)
    return delta + _shift_options(buffer, options_at, tcp_at + size, deltas)


def _shift_options(buffer: bytearray, at: int, end: int, deltas: _Deltas) -> int:
    """Shift timestamps and SACK blocks between ``at``, which is even within the packet, and ``end``."""
    _, ack_delta, value_delta, echo_delta = deltas
    delta = 0
    for kind, option_at, length in tcp_options.walk(buffer, at, end):
        weight = 256 if (option_at - at) % 2 else 1
        if kind == tcp_options.TIMESTAMPS and length == 10:
            delta += weight * _add_pair(buffer, option_at + 2, value_delta, echo_delta)
        elif kind == tcp_options.SACK and ack_delta and length % 8 == 2:
            for block in range(option_at + 2, option_at + length, 8):
                delta += weight * _add_pair(buffer, block, ack_delta, ack_delta)
    return delta


def _add_pair(buffer: bytearray, at: int, first_delta: int, second_delta: int) -> int:
    """Add to two 32-bit numbers; returns by how much their sum changed."""
    first, second = _PAIR.unpack_from(buffer, at)
    new_first, new_second = first + first_delta & _MASK, second + second_delta & _MASK
    _PAIR.pack_into(buffer, at, new_first, new_second)
    return int(new_first - first + new_second - second)


def _target(
    old: tuple[bytes, int], new: tuple[bytes, int], address_at: int, port_at: int, index: int
) -> Target:
    return Target(
        address=new[0],
        port=new[1].to_bytes(2, "big"),
        address_at=address_at,
        port_at=port_at,
        dscp=dscp.with_index(0, index),
        address_delta=checksum.word_sum(new[0]) - checksum.word_sum(old[0]),
        ports_delta=new[1] - old[1],
    )
