"""Routes and policy rules by rtnetlink(7): the MTU towards an address, and the way of a backend's replies.

A reply leaves the backend's socket with its address and port as the source. nftables marks it, and has it
routed again; a policy rule sends what has the mark, and nothing else, to a table of its own whose default
route is the packetbridge's TUN. So the socket itself knows only its usual route to the client: that one's
MTU counts, and path MTUs are learned on it. (A rule by source address and port cannot have that: the kernel
looks up the route of a path MTU without the ports, and would put it where the socket does not look.)

Table and route vanish with their owner. The rule outlives a killed one, but does nothing then; the next
start recognises it by its protocol number, and by the interface whose index is in the table's number:
indexes are unique in a host, and handed out again only after 2^31 others.
"""

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from socket import AF_INET
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from common.net.errors import HostError
from common.net.interfaces import interfaces
from common.net.ownership import Backend, OwnedTable, backend_name, mark_rules

RULE_PROTOCOL = 76
"""Marks our rules, as the numbers of rt_protos mark those of routing daemons."""
RULE_PRIORITY = 100
"""Behind the local table, before the operator's usual rules and the main table."""
_TABLE_BASE = 0x4C330000
_WHOLE_MARK = 0xFFFFFFFF
_RTN_LOCAL = 2


def route_mtu(address: IPv4Address) -> int:
    """Largest IP packet to ``address``: the route's own MTU or the path MTU found, else the interface's."""
    with IPRoute() as netlink:
        try:
            (route,) = netlink.route("get", dst=str(address))
        except NetlinkError as error:
            raise HostError(
                f"no route to {address} ({_text(error)}): add one or correct the address"
            ) from error
        metrics = route.get_attr("RTA_METRICS")
        mtu = metrics.get_attr("RTAX_MTU") if metrics else None
        if mtu is None:
            (link,) = netlink.get_links(route.get_attr("RTA_OIF"))
            mtu = link.get_attr("IFLA_MTU")
    return int(mtu)


class NextHop(NamedTuple):
    """How packets to an address leave this host."""

    ifindex: int
    gateway: IPv4Address | None
    """None where the address is on the link."""
    is_local: bool
    """It is an address of this host."""


def next_hop(address: IPv4Address) -> NextHop | None:
    """The kernel's choice at the moment; None where it has no route, or one by an IPv6 gateway."""
    with IPRoute() as netlink:
        try:
            (route,) = netlink.route("get", dst=str(address))
        except NetlinkError:
            return None
        if route.get_attr("RTA_VIA"):
            return None
        gateway = route.get_attr("RTA_GATEWAY")
        return NextHop(
            ifindex=int(route.get_attr("RTA_OIF")),
            gateway=IPv4Address(gateway) if gateway else None,
            is_local=route["type"] == _RTN_LOCAL,
        )


class ReplyRoutes:
    """Sends the backends' TCP packets into the TUN. Owns tables, rule and route until closed."""

    def __init__(self, backends: Iterable[Backend], tun_index: int) -> None:
        """Removes leftovers first. `HostError` where a living packetbridge serves one of ``backends``."""
        number = _TABLE_BASE + tun_index
        self._route: dict[str, Any] = {"dst": "0.0.0.0/0", "oif": tun_index, "table": number, "scope": "link"}
        self._rule = _rule(number)
        self._tables: list[OwnedTable] = []
        remove_leftovers()
        try:
            with IPRoute() as netlink:
                netlink.route("add", **self._route)
                netlink.rule("add", **self._rule)
            for backend in backends:
                self._tables.append(OwnedTable(backend_name(backend), mark_rules(backend, number)))
        except NetlinkError as error:
            self.close()
            raise HostError(f"cannot route the backends' replies to the TUN: {_text(error)}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Also right after somebody else has removed the rule, or the TUN, and when called again."""
        while self._tables:
            self._tables.pop().close()
        with IPRoute() as netlink:
            _remove(netlink.rule, self._rule)
            _remove(netlink.route, self._route)


def remove_leftovers() -> int:
    """Remove the rules of killed packetbridges: their TUN is gone. Those of living ones stay.

    Returns how many were removed.
    """
    alive = {_TABLE_BASE + interface.index for interface in interfaces()}
    removed = 0
    with IPRoute() as netlink:
        for rule in netlink.get_rules(family=AF_INET):
            table = rule.get_attr("FRA_TABLE")
            if rule.get_attr("FRA_PROTOCOL") == RULE_PROTOCOL and table > _TABLE_BASE and table not in alive:
                _remove(netlink.rule, _rule(table))
                removed += 1
    return removed


def _rule(number: int) -> dict[str, Any]:
    """For packets of this host; the mark is the table's number."""
    return {
        "family": AF_INET,
        "iifname": "lo",
        "fwmark": number,
        "fwmask": _WHOLE_MARK,
        "table": number,
        "priority": RULE_PRIORITY,
        "protocol": RULE_PROTOCOL,
    }


def _remove(request: Callable[..., Any], target: dict[str, Any]) -> None:
    try:
        request("del", **target)
    except NetlinkError:  # it is gone already
        pass


def _text(error: NetlinkError) -> str:
    return str(error.args[1])
