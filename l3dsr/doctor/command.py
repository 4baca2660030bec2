"""The command `l3dsr doctor`."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.config import ConfigError
from common.control_client import ControlError, NotRunningError, ask
from common.net import privileges
from common.net.errors import HostError
from common.net.interfaces import interfaces
from common.net.routes import route_mtu
from common.reports import ChannelReport, CheckReport, Report
from l3dsr import sockets, text
from l3dsr.doctor import facts, firewall, host, legacy_tables, nftables, path
from l3dsr.doctor.finding import Finding, Level, fault, warning
from l3dsr.doctor.subject import Subject, as_running, configured, is_of, unconfigured
from l3dsr.options import Parser

ANSWER_SECONDS = 5.0
"""A daemon that takes longer to say how it is hangs."""
_WIDTH = max(len(level.value) for level in Level)


def add_options(parser: Parser) -> None:
    sockets.add_options(parser)
    parser.add_argument(
        "daemon",
        metavar="DAEMON",
        nargs="?",
        choices=(sockets.BALANCER, sockets.PACKETBRIDGE),
        help="balancer or packetbridge (default: what runs here, else what has a configuration file)",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="its configuration file, if not the usual one"
    )
    parser.add_argument("--json", action="store_true", help="one object for each finding, one a line")


def run(options: argparse.Namespace) -> int:
    answers = _answers(options)
    is_sound = True
    for daemon in _daemons(options, answers):
        place = next((place for place, answer in answers.items() if _is_from(daemon, place, answer)), None)
        answer = answers[place] if place else None
        subject, findings = _subject(daemon, options.config, answer)
        findings += examined(subject, answer, place)
        _print(daemon, findings, is_json=options.json)
        is_sound = is_sound and all(finding.level is not Level.FAULT for finding in findings)
    return 0 if is_sound else 1


def _subject(
    daemon: str, file: Path | None, answer: Report | ControlError | None
) -> tuple[Subject, list[Finding]]:
    """And what is wrong with its file: a daemon that runs is examined without. `ConfigError` if none does."""
    if not isinstance(answer, Report):
        return configured(daemon, file), []
    try:
        return as_running(configured(daemon, file), answer), []
    except ConfigError as error:
        change = "correct it: the daemon runs on, but a reload and its next start are refused"
        return as_running(unconfigured(daemon), answer), [fault("configuration", str(error), change)]


def examined(subject: Subject, answer: Report | ControlError | None, place: Path | None) -> Iterator[Finding]:
    """All findings; ``answer`` is the daemon's if it runs, ``place`` its control socket."""
    there = interfaces()
    yield from host.privileges(privileges.effective())
    yield from host.kernel(facts.kernel())
    used = [each.name for each in there if each.is_up and not each.is_loopback and each.addresses]
    yield from host.offloads({name: facts.offloads(name) for name in used})
    yield from host.rp_filter(facts.sysctl, there, subject)
    yield from host.own_addresses(subject, there)
    yield from host.key_file(subject)
    yield from _firewall(subject)
    yield from host.conntrack(facts.sysctl, subject)
    yield from host.forwarding(facts.sysctl, there)
    if subject.is_balancer:
        yield from path.mtu(subject, route_mtu, facts.echoes)
    else:
        yield from host.rfc1337(facts.sysctl)
        yield from host.syn_cookies(facts.sysctl, subject)
        yield from path.backends(subject, facts.connects)
    if answer is None or place is None:
        yield from path.not_running(subject.daemon)
        return
    if isinstance(answer, ControlError):
        yield from path.not_answering(answer)
        return
    yield from path.warnings(answer.warnings)
    if subject.is_balancer:
        yield from path.channels(_asked(place, "channels", ChannelReport))
        yield from path.health(_asked(place, "checks", CheckReport))


def _answers(options: argparse.Namespace) -> dict[Path, Report | ControlError]:
    """What the daemons of this host say of themselves, or what came of asking them, by control socket."""
    found: dict[Path, Report | ControlError] = {}
    for place in sockets.of_both(options):
        try:
            (found[place],) = sockets.reports([place], within=ANSWER_SECONDS).values[place]
        except NotRunningError:
            continue
        except ControlError as error:
            found[place] = error
    return found


def _is_from(daemon: str, place: Path, answer: Report | ControlError) -> bool:
    """Whose an answer is that tells nothing, its socket's name does."""
    return place.stem == daemon if isinstance(answer, ControlError) else is_of(answer, daemon)


def _daemons(options: argparse.Namespace, answers: dict[Path, Report | ControlError]) -> list[str]:
    both = (sockets.BALANCER, sockets.PACKETBRIDGE)
    if options.daemon:
        return [options.daemon]
    if options.config:
        raise ConfigError(f"--config needs to know whose it is: l3dsr doctor {both[0]}, or {both[1]}")
    found = [daemon for daemon in both if any(_is_from(daemon, *answer) for answer in answers.items())]
    found = found or [daemon for daemon in both if sockets.default_config(daemon).exists()]
    if not found:
        raise ControlError(
            "neither daemon runs here nor has a configuration file: say `balancer` or `packetbridge`"
        )
    return found


def _firewall(subject: Subject) -> Iterator[Finding]:
    unseen = "run `sudo l3dsr doctor`"
    legacy: list[legacy_tables.LegacyChain] = []
    try:
        legacy += legacy_tables.chains()
    except HostError as error:
        yield warning("firewall", f"iptables-legacy is not checked: {error}", unseen)
    try:
        objects, unread = facts.ruleset(left_out=nftables.OURS)
    except HostError as error:
        yield warning("firewall", f"not checked: {error}", unseen)
    else:
        yield from firewall.rules(objects, unread, legacy, subject)


def _asked(place: Path, do: str, kind: Any) -> list[Any]:
    return [sockets.convert(value, kind) for value in ask(place, do)]


def _print(daemon: str, findings: list[Finding], *, is_json: bool) -> None:
    if is_json:
        for finding in findings:
            said = finding._asdict() | {"level": finding.level.value, "daemon": daemon}
            sys.stdout.write(json.dumps(said) + "\n")
        return
    print(f"{daemon}:")
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print(text.printable(f"{finding.level.value:{_WIDTH}}  {finding.check:{width}}  {finding.found}"))
        if finding.change:
            print(text.printable(f"{'':{_WIDTH + width + 4}}{finding.change}"))
    counts = [sum(finding.level is level for finding in findings) for level in Level]
    print(f"{counts[0]} ok, {text.counted(counts[1], 'warning')}, {text.counted(counts[2], 'fault')}")
