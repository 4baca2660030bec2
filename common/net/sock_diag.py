"""Asking the kernel about TCP sockets (sock_diag(7)).

A request without NLM_F_DUMP looks up one connection by its addresses and ports, however many there are; one
with it has all listed.
"""

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator

from common.net.errors import HostError
from common.wire.segment import FlowKey, key_ports

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_LISTEN, _TIME_WAIT, _CLOSE = 10, 6, 7
_GONE = frozenset((_LISTEN, _TIME_WAIT, _CLOSE))
_NETLINK_HEADER = struct.Struct("=IHHII")
_CODE = struct.Struct("=i")
"""Minus an errno, in the body of an error and of a dump's end."""
_REQUEST = struct.Struct("=BBBxI")
"""struct inet_diag_req_v2 up to its socket id: family, protocol, extensions, states."""
_SOCKET_ID = struct.Struct(">HH16s16s")
_SOCKET_ID_TAIL = struct.Struct("=III")
_NO_STATES, _ALL_STATES = 0, 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFF
_NO_FLOW = bytes(12)
_MAX_ANSWER = 8192
_LISTED_AT_ONCE = 1 << 20
"""Receive buffer of a dump."""
_ENDS = struct.Struct("4x4s4s12x4s")
"""Of struct inet_diag_msg: both ports, the source's and the destination's address."""
FEW = 500
"""Fewer are asked for one by one: a list has all sockets of the host."""


class SocketQuery:
    """Owns a netlink socket."""

    def __init__(self) -> None:
        """`HostError` where the kernel does not answer such questions."""
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        except OSError as error:
            raise HostError(f"cannot ask the kernel for its TCP sockets: {error.strerror}") from error
        try:
            self._require_module()
        except HostError:
            self.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def exists(self, key: FlowKey) -> bool:
        """Whether this host has a socket for the flow ``key`` (source is this host) that is not over.

        `HostError` where the kernel does not say.
        """
        kind, body = self._ask(key, _ALL_STATES, _NLM_F_REQUEST)
        if kind == _NLMSG_ERROR:
            (code,) = _CODE.unpack_from(body)
            if code == -errno.ENOENT:
                return False
            raise HostError(f"the kernel refuses to tell its TCP sockets: {os.strerror(-code)}")
        return body[1] not in _GONE

    def existing(self, keys: Collection[FlowKey]) -> set[FlowKey]:
        """Those of ``keys`` for which `exists`. `HostError`.

        The list leaves out sockets of IPv6 that talk IPv4, so what is not in it is asked for by itself.
        """
        listed = set(self._listed()) if len(keys) >= FEW else set()
        return {key for key in keys if key in listed or self.exists(key)}

    def _listed(self) -> Iterator[FlowKey]:
        states = _ALL_STATES & ~sum(1 << state for state in _GONE)
        try:
            self._send(_NO_FLOW, states, _NLM_F_REQUEST | _NLM_F_DUMP)
            while True:
                answer = self._socket.recv(_LISTED_AT_ONCE)
                at = 0
                while at < len(answer):
                    length, kind, *_ = _NETLINK_HEADER.unpack_from(answer, at)
                    body = at + _NETLINK_HEADER.size
                    if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                        return
                    ports, source, destination = _ENDS.unpack_from(answer, body)
                    yield source + destination + ports
                    at += length + 3 & ~3
        except OSError as error:
            raise HostError(f"cannot ask the kernel for its TCP sockets: {error.strerror}") from error

    def _require_module(self) -> None:
        """To an `exists` without the kernel's tcp_diag the answer would be that there is no such socket.

        So all sockets in no state are asked for: the answer is the end of an empty list, or an error.
        """
        _, body = self._ask(_NO_FLOW, _NO_STATES, _NLM_F_REQUEST | _NLM_F_DUMP)
        (code,) = _CODE.unpack_from(body)
        if code:
            raise HostError(
                f"the kernel cannot tell its TCP sockets ({os.strerror(-code)}): run `modprobe tcp_diag`"
            )

    def _ask(self, key: FlowKey, states: int, flags: int) -> tuple[int, bytes]:
        """Type and body of the answer's first message."""
        try:
            self._send(key, states, flags)
            answer = self._socket.recv(_MAX_ANSWER)
        except OSError as error:
            raise HostError(f"cannot ask the kernel for its TCP sockets: {error.strerror}") from error
        return _NETLINK_HEADER.unpack_from(answer)[1], answer[_NETLINK_HEADER.size :]

    def _send(self, key: FlowKey, states: int, flags: int) -> None:
        source_port, destination_port = key_ports(key)
        request = (
            _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, states)
            + _SOCKET_ID.pack(source_port, destination_port, key[0:4], key[4:8])
            + _SOCKET_ID_TAIL.pack(0, _NO_COOKIE, _NO_COOKIE)
        )
        size = _NETLINK_HEADER.size + len(request)
        self._socket.send(_NETLINK_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, flags, 0, 0) + request)
