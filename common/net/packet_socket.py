"""The tap: a packet socket that sees what arrives on one interface, before the host's own rules (packet(7)).

It is bound to ETH_P_ALL: a socket bound to ETH_P_IP gets nothing where a rule at the ingress hook drops. With
PACKET_VNET_HDR a superpacket of generic receive offload comes in one piece, and a checksum that is
still to be computed says so. Such a header counts from the link header; it is shifted to count from the IP
header, as a TUN wants it.
"""

import errno
import socket
import struct
from collections.abc import Iterable
from functools import lru_cache

from common.net import cbpf
from common.net.buffer import IP_AT, MAX_LINK_HEADER_SIZE, VNET_AT, VNET_SIZE
from common.net.errors import HostError
from common.net.intake import Intake
from common.net.interfaces import Interface, LinkType
from common.wire import ipv4, offload

_LINK_HEADER_SIZES = {
    LinkType.ETHERNET: MAX_LINK_HEADER_SIZE,
    LinkType.LOOPBACK: MAX_LINK_HEADER_SIZE,
    LinkType.NONE: 0,
    LinkType.PPP: 0,
    LinkType.RAW_IP: 0,
    LinkType.IPIP_TUNNEL: 0,
    LinkType.GRE_TUNNEL: 0,
}

_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_SOL_PACKET = 263
_PACKET_STATISTICS, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 6, 15, 23
_ETH_P_ALL = 3
_STATISTICS = struct.Struct("=II")
RECEIVE_BUFFER_BYTES = 64 << 20


class Tap:
    """Owns its socket. ``malformed`` and ``errors`` count packets that never reached the daemon."""

    def __init__(
        self, interface: Interface, intake: Intake, receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES
    ) -> None:
        """Takes what ``intake`` says from ``interface``; `HostError` where that cannot be."""
        self.interface = interface
        self.malformed = 0
        """Cut, or an IP total length beyond what came."""
        self.errors = 0
        """Superpackets of a kind that a virtio_net_hdr cannot describe, and interfaces gone down."""
        self._kernel_drops = 0
        self._link_header_size = link_header_size(interface)
        self._receive_at = VNET_AT - self._link_header_size
        self._buffer = bytearray()
        self._target = self._header = memoryview(self._buffer)
        try:
            self._socket = _open(interface, intake, self._link_header_size, receive_buffer_bytes)
        except OSError as error:
            raise HostError(f"cannot tap interface {interface.name}: {error.strerror}") from error

    @property
    def is_bound(self) -> bool:
        """False when the interface has been deleted, even if another one has its index now."""
        return bool(self._socket.getsockname()[0])

    def take(self, intake: Intake) -> None:
        """From now on what this one says; no packet sees neither filter nor both. `HostError`."""
        try:
            _attach_filter(self._socket, intake, self._link_header_size)
        except OSError as error:
            raise HostError(f"cannot tap interface {self.interface.name}: {error.strerror}") from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive_into(self, buffer: bytearray) -> int:
        """One packet: virtio_net_hdr at `VNET_AT`, IP header at `IP_AT`; returns the IP total length.

        0 is a packet that was no good and is counted. BlockingIOError: there is none.
        """
        if buffer is not self._buffer:
            self._buffer = buffer
            self._target = memoryview(buffer)[self._receive_at :]
            self._header = self._target[:VNET_SIZE]
        try:
            received = self._socket.recv_into(self._target)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EBADF:
                raise
            self.errors += 1
            return 0
        length = buffer[IP_AT + 2] << 8 | buffer[IP_AT + 3]
        if not ipv4.HEADER_SIZE <= length <= received - VNET_SIZE - self._link_header_size:
            self.malformed += 1
            return 0
        if self._link_header_size:
            buffer[VNET_AT:IP_AT] = _without_link_header(bytes(self._header), self._link_header_size)
        return length

    def kernel_drops(self) -> int:
        """How many packets the kernel has dropped so far because the receive buffer was full."""
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        self._kernel_drops += _STATISTICS.unpack(statistics)[1]
        return self._kernel_drops


def link_header_size(interface: Interface) -> int:
    """Bytes in front of the IP header on this interface; `HostError` for a link type that is not known."""
    try:
        return _LINK_HEADER_SIZES[LinkType(interface.link_type)]
    except ValueError:
        raise HostError(
            f"interface {interface.name} has link type {interface.link_type}, which cannot be tapped: "
            "take its addresses away or set it down"
        ) from None


def by_link_type(found: Iterable[Interface]) -> tuple[list[Interface], list[str]]:
    """Those of which `link_header_size` knows the link type, and what is to be said of the others."""
    known, unknown = [], []
    for interface in found:
        try:
            link_header_size(interface)
        except HostError as error:
            unknown.append(str(error))
        else:
            known.append(interface)
    return known, unknown


def _open(
    interface: Interface, intake: Intake, link_header_size: int, receive_buffer_bytes: int
) -> socket.socket:
    """Protocol 0 receives nothing, so that no packet slips in before the filter is attached."""
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        _attach_filter(tap, intake, link_header_size)
        tap.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        tap.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer_bytes)
        tap.bind((interface.name, _ETH_P_ALL))
    except OSError:
        tap.close()
        raise
    return tap


def _attach_filter(tap: socket.socket, intake: Intake, link_header_size: int) -> None:
    option, code = cbpf.socket_option(cbpf.program(intake, link_header_size))
    tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
    del code


@lru_cache(maxsize=1024)
def _without_link_header(header: bytes, link_header_size: int) -> bytes:
    """The virtio_net_hdr with its offsets counted from the IP header. Few different ones occur."""
    packet = offload.parse(header)
    if packet.gso_type != offload.GSO_NONE:
        packet = packet._replace(header_length=max(packet.header_length - link_header_size, 0))
    if packet.needs_checksum:
        packet = packet._replace(checksum_start=packet.checksum_start - link_header_size)
    return offload.emit(packet)
