"""Routes and policy rules by rtnetlink(7): the MTU towards an address, and the way of a backend's replies.

A reply leaves the backend's socket with its address and port as the source. nftables marks it, and has it
routed again; a policy rule sends what has the mark, and nothing else, to a table of its own whose default
route is the packetbridge's TUN. So the socket itself knows only its usual route to the client: that one's
MTU counts, and path MTUs are learned on it. (A rule by source address and port cannot have that: the kernel
looks up the route of a path MTU without the ports, and would put it where the socket does not look.)

Behind it stands a rule that drops what has the mark. Otherwise, while somebody has set the TUN down, replies
would reach clients in the backend's own name, and be answered with a RST that ends the connection.

Table and route vanish with their owner. The rules outlive a killed one, but do nothing then; the next
start recognises them by their protocol number, and by the interface whose index is in the mark:
indexes are unique in a host, and handed out again only after 2^31 others.
"""

import errno
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from socket import AF_INET
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from common.net.backends import BackendTables
from common.net.errors import HostError
from common.net.interfaces import interfaces
from common.net.ownership import Backend, mark_rules

RULE_PROTOCOL = 76
"""Marks our rules, as the numbers of rt_protos mark those of routing daemons."""
RULE_PRIORITY = 100
"""Behind the local table, before the operator's usual rules and the main table. The dropping rule is next."""
_TABLE_BASE = 0x4C330000
_WHOLE_MARK = 0xFFFFFFFF
_RTN_LOCAL = 2


def route_mtu(address: IPv4Address) -> int:
    """Largest IP packet to ``address``: the route's own MTU or the path MTU found, else the interface's."""
    with IPRoute() as netlink:
        try:
            (route,) = netlink.route("get", dst=str(address))
            metrics = route.get_attr("RTA_METRICS")
            mtu = metrics.get_attr("RTAX_MTU") if metrics else None
            if mtu is None:
                (link,) = netlink.get_links(route.get_attr("RTA_OIF"))
                mtu = link.get_attr("IFLA_MTU")
        except NetlinkError as error:  # of the interface, too, which may have gone since the first answer
            raise HostError(
                f"no route to {address} ({_text(error)}): add one or correct the address"
            ) from error
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
    """Sends the backends' TCP packets into the TUN. Owns tables, rules and route until closed."""

    def __init__(self, backends: Iterable[Backend], tun_index: int) -> None:
        """Removes leftovers first. `HostError` where a living packetbridge serves one of ``backends``."""
        number = _TABLE_BASE + tun_index
        self._number = number
        self._route: dict[str, Any] = {"dst": "0.0.0.0/0", "oif": tun_index, "table": number, "scope": "link"}
        self.backends = BackendTables(lambda backend: mark_rules(backend, number))
        """They may change. Their tables, being owned, cannot be changed by others."""
        remove_leftovers()
        try:
            self.restore()
            self.backends.add(backends)
        except BaseException:
            self.close()
            raise

    def restore(self) -> list[str]:
        """Put back the route and the rules where they have gone, and say so. `HostError`."""
        restored = []
        try:
            with IPRoute() as netlink:
                if _add(netlink.route, self._route):
                    restored.append("the route of the backends' replies had gone: it is there again")
                present = [(each.mark, each.priority) for each in _own_rules(netlink)]
                for rule in _rules(self._number):
                    if (self._number, rule["priority"]) not in present:
                        netlink.rule("add", **rule)
                        restored.append("a routing rule of the backends' replies had gone: it is there again")
        except NetlinkError as error:
            raise HostError(f"cannot route the backends' replies to the TUN: {_text(error)}") from error
        return restored

    def close(self) -> None:
        """Also right after somebody else has removed the rule, or the TUN, and when called again."""
        self.backends.close()
        with IPRoute() as netlink:
            for rule in _rules(self._number):
                _remove(netlink.rule, rule)
            _remove(netlink.route, self._route)


def remove_leftovers() -> int:
    """Remove the rules of killed packetbridges: their TUN is gone. Those of living ones stay.

    Returns of how many packetbridges they were.
    """
    with IPRoute() as netlink:
        left = {rule.mark for rule in _own_rules(netlink)}
        # Asked for last: one that is about to start has its TUN before its rules.
        dead = left - {_TABLE_BASE + interface.index for interface in interfaces()}
        for number in dead:
            for rule in _rules(number):
                _remove(netlink.rule, rule)
    return len(dead)


class _OwnRule(NamedTuple):
    """What tells one of our rules from others."""

    mark: int
    priority: int


def _own_rules(netlink: IPRoute) -> list[_OwnRule]:
    """Of all packetbridges."""
    found = []
    for rule in netlink.get_rules(family=AF_INET):
        mark = rule.get_attr("FRA_FWMARK") or 0
        if rule.get_attr("FRA_PROTOCOL") == RULE_PROTOCOL and mark > _TABLE_BASE:
            found.append(_OwnRule(mark, rule.get_attr("FRA_PRIORITY")))
    return found


def _rules(number: int) -> list[dict[str, Any]]:
    """For packets of this host; the mark is the table's number."""
    marked: dict[str, Any] = {
        "family": AF_INET,
        "iifname": "lo",
        "fwmark": number,
        "fwmask": _WHOLE_MARK,
        "protocol": RULE_PROTOCOL,
    }
    return [
        {**marked, "priority": RULE_PRIORITY, "table": number},
        {**marked, "priority": RULE_PRIORITY + 1, "action": "blackhole"},
    ]


def _add(request: Callable[..., Any], target: dict[str, Any]) -> bool:
    """False where it is there. Routes are not listed for that: a host may have very many."""
    try:
        request("add", **target)
    except NetlinkError as error:
        if error.code == errno.EEXIST:
            return False
        raise
    return True


def _remove(request: Callable[..., Any], target: dict[str, Any]) -> None:
    try:
        request("del", **target)
    except NetlinkError:  # it is gone already
        pass


def _text(error: NetlinkError) -> str:
    return str(error.args[1])
