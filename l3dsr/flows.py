"""`l3dsr flows` and `l3dsr flow`: connections, as the daemons know them."""

import argparse
import sys
from collections.abc import Iterator

import msgspec

from common.config import ConfigError, Endpoint, parse_address, parse_endpoint, parse_number
from common.reports import FlowReport, FlowSide
from l3dsr import sockets, text
from l3dsr.options import Parser

DEFAULT_LIMIT = 1000
_HEADER = ("CLIENT", "DSCP", "NODE", "STATE", "AGE", "IDLE")


def add_list_options(parser: Parser) -> None:
    sockets.add_options(parser)
    parser.add_argument("--client", metavar="ADDR", help="only those of this client")
    parser.add_argument(
        "--node", metavar="NODE", help="only those at this node: its name, or its bridge address"
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        default=str(DEFAULT_LIMIT),
        help=f"how many at most (default: {DEFAULT_LIMIT})",
    )
    parser.add_argument("--json", action="store_true", help="one object a line")


def run_list(options: argparse.Namespace) -> int:
    limit = parse_number(options.limit, 1, 10_000_000, "--limit")
    asked: dict[str, str | int] = {"limit": limit}
    if options.client:
        asked["client"] = str(parse_address(options.client))
    if options.node:
        asked["node"] = options.node
    answers = sockets.ask_running(sockets.of_both(options), "flows", FlowReport, **asked)
    for path, found in answers.values.items():
        if options.json:
            for flow in found:
                said = {"daemon": path.stem, **msgspec.structs.asdict(flow)}
                sys.stdout.write(msgspec.json.encode(said).decode() + "\n")
        else:
            more = ", and there may be more (--limit)" if len(found) == limit else ""
            print(f"{path.stem}: {text.counted(len(found), 'flow')}{more}")
            if found:
                print("\n".join(text.table(_HEADER, [_row(flow) for flow in found], right="AGE,IDLE")))
    return answers.complain(options.command)


def add_one_options(parser: Parser) -> None:
    sockets.add_options(parser)
    parser.add_argument("connection", metavar="CLIENT:PORT", help="the client's address and port")
    parser.add_argument("--vip", metavar="ADDR:PORT", help="to this VIP only")
    parser.add_argument("--json", action="store_true", help="one object a line")


def run_one(options: argparse.Namespace) -> int:
    client = parse_connection(options.connection)
    asked: dict[str, str | int] = {"client": str(client.address), "port": client.port}
    if options.vip:
        asked["vip"] = str(parse_endpoint(options.vip))
    answers = sockets.ask_running(sockets.of_both(options), "flow", FlowSide, **asked)
    sides = [side for found in answers.values.values() for side in found]
    if options.json:
        for side in sides:
            sys.stdout.write(msgspec.json.encode(side).decode() + "\n")
    elif not sides:
        print(f"no flow of {client} is known")
    else:
        print("\n".join(line for side in sides for line in _side(side)))
    return max(answers.complain(options.command), 0 if any(side.flow for side in sides) else 1)


def parse_connection(said: str) -> Endpoint:
    """CLIENT:PORT."""
    address, colon, port = said.partition(":")
    if not colon:
        raise ConfigError(f"{said!r} is not CLIENT:PORT, such as 203.0.113.7:49152")
    return Endpoint(parse_address(address), parse_number(port, 1, 65535, "port"))


def _row(flow: FlowReport) -> tuple[str, ...]:
    return (
        f"{flow.client}:{flow.client_port}",
        str(flow.vip_index),
        flow.node,
        flow.state,
        text.duration(flow.age),
        text.duration(flow.idle),
    )


def _side(side: FlowSide) -> Iterator[str]:
    yield text.printable(f"{side.side} ({side.node}):" if side.node else f"{side.side}:")
    flow = side.flow
    if flow is None:
        yield text.printable(f"  {side.text or 'knows no such flow'}")
        return
    said = {
        "state": flow.state,
        "tagged": text.tagged(flow.vip_index),
        "bridge address": flow.node or "-",
        "age": text.duration(flow.age),
        "idle": text.duration(flow.idle),
        **{name.replace("_", " "): _detail(value) for name, value in flow.details.items()},
    }
    if side.text:
        said["note"] = side.text
    width = max(map(len, said))
    for name, value in said.items():
        yield text.printable(f"  {name.ljust(width)}  {value}")


def _detail(value: float | str | bool | None) -> str:
    match value:
        case None:
            return "-"
        case True | False:
            return "yes" if value else "no"
    return str(value)
