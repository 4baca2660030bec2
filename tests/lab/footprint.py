"""What a program may have changed on a host of the lab."""

import socket
from ctypes import byref, c_uint32
from itertools import product
from pathlib import Path

from common.bpf import libbpf
from lab import Host
from lab.state_directory import PINS
from tests.lab.sockets import inside

_SHOW = (
    "ip rule",
    "ip -4 route show table all",
    "ip -o link",
    "ip -4 address",
    "nft list ruleset",
    "grep -rs . /proc/sys/net/ipv4 /proc/sys/net/ipv6 | sort",
    "tc qdisc show",
)
_TCX_HOOKS = {"ingress": 46, "egress": 47}  # enum bpf_attach_type


def footprint(host: Host) -> list[str]:
    """Rules, routes, devices, addresses, nftables, sysctls and qdiscs, as the tools show them; BPF programs
    at the interfaces, and pins in the host's state directory.
    """
    shown = host.run(["sh", "-c", "; ".join(_SHOW)]).stdout.splitlines()
    return [*shown, *programs(host), *map(str, pins(host))]


def programs(host: Host) -> list[str]:
    """How many there are at each interface's tc hooks, by TCX."""
    return inside(host, _programs)


def pins(host: Host) -> list[Path]:
    """And their directories. Some kernels put files of their own at the top of a bpf file system."""
    directories = (path for path in (host.state_directory / PINS).glob("*") if path.is_dir())
    return sorted(path for directory in directories for path in (directory, *directory.iterdir()))


def _programs() -> list[str]:
    found = []
    for (index, name), (direction, hook) in product(socket.if_nameindex(), _TCX_HOOKS.items()):
        count = c_uint32(0)
        libbpf.library().bpf_prog_query(index, hook, 0, None, None, byref(count))
        if count.value:
            found.append(f"{name} {direction}: {count.value} BPF programs")
    return found
