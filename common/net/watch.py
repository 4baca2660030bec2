"""Notices changes of links, addresses, IPv4 routes and policy rules, by rtnetlink(7)."""

import errno
import socket

import trio

from common.net.errors import HostError

_NETLINK_ROUTE = 0
_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV4_RULE = 0x1, 0x10, 0x40, 0x80
_SETTLING_SECONDS = 0.02
"""Changes come in bundles."""
_MESSAGE_SIZE = 65536


class NetworkWatch:
    def __init__(self) -> None:
        """`HostError` where the kernel does not tell."""
        try:
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_ROUTE)
            self._socket.bind((0, _LINK | _IPV4_ADDRESS | _IPV4_ROUTE | _IPV4_RULE))
        except OSError as error:
            raise HostError(f"cannot open a netlink socket: {error.strerror}") from error

    def close(self) -> None:
        self._socket.close()

    async def changed(self) -> None:
        """Returns a moment after something has changed since the last call; what it was is not said."""
        await trio.lowlevel.wait_readable(self._socket)
        await trio.sleep(_SETTLING_SECONDS)
        while True:
            try:
                self._socket.recv(_MESSAGE_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # that is: more has changed than there was room for
                    raise
