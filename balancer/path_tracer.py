"""Has the kernel find out how narrow the ways to the nodes are.

What a handoff is too large for, on its way, is said to the client in whose name it travels, and never to
the balancer. So each node is sent an ICMP echo request of the largest handoff's size in the balancer's own
name. The router before a narrow hop answers with "fragmentation needed" (RFC 1191), and the kernel notes a
path MTU, which `common.net.routes.route_mtu` tells from then on. Whether the node answers does not matter.
"""

import socket
import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

import trio

from balancer.core.path_mtu import FULL_MTU
from common.net.errors import HostError
from common.net.routes import route_mtu
from common.wire import checksum, ipv4

PERIOD_SECONDS = 5.0
_ECHO_REQUEST = 8
_ECHO = struct.Struct("!BBHHH")
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2
_SOL_RAW, _ICMP_FILTER = 255, 1
_NO_TYPE = struct.pack("=I", 0xFFFFFFFF)


async def trace_paths(nodes: Callable[[], Iterable[IPv4Address]]) -> None:
    """For ever. ``nodes`` are the bridge addresses at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sender:
        sender.setblocking(False)
        sender.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        sender.setsockopt(_SOL_RAW, _ICMP_FILTER, _NO_TYPE)
        while True:
            for node in set(nodes()):
                _trace(sender, node)
            await trio.sleep(PERIOD_SECONDS)


def _trace(sender: socket.socket, node: IPv4Address) -> None:
    """As large as the kernel believes that it may be: a way can become narrower more than once."""
    try:
        size = min(route_mtu(node), FULL_MTU)
        sender.sendto(_echo_request(size - ipv4.HEADER_SIZE), (str(node), 0))
    except (HostError, OSError):  # there is no way at the moment, or an error of an earlier one is told
        pass


def _echo_request(size: int) -> bytes:
    """An ICMP message of so many bytes (RFC 792)."""
    check = checksum.compute(_ECHO.pack(_ECHO_REQUEST, 0, 0, 0, 0))
    return _ECHO.pack(_ECHO_REQUEST, 0, check, 0, 0).ljust(size, b"\0")
