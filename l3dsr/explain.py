"""`l3dsr explain`: which node a URL belongs to, and why."""

import argparse
import sys
from collections.abc import Iterator

import msgspec

from common.control_client import ask_once
from common.reports import Explanation
from l3dsr import sockets, text
from l3dsr.options import Parser


def add_options(parser: Parser) -> None:
    sockets.add_options(parser)
    parser.add_argument("url", metavar="URL", help="whole, or from the path on")
    parser.add_argument("--service", metavar="NAME", help="the service, where the URL does not say which")
    parser.add_argument("--json", action="store_true", help="as one object")


def run(options: argparse.Namespace) -> int:
    asked = {"url": options.url} | ({"service": options.service} if options.service else {})
    found = sockets.convert(ask_once(sockets.of_balancer(options), "explain", **asked), Explanation)
    if options.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        print("\n".join(map(text.printable, lines(found))))
    return 0 if found.node else 1


def lines(found: Explanation) -> Iterator[str]:
    yield f"service   {found.service}"
    yield f"key       {found.key}"
    yield f"hash      {found.key_hash}"
    yield f"slot      {found.slot} of {found.slots}"
    yield f"node      {found.node or 'none'}"
    yield f"sequence  {', '.join(found.sequence) or 'none'}"
    if found.text:
        yield f"note      {found.text}"
    for departure in found.departures:
        is_moved = departure.successor != found.node
        fate = f"go to {departure.successor or 'no node'}" if is_moved else "stay"
        moved = f"{text.share(departure.moved)} of all slots would move"
        yield f"without {departure.node}: this URL would {fate}; {moved}"
