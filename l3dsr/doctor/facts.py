"""What the checks go by, read from the host. Nothing here judges, and nothing changes the host."""

import ctypes
import fcntl
import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple

from common.bpf import attach
from common.bpf.errors import BpfError
from common.config import Endpoint
from common.net import privileges
from common.net.errors import HostError
from common.net.interfaces import Interface
from common.net.privileges import Capability
from common.wire import checksum, ipv4

Sysctl = Callable[[str], str | None]
"""The value of a name such as net/ipv4/conf/all/rp_filter (slashes, as names of interfaces have dots).

None if there is none.
"""

_SIOCETHTOOL = 0x8946
_ETHTOOL_GFLAGS, _LRO_FLAG = 0x25, 1 << 15
_ETHTOOL_GETTERS = {"tx-checksumming": 0x16, "tso": 0x1E, "gso": 0x23, "gro": 0x2B}
_ETHTOOL_VALUE = struct.Struct("=II")
_IFREQ = struct.Struct("@16sP16x")
_NFT_JSON = 1 << 4
_OWNER = re.compile(r"^\s*flags .*\bowner\b", re.MULTILINE)
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
_ICMP_ECHO, _ICMP_ECHO_REPLY = 8, 0
_ECHO_HEADER = struct.Struct(">BBHHH")
_BTF = Path("/sys/kernel/btf/vmlinux")
_TUN = Path("/dev/net/tun")


def sysctl(name: str) -> str | None:
    try:
        return (Path("/proc/sys") / name).read_text().strip()
    except OSError:
        return None


class Kernel(NamedTuple):
    release: str
    has_btf: bool
    has_tcx: bool | None
    """None: libbpf is not there to ask."""
    has_tun: bool


def kernel() -> Kernel:
    try:
        has_tcx: bool | None = attach.supports_tcx()
    except (BpfError, OSError):
        has_tcx = None
    return Kernel(os.uname().release, _BTF.exists(), has_tcx, _TUN.exists())


def offloads(interface: str) -> dict[str, bool]:
    """By ethtool's names, those that the driver tells of."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name, command in _ETHTOOL_GETTERS.items():
            if (value := _ethtool(control, interface, command)) is not None:
                found[name] = bool(value)
        if (flags := _ethtool(control, interface, _ETHTOOL_GFLAGS)) is not None:
            found["lro"] = bool(flags & _LRO_FLAG)
    return found


def _ethtool(control: socket.socket, interface: str, command: int) -> int | None:
    value = ctypes.create_string_buffer(_ETHTOOL_VALUE.pack(command, 0), _ETHTOOL_VALUE.size)
    try:
        fcntl.ioctl(control, _SIOCETHTOOL, _IFREQ.pack(interface.encode(), ctypes.addressof(value)))
    except OSError:
        return None
    return int(_ETHTOOL_VALUE.unpack(value.raw)[1])


class Ruleset(NamedTuple):
    objects: list[dict[str, Any]]
    """All tables, chains and rules in nftables' JSON schema (libnftables-json(5))."""
    unread: list[str]
    """Tables that are left out, by family and name."""


def ruleset(left_out: str) -> Ruleset:
    """Without tables whose names begin with ``left_out``. `HostError` where nftables cannot be asked.

    Tables with `flags owner` are not read either: nftables 1.0.6 writes broken JSON of them, and beyond its
    memory.
    """
    if not privileges.effective() >> Capability.NET_ADMIN & 1:  # the library itself would complain on stderr
        raise HostError("CAP_NET_ADMIN is missing")
    objects: list[dict[str, Any]] = []
    unread = []
    for line in _listed("tables", in_json=False).splitlines():
        _, family, name = line.split()[:3]
        if name.startswith(left_out):
            continue
        if _OWNER.search(_listed(f"table {family} {name}", in_json=False)):
            unread.append(f"{family} {name}")
        else:
            objects += json.loads(_listed(f"table {family} {name}", in_json=True)).get("nftables", [])
    return Ruleset(objects, unread)


def _listed(what: str, *, in_json: bool) -> str:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        raise HostError("libnftables1 is not installed") from None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    if context.value is None:
        raise HostError("there is no way to ask nftables")
    try:
        library.nft_ctx_output_set_flags(context, _NFT_JSON if in_json else 0)
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        with _standard_error_unheard():
            result = library.nft_run_cmd_from_buffer(context, f"list {what}".encode())
        if result != 0:
            raise HostError("nftables does not tell its rules")
        text: bytes = library.nft_ctx_get_output_buffer(context) or b""
        return text.decode(errors="replace")
    finally:
        library.nft_ctx_free(context)


@contextmanager
def _standard_error_unheard() -> Iterator[None]:
    """libxtables, which reads rules of iptables, complains there whatever it is told."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def connects(endpoint: Endpoint, seconds: float = 2.0) -> str:
    """Why no TCP connection can be made from here; empty if one can."""
    try:
        socket.create_connection((str(endpoint.address), endpoint.port), seconds).close()
    except OSError as error:
        return error.strerror or "timed out"
    return ""


def echoes(address: IPv4Address, size: int, seconds: float = 1.0) -> bool:
    """Whether an ICMP echo of ``size`` bytes, IP header included, is answered; it is not fragmented.

    `HostError` where this host lets none out, `PermissionError` without CAP_NET_RAW.
    """
    mark = os.urandom(4)
    body = mark.ljust(size - ipv4.HEADER_SIZE - _ECHO_HEADER.size, b"\0")
    header = _ECHO_HEADER.pack(_ICMP_ECHO, 0, 0, os.getpid() & 0xFFFF, 1)
    check = checksum.compute(header + body)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, ipv4.PROTOCOL_ICMP) as echo:
        echo.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        try:
            echo.connect((str(address), 0))
            echo.send(header[:2] + check.to_bytes(2, "big") + header[4:] + body)
            return _is_answered(echo, mark, time.monotonic() + seconds)
        except PermissionError:
            raise HostError("a rule of this host's firewall drops it") from None
        except OSError:  # too large for the link, or an error came back
            return False


def _is_answered(echo: socket.socket, mark: bytes, end: float) -> bool:
    while (left := end - time.monotonic()) > 0:
        echo.settimeout(left)
        try:
            packet = echo.recv(65536)
        except TimeoutError:
            return False
        header = (packet[0] & 0xF) * 4
        if packet[header] == _ICMP_ECHO_REPLY and packet[header + _ECHO_HEADER.size :].startswith(mark):
            return True
    return False


def addresses(interfaces: Iterable[Interface]) -> dict[IPv4Address, Interface]:
    return {address: interface for interface in interfaces for address in interface.addresses}
