"""`l3dsr status`: what the daemons of this host do, in a page of text."""

import argparse
import sys
from collections.abc import Iterable, Iterator

import msgspec

from common.metrics.errors import errors
from common.reports import BalancerReport, NodeReport, PacketbridgeReport, Report, ServiceReport
from l3dsr import sockets, text, watch
from l3dsr.options import Parser
from l3dsr.sockets import Answers

UP = "up"
WATCHED_SECONDS = 3.0
"""How long a live screen waits for a daemon."""


def add_options(parser: Parser) -> None:
    sockets.add_options(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the daemons' own documents, one a line")
    form.add_argument("--watch", action="store_true", help="anew every second, until q or Ctrl-C")


def run(options: argparse.Namespace) -> int:
    paths = sockets.of_both(options)
    if options.watch:
        return watch.run(lambda: _watched(sockets.reports(paths, within=WATCHED_SECONDS)))
    found = sockets.reports(paths)
    if options.json:
        for report in _reports(found):
            sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        print("\n".join(page(_reports(found))))
    return found.complain(options.command)


def page(found: Iterable[Report]) -> list[str]:
    lines: list[str] = []
    for report in found:
        lines += [""] if lines else []
        lines += [*_body(report), *_warnings(report)]
    return lines


def _watched(found: Answers) -> list[str]:
    """What is wrong comes first: a screen may have no room for the rest."""
    lines = [text.printable(f"no answer: {failure}") for failure in found.failures]
    lines += [line for report in _reports(found) for line in _warnings(report)]
    for report in _reports(found):
        lines += [""] if lines else []
        lines += _body(report)
    return lines


def _reports(found: Answers) -> Iterator[Report]:
    return (report for (report,) in found.values.values())


def _body(report: Report) -> Iterator[str]:
    return _of_balancer(report) if isinstance(report, BalancerReport) else _of_packetbridge(report)


def _of_balancer(report: BalancerReport) -> Iterator[str]:
    yield _title(sockets.BALANCER, report)
    for service in report.services:
        yield ""
        yield from _service(service)
    yield ""
    yield from _numbers(report)


def _of_packetbridge(report: PacketbridgeReport) -> Iterator[str]:
    yield f"{_title(sockets.PACKETBRIDGE, report)}, bridge address {report.bridge}"
    yield ""
    yield from text.table(
        ("VIP", "DSCP", "BACKEND", "FLOWS"),
        [(vip.vip, text.tagged(vip.vip_index), vip.backend, text.number(vip.flows)) for vip in report.vips],
        right="FLOWS",
    )
    yield ""
    yield from _numbers(report)


def _title(daemon: str, report: Report) -> str:
    return (
        f"{daemon} {report.version}, engine {report.engine}, up {text.duration(report.uptime)},"
        f" configuration {report.generation}"
    )


def _service(service: ServiceReport) -> Iterator[str]:
    bound = "" if service.load_factor is None else f"  load factor {service.load_factor:g}"
    yield text.printable(
        f"{service.name}  VIP {service.vip}  {text.tagged(service.vip_index)}  key {service.hash_key}{bound}"
    )
    yield from text.table(
        (
            "NODE",
            "ADDRESS",
            "STATE",
            "WEIGHT",
            "SHARE",
            "FLOWS",
            "HANDOFFS",
            "/S",
            "SENT",
            "CHECKED",
            "CHANNEL",
        ),
        [_node(node) for node in service.nodes],
        right="WEIGHT,SHARE,FLOWS,HANDOFFS,/S,SENT,CHECKED",
    )
    for node in service.nodes:
        if node.reason:
            yield text.printable(f"  {node.name} is {node.state}: {node.reason}")


def _node(node: NodeReport) -> tuple[str, ...]:
    weight = str(node.weight)
    if node.state == UP and node.effective_weight != node.weight:
        weight = f"{node.effective_weight:g} of {node.weight}"
    return (
        *(node.name, node.address, node.state, weight, text.share(node.share), text.number(node.flows)),
        *(text.number(node.handoffs), f"{node.handoffs_per_second:.1f}", text.size(node.bytes_to_clients)),
        *("-" if node.checked is None else f"{text.duration(node.checked)} ago", node.channel),
    )


def _numbers(report: Report) -> Iterator[str]:
    sizes = "  ".join(
        f"{name.replace('_', ' ')} {size:,}" for name, size in sorted(report.sizes.items()) if size
    )
    yield f"remembered: {sizes or 'nothing'}"
    happened = errors(report)
    yield "errors: none" if not happened else "errors:"
    for error in happened:
        yield f"  {error.count:,} {error.what}" + (f": {error.reason}" if error.reason else "")


def _warnings(report: Report) -> Iterator[str]:
    return (text.printable(f"warning: {warning}") for warning in report.warnings)
