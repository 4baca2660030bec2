"""What a program may have changed on a host of the lab."""

from lab import Host

_SHOW = (
    "ip rule",
    "ip -4 route show table all",
    "ip -o link",
    "ip -4 address",
    "nft list ruleset",
    "grep -rs . /proc/sys/net/ipv4 /proc/sys/net/ipv6 | sort",
)


def footprint(host: Host) -> list[str]:
    """Rules, routes, devices, addresses, nftables and sysctls, as the tools show them."""
    return host.run(["sh", "-c", "; ".join(_SHOW)]).stdout.splitlines()
