"""The TUN device through which a daemon sends, and by which a packetbridge gets the backend's replies.

What is written to it arrives at the host as if from a network, and the kernel routes it: neighbours, MTUs
and superpackets are its business. What the kernel routes to it is read here. With IFF_VNET_HDR and
TUNSETOFFLOAD both ways carry superpackets and checksums still to be computed (Linux
Documentation/networking/tuntap.rst). The device is not persistent: it vanishes with the process.
"""

import errno
import fcntl
import os
import socket
import struct
from collections import Counter
from pathlib import Path

from common.net.buffer import IP_AT, VNET_AT, VNET_SIZE
from common.net.errors import HostError
from common.wire import ipv4, offload

NAME_PATTERN = "l3dsr%d"
MTU = 65535
"""The largest there is: packets are as large as their way beyond this device allows."""
QUEUE_LENGTH = 10000
"""Packets waiting to be read; a superpacket is one."""

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_OFFLOADS = 0x01 | 0x02 | 0x08
"""TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO_ECN."""
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCGIFMTU, _SIOCSIFMTU, _SIOCSIFTXQLEN = (
    0x8913,
    0x8914,
    0x8921,
    0x8922,
    0x8943,
)
_IFF_UP = 0x1
_GONE = {errno.ENOENT, errno.ENODEV}
_NAME_AND_FLAGS = struct.Struct("=16sH22x")
_NAME_AND_NUMBER = struct.Struct("=16si20x")
_NO_OFFLOAD = offload.emit(offload.NO_OFFLOAD)


class Tun:
    """Owns the device. Packets that the kernel did not take or could not give are counted, by errno."""

    def __init__(self) -> None:
        """Creates the device and sets it up; `HostError` where that is not possible."""
        self.refused: Counter[int] = Counter()
        self.malformed = 0
        self._buffer = bytearray()
        self._target = memoryview(self._buffer)
        try:
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"cannot open /dev/net/tun: {error.strerror}") from error
        try:
            flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
            answer = fcntl.ioctl(self._fd, _TUNSETIFF, _NAME_AND_FLAGS.pack(NAME_PATTERN.encode(), flags))
            self.name = _NAME_AND_FLAGS.unpack(answer)[0].rstrip(b"\0").decode()
            self.index = socket.if_nametoindex(self.name)
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, _OFFLOADS)
            _configure(self.name)
            _set_up(self.name)
        except OSError as error:
            os.close(self._fd)
            raise HostError(f"cannot create a TUN device: {error}") from error

    def restore(self) -> bool:
        """Set the device up again, and put its settings back. Whether anything had been changed.

        `HostError` where that is not possible. Routes through a device that was down are gone. That the
        device itself has been deleted is for whoever reads from it to say.
        """
        try:
            was_changed = _configure(self.name)
            if not _is_set_up(self.name):
                _set_up(self.name)
                _configure(self.name)  # a device that was too narrow for IPv6 has got it anew
                was_changed = True
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise HostError(f"cannot set device {self.name} up again: {error}") from error
        return was_changed

    @property
    def exists(self) -> bool:
        """False once somebody has deleted the device."""
        return (self.index, self.name) in socket.if_nameindex()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def receive_into(self, buffer: bytearray) -> int:
        """One packet: virtio_net_hdr at `VNET_AT`, IP header at `IP_AT`; returns the IP total length.

        0 is a packet that was no good and is counted. BlockingIOError: there is none.
        """
        self._use(buffer)
        try:
            received = os.readv(self._fd, (self._target,))
        except BlockingIOError:
            raise
        except OSError as error:
            self._count(error)
            return 0
        length = buffer[IP_AT + 2] << 8 | buffer[IP_AT + 3]
        if buffer[IP_AT] >> 4 != 4 or not ipv4.HEADER_SIZE <= length <= received - VNET_SIZE:
            self.malformed += 1
            return 0
        return length

    def send(self, buffer: bytearray, length: int) -> None:
        """The packet that stands in ``buffer`` as `receive_into` left it; ``length`` is that of IP."""
        self._use(buffer)
        self._write(self._target[: VNET_SIZE + length])

    def send_packet(self, data: bytes, vnet: bytes = _NO_OFFLOAD) -> None:
        """An IP packet and its virtio_net_hdr."""
        self._write(vnet + data)

    def _write(self, frame: bytes | memoryview) -> None:
        try:
            os.write(self._fd, frame)
        except OSError as error:
            self._count(error)

    def _count(self, error: OSError) -> None:
        """One bad packet, a full queue or a device set down pass; a device that is gone does not."""
        if error.errno == errno.EBADFD:
            raise HostError(f"device {self.name} has been deleted: start the daemon again") from error
        if error.errno == errno.EBADF:
            raise error
        self.refused[error.errno or 0] += 1

    def _use(self, buffer: bytearray) -> None:
        if buffer is not self._buffer:
            self._buffer = buffer
            self._target = memoryview(buffer)[VNET_AT:]


def _configure(name: str) -> bool:
    """Settings of this device only, before it is up; no global one is touched. Whether any was another.

    Packets come in with any source, also with an address of this host (the VIP), and go out elsewhere.
    """
    ipv4_settings = Path("/proc/sys/net/ipv4/conf") / name
    changes = [
        _set(ipv4_settings / setting, value)
        for setting, value in (("forwarding", "1"), ("accept_local", "1"), ("rp_filter", "0"))
    ]
    ipv6_setting = Path("/proc/sys/net/ipv6/conf") / name / "disable_ipv6"
    if ipv6_setting.exists():
        changes.append(_set(ipv6_setting, "1"))
    return any(changes)


def _set(setting: Path, value: str) -> bool:
    """Whether it had another value."""
    if setting.read_text(encoding="ascii").strip() == value:
        return False
    setting.write_text(value)
    return True


def _set_up(name: str) -> None:
    encoded = name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, _NAME_AND_NUMBER.pack(encoded, MTU))
        fcntl.ioctl(control, _SIOCSIFTXQLEN, _NAME_AND_NUMBER.pack(encoded, QUEUE_LENGTH))
        flags = _flags(control, encoded) | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, _NAME_AND_FLAGS.pack(encoded, flags))


def _is_set_up(name: str) -> bool:
    encoded = name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, _SIOCGIFMTU, _NAME_AND_NUMBER.pack(encoded, 0))
        return _NAME_AND_NUMBER.unpack(answer)[1] == MTU and bool(_flags(control, encoded) & _IFF_UP)


def _flags(control: socket.socket, name: bytes) -> int:
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, _NAME_AND_FLAGS.pack(name, 0))
    return int(_NAME_AND_FLAGS.unpack(answer)[1])
