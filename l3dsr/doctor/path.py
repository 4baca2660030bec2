"""Checks of the way from the balancer to its nodes and back to clients.

What the daemons say of it comes from the balancer's channel and health checks; the rest is tried from here.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from typing import TypeVar

from common.config import Endpoint
from common.control_client import ControlError, NotAllowedError
from common.net.errors import HostError
from common.reports import ChannelReport, CheckReport
from common.wire import handoff, ipv4
from l3dsr import text
from l3dsr.doctor.finding import Finding, fault, ok, or_ok, warning
from l3dsr.doctor.subject import Subject

HANDOFF_SIZE = ipv4.HEADER_SIZE + handoff.HEADER_SIZE + handoff.MAX_PAYLOAD
"""Bytes of the largest one, IP header included."""
_SMALL_ECHO = 84
_TRIALS = 32
"""At the same time."""
_MAX_CLOCK_OFFSET, _SUSPICIOUS_CLOCK_OFFSET = float(handoff.MAX_AGE_SECONDS), 5.0
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_OK, _UNDECIDED, _TIME_REFUSED = "ok", "unknown", "time refused"
_CURES = {
    "node_unreachable": "see that the node is up, and that this host has a route there and may use it",
    "bridge_silent": "start the packetbridge on the node, and let TCP to its bridge address pass",
    "tag_refused": "put the same key file on both, and set both clocks (NTP)",
    "backend_refused": "start the server on the node, or correct the backend of the packetbridge",
    "backend_silent": "see why the node's server does not answer within the timeout",
    "wrong_status": "see why the server answers so, or set `path`, `host` and `expect` of `health`",
    "not_from_vip": "correct the packetbridge's map of VIPs, or take the address translation on the way away",
    "answer_lost": "let nodes send with the VIP as source: a filter (uRPF, BCP 38) on the way drops that",
    "bad_answer": "see that what listens at the backend speaks HTTP",
}


def not_running(daemon: str) -> Iterator[Finding]:
    yield warning(
        "path",
        f"not checked: no {daemon} answers on this host",
        f"start {daemon} and run `l3dsr doctor` again",
    )


def not_answering(error: ControlError) -> Iterator[Finding]:
    """What came of asking a daemon that is there."""
    if isinstance(error, NotAllowedError):
        yield warning("path", f"not checked: {error}", "run `sudo l3dsr doctor`")
    else:
        yield fault("daemon", str(error), "see the daemon's log, and restart it")


def mtu(
    subject: Subject, route_mtu: Callable[[IPv4Address], int], echoes: Callable[[IPv4Address, int], bool]
) -> Iterator[Finding]:
    """Both functions may raise `HostError`, the second one `PermissionError` too."""

    def tried(node: tuple[str, IPv4Address]) -> list[Finding]:
        name, address = node
        try:
            size = min(route_mtu(address), HANDOFF_SIZE)
        except HostError as error:
            return [fault("mtu", f"{name}: {error}", "add a route, or correct the node's address")]
        echoed = _echoed(name, address, size, echoes)
        if size == HANDOFF_SIZE:
            return [echoed]
        shrunk = warning(
            "mtu",
            f"{name}: packets of {size} bytes at most; the MSS that clients are offered shrinks",
            f"raise the MTU on the way to {address} to {HANDOFF_SIZE}, if it can be",
        )
        return [shrunk, echoed]

    for findings in _at_once(tried, subject.nodes.items()):
        yield from findings


def _at_once(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """In their order. Those that do not answer take their time together."""
    with ThreadPoolExecutor(_TRIALS) as threads:
        yield from threads.map(work, items)


def _echoed(
    name: str, address: IPv4Address, size: int, echoes: Callable[[IPv4Address, int], bool]
) -> Finding:
    try:
        if echoes(address, size):
            return ok("mtu", f"{name}: packets of {size} bytes arrive")
        if not echoes(address, _SMALL_ECHO):
            return warning(
                "mtu", f"{name}: not tried, as {address} does not answer a ping", "let it answer ICMP echo"
            )
    except PermissionError:
        return warning("mtu", f"{name}: not tried: needs root", "run `sudo l3dsr doctor`")
    except HostError as error:
        return warning("mtu", f"{name}: not tried: {error}", "let ICMP echo to nodes out")
    return fault(
        "mtu",
        f"{name}: packets of {size} bytes do not arrive at {address}, small ones do",
        f"run `ip route change {address} ... mtu N` with the largest N that does, or mend the path",
    )


def channels(found: Iterable[ChannelReport]) -> Iterator[Finding]:
    for channel in found:
        if channel.state == _UNDECIDED:
            yield warning("channel", f"{channel.node}: no answer yet", "wait a few seconds and run it again")
        elif channel.state != _OK:
            yield fault("channel", f"{channel.node}: {channel.text}", _channel_cure(channel))
        else:
            yield ok("channel", f"{channel.node}: packetbridge {channel.version} answers")
        yield from _clock(channel)
        for problem in channel.vip_map_problems:
            yield fault("vip map", problem, "have balancer and packetbridge say the same DSCP, VIP and port")
        yield from _dscp(channel)


def _channel_cure(channel: ChannelReport) -> str:
    """``state`` is one of the channel's own (docs/channel.md)."""
    state = channel.state
    if "tag" in state:
        return "put the same key file on both (mode 0600), then reload both"
    if "time" in state:
        return "set both clocks (NTP)"
    if "version" in state:
        return "bring balancer and packetbridge to the same version"
    if "unreachable" in state:
        return f"add a route to {channel.address}, or correct the node's address"
    return f"start the packetbridge on {channel.node}, and let UDP to the channel's port pass"


def _clock(channel: ChannelReport) -> Iterator[Finding]:
    """An offset that was measured before the channel broke tells nothing of now."""
    offset = channel.clock_offset
    if channel.state == _TIME_REFUSED:
        limit = text.duration(_MAX_CLOCK_OFFSET)
        yield fault(
            "clock",
            f"{channel.node}: its clock is over {limit} off: handoffs are refused",
            "set both clocks (NTP)",
        )
    if offset is None or channel.state != _OK:
        return
    said = f"{channel.node}: its clock is {text.duration(abs(offset))} {'ahead' if offset > 0 else 'behind'}"
    if abs(offset) > _MAX_CLOCK_OFFSET:
        yield fault("clock", f"{said}: handoffs are refused", "set both clocks (NTP)")
    elif abs(offset) > _SUSPICIOUS_CLOCK_OFFSET:
        yield warning(
            "clock",
            f"{said}; beyond {text.duration(_MAX_CLOCK_OFFSET)} handoffs are refused",
            "set both clocks (NTP)",
        )
    else:
        yield ok("clock", said)


def _dscp(channel: ChannelReport) -> Iterator[Finding]:
    """What arrived before the channel broke tells nothing of now."""
    if channel.state != _OK:
        return
    for sent, seen in sorted(channel.dscp_seen.items()):
        if sent != seen:
            fate = "does not arrive" if seen is None else f"arrives as {text.tagged(seen)}"
            yield fault(
                "dscp",
                f"{channel.node}: {text.tagged(sent)} {fate}",
                f"have the routers on the way leave DSCP {sent} alone, or choose another one on both sides",
            )
    kept = [str(sent) for sent, seen in sorted(channel.dscp_seen.items()) if sent == seen]
    if kept:
        yield ok("dscp", f"{channel.node}: DSCP {', '.join(kept)} unchanged on the way")


def health(found: Iterable[CheckReport]) -> Iterator[Finding]:
    """The whole path there and back, by a handoff and an answer: the probe for uRPF among other things."""
    checks = list(found)
    if not checks:
        yield warning(
            "health", "no health checks are made", "set `health` of the pool, to have the whole path tried"
        )
    for check in checks:
        said = f"{check.service}, {check.node}: {check.text}"
        if check.ok:
            yield ok("health", said)
        else:
            yield fault("health", said, _CURES.get(check.failure, "see docs/health.md"))


def backends(subject: Subject, connects: Callable[[Endpoint], str]) -> Iterator[Finding]:
    """``connects`` says why no connection can be made; nothing if one can."""
    found = sorted({vip.backend for vip in subject.vips if vip.backend is not None})
    for backend, reason in zip(found, _at_once(connects, found), strict=True):
        if reason:
            yield fault(
                "backend",
                f"{backend}: {reason}",
                "start the server, have it listen there, or correct the backend",
            )
        else:
            yield ok("backend", f"{backend} accepts connections")


def warnings(found: Iterable[str]) -> Iterator[Finding]:
    """What the daemon itself has to say."""
    said = (warning("daemon", line, "see the daemon's log") for line in found)
    return or_ok(said, "daemon", "has nothing to complain of")
