"""Writes the parts of the documents that are made from the code: ``python -m docs.generate [--check]``.

Such a part stands between the lines ``<!-- generated: NAME -->`` and ``<!-- end generated -->``, NAME being
one of `GENERATORS`. With ``--check`` nothing is written: each document that is not what the code says is
named, and the exit status is 1. An unknown name, or a marker without its partner, is named and makes it 2.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import groupby
from pathlib import Path

from balancer import document as balancer_document
from balancer import options as balancer_options
from balancer.core import machine as balancer_machine
from balancer.core import roster
from common.metrics.families import BALANCER, PACKETBRIDGE
from common.tcp import activity
from common.wire import channel, handoff
from docs.keys import key_tables
from docs.metric_tables import metric_table
from l3dsr import cli as tool
from packetbridge import document as packetbridge_document
from packetbridge import options as packetbridge_options
from packetbridge.core import machine as packetbridge_machine
from tests.conformance import differences

PROJECT = Path(__file__).parents[1]
DOCUMENTS = (PROJECT / "README.md", PROJECT / "docs")
"""Files, and folders with all Markdown below them."""

Transition = tuple[Enum, Enum, Enum]
"""State, event, next state."""

_BEGIN = re.compile(r"<!-- generated: (?P<name>\S+) -->")
_END = "<!-- end generated -->"
_ROW_BITS = 32


class MarkerError(ValueError):
    """A document whose markers cannot be followed; the message says where and why."""


def bit_diagram(layout: Sequence[handoff.Field], row_bits: int = _ROW_BITS) -> str:
    """The layout as in an RFC, one row per ``row_bits`` bits; a field lies in one row or fills whole ones."""
    rule = "+-" * row_bits + "+"
    lines = [
        " " + " ".join(str(bit // 10) if bit % 10 == 0 else " " for bit in range(row_bits)).rstrip(),
        " " + " ".join(str(bit % 10) for bit in range(row_bits)),
        rule,
    ]
    row = "|"
    for field in layout:
        for first in range(0, field.bits, row_bits):
            width = 2 * min(field.bits, row_bits) - 1
            row += (field.name if first == 0 else "").center(width) + "|"
            if len(row) == len(rule):
                whole = first + row_bits >= field.bits
                lines += [row, rule if whole else "+" + " " * (len(rule) - 2) + "+"]
                row = "|"
    return "\n".join(lines)


def field_table(layout: Sequence[handoff.Field]) -> str:
    """Offset, size, name and meaning of each field; bit 0 of a byte is the most significant."""
    lines = ["| offset | size | field | meaning |", "|---|---|---|---|"]
    at = 0
    for field in layout:
        byte, bit = divmod(at, 8)
        whole = bit == 0 and field.bits % 8 == 0
        offset = f"{byte}" if whole else f"{byte}, bit {bit}"
        count, unit = (field.bits // 8, "byte") if whole else (field.bits, "bit")
        lines.append(f"| {offset} | {count} {unit}{'s' * (count > 1)} | {field.name} | {field.meaning} |")
        at += field.bits
    return "\n".join(lines)


def mermaid(transitions: Iterable[Transition]) -> str:
    """The transitions of a state machine as a mermaid state diagram.

    The machine starts in the first one's state. A state that none leaves is final. Events between the same
    two states share an arrow.
    """
    arrows = [(state.name, following.name, _said(event)) for state, event, following in transitions]
    order = list(dict.fromkeys(name for *states, _ in arrows for name in states))
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {order[0]}"]
    arrows.sort(key=lambda arrow: (order.index(arrow[0]), order.index(arrow[1])))
    for (state, following), shared in groupby(arrows, key=lambda arrow: arrow[:2]):
        lines.append(f"    {state} --> {following}: {', '.join(event for _, _, event in shared)}")
    left = {state for state, _, _ in arrows}
    lines += [f"    {name} --> [*]" for name in order if name not in left]
    return "\n".join([*lines, "```"])


def _said(event: Enum) -> str:
    """An event's value if that is text, otherwise its name in words."""
    return event.value if isinstance(event.value, str) else event.name.lower().replace("_", " ")


def layout_section(layout: Sequence[handoff.Field]) -> str:
    """Bit diagram and table of fields."""
    return f"```\n{bit_diagram(layout)}\n```\n\n{field_table(layout)}"


def _balancer_states() -> str:
    rules = balancer_machine.RULES.items()
    return mermaid((state, event, outcome) for (state, event), rule in rules for outcome in rule.outcomes)


def _packetbridge_states() -> str:
    return mermaid((*pair, rule.next) for pair, rule in packetbridge_machine.RULES.items())


def _activity_phases() -> str:
    return mermaid((*pair, following) for pair, following in activity.PHASES.items())


def _roster_states() -> str:
    return mermaid((*pair, following) for pair, following in roster.RULES.items())


def usage(parser: argparse.ArgumentParser) -> str:
    """A command's --help."""
    return f"```\n{parser.format_help()}```"


GENERATORS: Mapping[str, Callable[[], str]] = {
    "activity-phases": _activity_phases,
    "balancer-keys": lambda: key_tables(balancer_document.BalancerKeys, balancer_document.TEXT_TYPES),
    "balancer-metrics": lambda: metric_table(BALANCER),
    "balancer-options": lambda: usage(balancer_options.make_parser()),
    "balancer-states": _balancer_states,
    "channel-flow-layout": lambda: layout_section(channel.FLOW_LAYOUT),
    "channel-flow-question-layout": lambda: layout_section(channel.FLOW_QUESTION_LAYOUT),
    "channel-header-layout": lambda: layout_section(channel.HEADER_LAYOUT),
    "channel-refusal-layout": lambda: layout_section(channel.REFUSAL_LAYOUT),
    "channel-report-layout": lambda: layout_section(channel.REPORT_LAYOUT),
    "channel-vip-layout": lambda: layout_section(channel.VIP_LAYOUT),
    "handoff-layout": lambda: layout_section(handoff.LAYOUT),
    "packetbridge-keys": lambda: key_tables(
        packetbridge_document.PacketbridgeKeys, packetbridge_document.TEXT_TYPES
    ),
    "packetbridge-metrics": lambda: metric_table(PACKETBRIDGE),
    "packetbridge-options": lambda: usage(packetbridge_options.make_parser()),
    "packetbridge-states": _packetbridge_states,
    "plane-differences": differences.markdown,
    "roster-states": _roster_states,
    "tool-commands": lambda: usage(tool.make_parser()),
}


def regenerated(text: str, generators: Mapping[str, Callable[[], str]] = GENERATORS) -> str:
    """A document's text with each generated part made anew."""
    return "\n".join(_regenerated_lines(text.split("\n"), generators))


def _regenerated_lines(lines: Sequence[str], generators: Mapping[str, Callable[[], str]]) -> Iterator[str]:
    open_since = 0
    for number, line in enumerate(lines, 1):
        begin = _BEGIN.fullmatch(line)
        if open_since and begin:
            raise MarkerError(f"line {number}: the part of line {open_since} has no end")
        if begin:
            open_since = number
            name = begin["name"]
            if name not in generators:
                raise MarkerError(f"line {number}: no generator is named {name!r}")
            yield line
            yield from generators[name]().split("\n")
        elif line == _END:
            if not open_since:
                raise MarkerError(f"line {number}: an end without a beginning")
            open_since = 0
            yield line
        elif not open_since:
            yield line
    if open_since:
        raise MarkerError(f"line {open_since}: this part has no end")


def _files(documents: Iterable[Path]) -> Iterator[Path]:
    for document in documents:
        yield from sorted(document.rglob("*.md")) if document.is_dir() else [document]


def main(arguments: Sequence[str] | None = None, documents: Iterable[Path] = DOCUMENTS) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docs.generate", description="Bring generated documents up to date."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit with 1 if anything is stale"
    )
    check = parser.parse_args(arguments).check
    stale = False
    for path in _files(documents):
        text = path.read_text(encoding="utf-8")
        try:
            made = regenerated(text)
        except MarkerError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 2
        if made == text:
            continue
        if check:
            print(f"{path}: stale, run python -m docs.generate", file=sys.stderr)
            stale = True
        else:
            path.write_text(made, encoding="utf-8")
            print(f"{path}: written")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
