"""Reads the TCP packets that pass on all interfaces of the host, arriving and leaving (packet(7)).

One socket bound to no interface sees those that come later, too, and outlives those that go. Cooked packets
(SOCK_DGRAM) begin with the IP header whatever the link is.
"""

import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from common.net import cbpf
from common.net.cbpf import Instruction
from common.net.errors import HostError
from common.wire import ipv4, segment
from common.wire.errors import WireError
from common.wire.offload import Packet
from common.wire.segment import Segment

MAX_ADDRESSES = 60
"""Of a filter: its jumps reach over 255 instructions."""
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_PACKET_OUTGOING = 4
_STATISTICS = struct.Struct("=II")
_TIMESPEC = struct.Struct("@qq")
_BUFFER_BYTES = 16 << 20
_MAX_PACKET = 65536

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x45, 0x06
_ETHERTYPE = 0xFFFFF000
_IPV4, _FRAGMENT_OFFSET, _DSCP = 0x0800, 0x1FFF, 0xFC
_TAKE_NOTHING = Instruction(_RETURN, 0, 0, 0)


class Passing(NamedTuple):
    """A packet as it passed."""

    time: float
    """Wall-clock seconds, by the kernel."""
    interface: str
    """Empty if it is gone by now."""
    is_leaving: bool
    data: bytes
    segment: Segment


class Passage:
    """Owns its socket."""

    def __init__(self, addresses: Sequence[bytes]) -> None:
        """Packets to or from ``addresses`` (4 bytes each) and all that have a DSCP; `HostError`."""
        self.lost = 0
        """Packets for which the socket's buffer had no room."""
        self.unreadable = 0
        """TCP packets that are cut, have IP options, or a wrong IP header checksum."""
        try:
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_ALL))
        except PermissionError:
            raise HostError("not permitted to see packets: use sudo (CAP_NET_RAW is missing)") from None
        except OSError as error:
            raise HostError(f"cannot open a packet socket: {error.strerror}") from None
        self._attach([_TAKE_NOTHING])
        self._discard()
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:  # without CAP_NET_ADMIN the buffer stays small
            pass
        self._attach(program(addresses))

    def close(self) -> None:
        self.count_lost()
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def waiting(self) -> Iterator[Passing]:
        """What has come so far."""
        while True:
            try:
                data, notes, _, sender = self._socket.recvmsg(_MAX_PACKET, socket.CMSG_SPACE(_TIMESPEC.size))
            except BlockingIOError:
                return
            interface, _, packet_type, *_ = sender
            try:
                parsed = segment.parse_untrusted(Packet(data))
            except WireError:
                self.unreadable += 1
                continue
            yield Passing(_time_of(notes), interface, packet_type == _PACKET_OUTGOING, data, parsed)

    def _attach(self, instructions: list[Instruction]) -> None:
        option, code = cbpf.socket_option(instructions)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
        del code

    def _discard(self) -> None:
        """What has come before there was a filter."""
        try:
            while True:
                self._socket.recv(1)
        except BlockingIOError:
            pass

    def count_lost(self) -> None:
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        self.lost += _STATISTICS.unpack(statistics)[1]


def program(addresses: Sequence[bytes]) -> list[Instruction]:
    """A filter on packets that begin with the IP header; too many ``addresses`` stand for all of TCP."""
    words = [int.from_bytes(address, "big") for address in addresses]
    tests = [(_LOAD_BYTE, 1, _JUMP_SET, [_DSCP])]
    if len(words) <= MAX_ADDRESSES:
        tests += [(_LOAD_WORD, at, _JUMP_EQUAL, words) for at in (12, 16) if words]
    else:
        tests = [(_LOAD_BYTE, 9, _JUMP_EQUAL, [ipv4.PROTOCOL_TCP])]
    size = sum(1 + len(values) for _, _, _, values in tests)
    head = [
        Instruction(_LOAD_HALF, 0, 0, _ETHERTYPE),
        Instruction(_JUMP_EQUAL, 0, size + 4, _IPV4),
        Instruction(_LOAD_HALF, 0, 0, 6),
        Instruction(_JUMP_SET, size + 2, 0, _FRAGMENT_OFFSET),
        Instruction(_LOAD_BYTE, 0, 0, 9),
        Instruction(_JUMP_EQUAL, 0, size, ipv4.PROTOCOL_TCP),
    ]
    body: list[Instruction] = []
    for load, at, jump, values in tests:
        body.append(Instruction(load, 0, 0, at))
        for value in values:
            body.append(Instruction(jump, size - len(body), 0, value))
    # Behind the tests: what none of them took is dropped, the others jump over that.
    return [*head, *body, _TAKE_NOTHING, Instruction(_RETURN, 0, 0, 0xFFFFFFFF)]


def wait(passage: Passage, output: int, seconds: float) -> bool:
    """Until packets are there. Whether to go on: not when nobody reads ``output``, a file descriptor."""
    poll = select.poll()
    poll.register(passage, select.POLLIN)
    poll.register(output, 0)
    return all(descriptor != output for descriptor, _ in poll.poll(seconds * 1000))


def _time_of(notes: list[tuple[int, int, bytes]]) -> float:
    for level, kind, data in notes:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack(data[: _TIMESPEC.size])
            return float(seconds + nanoseconds / 1e9)
    raise AssertionError("the kernel stamps each packet")
