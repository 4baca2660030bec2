"""The nftables tables of a daemon: what the tap takes is dropped, what a backend answers is marked.

They have `flags owner`: only the netlink socket that made one may change it, and it vanishes with that
socket, however the process ends (kernel 5.12).

The dropping chain stands before defragmentation (-400) and conntrack (-200). Taps are served earlier than
any prerouting hook, so they still see what is dropped here. The marking chain stands behind the operator's
own, and has the kernel route the packet again, by its mark.
"""

import ctypes
from collections.abc import Iterable
from functools import cache
from ipaddress import IPv4Address

from common.net.errors import HostError
from common.net.intake import ICMP_ERRORS, Intake
from common.net.interfaces import Interface
from common.wire import ipv4

Backend = tuple[IPv4Address, int]
"""Address and port."""

_DROP_PRIORITY, _MARK_PRIORITY = -500, 300
_LIBRARY = "libnftables.so.1"
_EXISTS = "File exists"
_OWNED = "Operation not permitted"


class OwnedTable:
    """A table of the ip family; it exists until closed or until the process ends."""

    def __init__(self, subject: str, rules: str) -> None:
        """``rules`` is what stands between the table's braces; who has the same ``subject`` is refused.

        `HostError`: "``subject`` is already served by another process", or nftables cannot do it.
        """
        name = table_name(subject)
        self._library = _load()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise HostError("cannot open a netlink socket to nftables")
        self._library.nft_ctx_buffer_error(self._context)
        self._name = name
        # One transaction of two commands: nftables 1.0.6 ignores what stands inside a `create table`.
        complaint = self._run(f"create {_table(name, '')}\n{_table(name, rules)}")
        if complaint:
            self.close()
            if _OWNED in complaint:
                raise HostError(f"{subject} is already served by another process")
            if _EXISTS in complaint:
                raise HostError(f"nftables has a table {name} already: run `nft delete table ip {name}`")
            raise HostError(f"nftables refuses the table {name}: {complaint}")

    def replace(self, rules: str) -> None:
        """``rules`` in the place of those that were there, which are the same chains; no packet sees neither.

        `HostError`: nftables refuses, the old ones stay.
        """
        complaint = self._run(f"flush table ip {self._name}\n{_table(self._name, rules)}")
        if complaint:
            raise HostError(f"nftables refuses to change the table {self._name}: {complaint}")

    def close(self) -> None:
        """Removes the table. May be called more than once."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def _run(self, commands: str) -> str:
        """The first line of what nftables complains about, or an empty string."""
        if self._library.nft_run_cmd_from_buffer(self._context, commands.encode()) == 0:
            return ""
        text: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        return text.decode(errors="replace").partition("\n")[0] or "unknown error"


def _table(name: str, rules: str) -> str:
    return f"table ip {name} {{\nflags owner;\n{rules}\n}}"


def table_name(subject: str) -> str:
    letters = (letter if letter.isalnum() else "_" for letter in subject)
    return "l3dsr_" + "".join(letters).lower()


def backend_name(backend: Backend) -> str:
    address, port = backend
    return f"backend {address}:{port}"


def drop_rules(intake: Intake, tapped: Iterable[Interface] | None = None) -> str:
    """A chain that drops what taps with ``intake`` take from the ``tapped`` interfaces, nothing else.

    Where ``tapped`` is None, from all but the loopback interface: where an interface is new, or somebody has
    detached a program, the kernel would end connections with a RST before they are taken again.
    """
    ports = _set(intake.ports)
    source = f"{'!=' if intake.tagged else '=='} {int(intake.address):#x}"
    # Offsets in bits from the ICMP header: the quoted IP header starts at 64, TCP's at 224.
    quoted = (
        f"@th,64,8 0x45 @th,112,16 & 0x1fff == 0 @th,136,8 {ipv4.PROTOCOL_TCP}"
        f" @th,160,32 {source} @th,224,16 {ports}"
    )
    spared = "iif lo" if tapped is None else f"iif != {_set(interface.index for interface in tapped)}"
    rules = [
        f"type filter hook prerouting priority {_DROP_PRIORITY}; policy accept;",
        f"{spared} accept",
        f"ip daddr != {intake.address} accept",
        *(["ip dscp 0 accept"] if intake.tagged else []),
        "ip frag-off & 0x1fff != 0 accept",
        f"tcp dport {ports} drop",
        f"icmp type {_set(ICMP_ERRORS)} {quoted} drop",
    ]
    return "\n".join(("chain prerouting {", *rules, "}"))


def mark_rules(backend: Backend, mark: int) -> str:
    """A chain that marks what leaves the backend's address and port."""
    address, port = backend
    rules = [
        f"type route hook output priority {_MARK_PRIORITY}; policy accept;",
        f"ip saddr {address} tcp sport {port} meta mark set {mark}",
    ]
    return "\n".join(("chain output {", *rules, "}"))


def _set(values: Iterable[int]) -> str:
    if isinstance(values, range):
        return f"{values[0]}-{values[-1]}"
    return "{ " + ", ".join(map(str, values)) + " }"


@cache
def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise HostError(f"cannot load {_LIBRARY}: install the package libnftables1") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    return library
