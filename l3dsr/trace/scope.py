"""Which packets are this service's, and which part of their way they are on."""

from collections.abc import Iterable
from enum import Enum
from ipaddress import IPv4Address
from typing import NamedTuple

from common.config import parse_endpoint
from common.reports import BalancerReport, Report
from common.wire import dscp, handoff
from common.wire.errors import WireError
from common.wire.handoff import Handoff
from common.wire.segment import Segment

Connection = tuple[bytes, int]
"""A client's address and port."""
WireEndpoint = tuple[bytes, int]


class Leg(Enum):
    TO_VIP = "client to VIP"
    TO_NODE = "to node"
    FROM_VIP = "VIP to client"
    TO_BACKEND = "to backend"
    FROM_BACKEND = "from backend"

    @property
    def is_to_client(self) -> bool:
        return self in (Leg.FROM_VIP, Leg.FROM_BACKEND)

    @property
    def is_backend_leg(self) -> bool:
        """Whether its packets have the backend leg's sequence numbers."""
        return self in (Leg.TO_BACKEND, Leg.FROM_BACKEND)


class Scope(NamedTuple):
    """What the daemons of this host serve; empty where none can be asked."""

    vips: dict[WireEndpoint, int | None] = {}  # noqa: RUF012 - never changed
    """The VIP index of each, where it is known."""
    backends: frozenset[WireEndpoint] = frozenset()
    bridges: frozenset[bytes] = frozenset()
    """Of all nodes that are known."""
    node_names: dict[str, bytes] = {}  # noqa: RUF012 - never changed

    def leg_of(self, segment: Segment) -> Leg | None:
        """None: nothing of ours. Where no node is known, whatever has a DSCP may be on its way to one."""
        if dscp.index_of(segment.tos) and (not self.bridges or segment.destination in self.bridges):
            return Leg.TO_NODE
        destination = segment.destination, segment.destination_port
        source = segment.source, segment.source_port
        for leg, endpoint, known in (
            (Leg.TO_VIP, destination, self.vips),
            (Leg.FROM_VIP, source, self.vips),
            (Leg.TO_BACKEND, destination, self.backends),
            (Leg.FROM_BACKEND, source, self.backends),
        ):
            if endpoint in known:
                return leg
        return None

    def addresses(self) -> list[bytes]:
        """Of VIPs and backends: their packets need have no DSCP."""
        return sorted({address for address, _ in {*self.vips, *self.backends}})


def of_reports(reports: Iterable[Report]) -> Scope:
    vips: dict[WireEndpoint, int | None] = {}
    backends: set[WireEndpoint] = set()
    bridges: set[bytes] = set()
    names: dict[str, bytes] = {}
    for report in reports:
        if isinstance(report, BalancerReport):
            for service in report.services:
                vips[parse_endpoint(service.vip).wire] = service.vip_index
                names |= {node.name: IPv4Address(node.address).packed for node in service.nodes}
        else:
            bridges.add(IPv4Address(report.bridge).packed)
            vips |= {parse_endpoint(vip.vip).wire: vip.vip_index for vip in report.vips}
            backends |= {parse_endpoint(vip.backend).wire for vip in report.vips}
    return Scope(vips, frozenset(backends), frozenset(bridges | set(names.values())), names)


def connection_of(segment: Segment, leg: Leg) -> Connection:
    if leg.is_to_client:
        return segment.destination, segment.destination_port
    return segment.source, segment.source_port


def handoff_in(segment: Segment) -> Handoff | None:
    """What it carries if it is one; tag and age are not verified."""
    try:
        return handoff.parse_untrusted(segment)
    except WireError:
        return None
