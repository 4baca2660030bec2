"""A report as samples of metrics."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from common.metrics import families
from common.metrics.families import BALANCER, NODE_STATES, PACKETBRIDGE, Family
from common.reports import BalancerReport, NodeReport, Report, ServiceReport

_OK = "ok"
_BYTES = "_bytes"


class Sample(NamedTuple):
    labels: tuple[str, ...]
    """Values of the family's labels, in their order."""
    value: float


def daemon_of(report: Report) -> str:
    return BALANCER if isinstance(report, BalancerReport) else PACKETBRIDGE


def samples(report: Report) -> dict[Family, list[Sample]]:
    """By family, in the order of `families.FAMILIES`; those families that have any."""
    found: dict[Family, list[Sample]] = {family: [] for family in families.FAMILIES}
    for family, sample in _read(report):
        found[family].append(sample)
    found |= counted(report)
    return {family: those for family, those in found.items() if those}


def counted(report: Report) -> dict[Family, list[Sample]]:
    """Those that are made from the report's counters, which are few however many nodes there are."""
    return {
        family: [Sample((label,) if family.labels else (), value) for label, value in values.items()]
        for family, values in _sums(report.counters, daemon_of(report)).items()
    }


def delivered_by_node(report: BalancerReport) -> dict[str, int]:
    """Bytes to clients of the nodes that say it. Each says one number, whatever services it has."""
    return {
        node.name: node.bytes_to_clients
        for service in report.services
        for node in service.nodes
        if node.bytes_to_clients is not None
    }


_Read = Iterator[tuple[Family, Sample]]


def _read(report: Report) -> _Read:
    """All but the counters."""
    yield families.INFO, Sample((report.version, report.engine), 1)
    yield families.UPTIME, Sample((), report.uptime)
    yield families.GENERATION, Sample((), report.generation)
    yield families.WARNINGS, Sample((), len(report.warnings))
    for name, size in report.sizes.items():
        if name.endswith(_BYTES):
            yield families.MEMORY, Sample((name.removesuffix(_BYTES),), size)
        else:
            yield families.ENTRIES, Sample((name,), size)
    if isinstance(report, BalancerReport):
        for service in report.services:
            yield from _of_service(service)
        for name, delivered in delivered_by_node(report).items():
            yield families.NODE_BYTES, Sample((name,), delivered)
    else:
        for vip in report.vips:
            yield families.VIP_INFO, Sample((vip.vip, str(vip.vip_index), vip.backend), 1)
            yield families.VIP_FLOWS, Sample((vip.vip,), vip.flows)


def _of_service(service: ServiceReport) -> _Read:
    labels = service.name, service.vip, str(service.vip_index), service.hash_key
    yield families.SERVICE_INFO, Sample(labels, 1)
    if service.load_factor is not None:
        yield families.LOAD_FACTOR, Sample((service.name,), service.load_factor)
    for node in service.nodes:
        yield from _of_node(service, node)


def _of_node(service: ServiceReport, node: NodeReport) -> _Read:
    labels = service.name, node.name
    for state in NODE_STATES:
        yield families.NODE_STATE, Sample((*labels, state), node.state == state)
    known: tuple[tuple[Family, float | None], ...] = (
        (families.NODE_WEIGHT, node.weight),
        (families.NODE_EFFECTIVE_WEIGHT, node.effective_weight),
        (families.NODE_SHARE, node.share),
        (families.NODE_FLOWS, node.flows),
        (families.NODE_HANDOFFS, node.handoffs),
        (families.NODE_CHANNEL, node.channel == _OK),
        (families.NODE_CHECK_AGE, node.checked),
    )
    for family, value in known:
        if value is not None:
            yield family, Sample(labels, value)


def _sums(counters: Mapping[str, int], daemon: str) -> dict[Family, dict[str, int]]:
    """By family and label."""
    sums = {
        family: dict.fromkeys(family.counted.values(), 0)
        for family in families.COUNTED
        if daemon in family.daemons
    }
    for name, number in counters.items():
        family, label = families.family_of(name, daemon)
        sums[family][label] = sums[family].get(label, 0) + number
    return sums
