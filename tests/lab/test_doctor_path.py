"""`l3dsr doctor` on the balancer names what is really wrong on the way to its nodes, with the cure."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from lab import Lab, Process
from tests.lab.checked import ALL, await_state
from tests.lab.configured import bridge, vip
from tests.lab.examined import (
    FAULT,
    OK,
    WARNING,
    Finding,
    await_sound,
    examined,
    instead,
    no_backend,
    no_packetbridge,
    only,
    start_sound,
)
from tests.lab.observed import daemon_of
from tests.lab.sockets import await_that

pytestmark = pytest.mark.root

VIP_ADDRESS = "192.168.33.10"
SHIFTED = Path(__file__).with_name("shifted.py")


@pytest.fixture(scope="module")
def sound_lab(lab: Lab) -> Lab:
    start_sound(lab)
    return lab


def other_key(lab: Lab, node: str) -> AbstractContextManager[None]:
    other = lab.directory / "other.key"
    other.touch(0o600)
    other.write_text("0123456789abcdef0123456789abcdef\n")
    return instead(lab, node, lambda: lab.start_packetbridge(node, f"--key-file={other}"))


def other_clock(lab: Lab, node: str, *, seconds: int) -> AbstractContextManager[None]:
    host = lab.hosts[node]
    command = daemon_of(host).argv[4:]

    def start() -> Process:
        daemon = host.start([sys.executable, str(SHIFTED), str(seconds), *command], name="packetbridge")
        daemon.wait_for("ready", 60)
        return daemon

    return instead(lab, node, start)


def other_map(lab: Lab, node: str) -> AbstractContextManager[None]:
    own = lab.topology.node(node)
    text = bridge(lab, node, vip(f"{VIP_ADDRESS}:80", 5, f"{own.backend}:80"))
    return instead(lab, node, lambda: lab.start_configured(lab.hosts[node], "packetbridge", text))


@contextmanager
def at_router(lab: Lab, node: str, *, hook: str, rule: str) -> Iterator[None]:
    """``rule`` has the node's bridge address as BRIDGE, and its link as LINK."""
    text = rule.replace("BRIDGE", str(lab.topology.node(node).bridge)).replace("LINK", node)
    table = f"breakage_{node}"
    chain = f"{{ type filter hook {hook} priority -150; }}"
    lab.router.run(["nft", f"add table ip {table}; add chain ip {table} {hook} {chain}"])
    try:
        lab.router.run(["nft", f"add rule ip {table} {hook} {text}"])
        yield
    finally:
        lab.router.run(["nft", "delete", "table", "ip", table])


@contextmanager
def narrow(lab: Lab, node: str) -> Iterator[None]:
    """A black hole: large packets vanish, and no ICMP error tells of it."""
    rule = "ip daddr BRIDGE meta length > 1300 drop"
    with at_router(lab, node, hook="forward", rule=rule):
        yield


class OnPath(NamedTuple):
    """What is done on the way to a node, and what the balancer's doctor says of it: by check, level, what
    is found and what to change.
    """

    do: Callable[[Lab, str], AbstractContextManager[None]]
    expected: Mapping[str, tuple[str, str, str]]
    is_down: bool = True


PATHS = {
    "other_key": OnPath(
        other_key,
        {
            "channel": (FAULT, "key", "put the same key file on both"),
            "health": (FAULT, "is the key file the same", "put the same key file on both"),
        },
    ),
    "clock_two_minutes_off": OnPath(
        partial(other_clock, seconds=120),
        {
            "channel": (FAULT, "", "set both clocks (NTP)"),
            "clock": (FAULT, "over 1 min 0 s off: handoffs are refused", "set both clocks (NTP)"),
        },
    ),
    "clock_half_a_minute_off": OnPath(
        partial(other_clock, seconds=-30),
        {"clock": (WARNING, "its clock is 30", "set both clocks (NTP)")},
        is_down=False,
    ),
    "vip_map_different": OnPath(
        other_map,
        {"vip map": (FAULT, "DSCP 5", "have balancer and packetbridge say the same DSCP, VIP and port")},
    ),
    "dscp_cleared": OnPath(
        partial(at_router, hook="forward", rule="ip daddr BRIDGE ip dscp set cs0"),
        {
            "dscp": (
                FAULT,
                "DSCP 1 (TOS 4, 0x04) arrives as DSCP 0",
                "have the routers on the way leave DSCP 1",
            ),
            "health": (FAULT, "a router on the way remarks it", "packetbridge"),
        },
    ),
    "dscp_dropped": OnPath(
        partial(at_router, hook="forward", rule="ip daddr BRIDGE ip dscp 1 drop"),
        {"dscp": (FAULT, "DSCP 1 (TOS 4, 0x04) does not arrive", "choose another one on both sides")},
    ),
    "vip_filtered": OnPath(
        partial(at_router, hook="forward", rule=f'iifname "LINK" ip saddr {VIP_ADDRESS} drop'),
        {"health": (FAULT, "does a filter on the way (uRPF) drop that source?", "a filter (uRPF, BCP 38)")},
    ),
    "backend_stopped": OnPath(
        no_backend,
        {"health": (FAULT, "the backend refuses connections", "start the server on the node")},
    ),
    "packetbridge_stopped": OnPath(
        no_packetbridge,
        {
            "channel": (FAULT, "", "start the packetbridge on"),
            "health": (FAULT, "", "start the packetbridge on the node"),
        },
    ),
    "large_packets_vanish": OnPath(
        narrow,
        {"mtu": (FAULT, "packets of 1500 bytes do not arrive", "mtu N")},
        is_down=False,
    ),
    "channel_filtered": OnPath(
        partial(at_router, hook="forward", rule="ip daddr BRIDGE udp dport 19507 drop"),
        {"channel": (FAULT, "", "let UDP to the channel's port pass")},
        is_down=False,
    ),
    "no_route": OnPath(
        partial(at_router, hook="forward", rule="ip daddr BRIDGE reject with icmp type host-unreachable"),
        {"health": (FAULT, "", "see that the node is up, and that this host has a route")},
    ),
}
ROUNDS = [list(PATHS)[at : at + len(ALL)] for at in range(0, len(PATHS), len(ALL))]
"""Each node has something else that is wrong."""


@pytest.mark.parametrize("names", ROUNDS, ids="-".join)
def test_what_is_wrong_on_the_path_is_named_with_its_cure(sound_lab: Lab, names: list[str]) -> None:
    cases = dict(zip(ALL, (PATHS[name] for name in names), strict=True))
    with ExitStack() as broken:
        for node, case in cases.items():
            broken.enter_context(case.do(sound_lab, node))
        for node, case in cases.items():
            await_state(sound_lab, node, "down" if case.is_down else "up")

        def complaints() -> list[str]:
            found = examined(sound_lab.balancer)
            assert found.code == 1
            return [
                f"{node}: {check} {level} {said!r} {change!r} not in {found.of(check, node)}"
                for node, case in cases.items()
                for check, (level, said, change) in case.expected.items()
                if not any(
                    level == each.level and said in each.found and change in each.change
                    for each in found.of(check, node)
                )
            ]

        try:
            await_that(lambda: complaints() == [], 30)
        finally:
            print("\n".join(complaints()))
    await_sound(sound_lab)


def test_a_narrow_path_that_tells_of_itself_is_no_fault(sound_lab: Lab) -> None:
    sound_lab.set_path_mtu("node2", 1300)
    try:
        await_that(lambda: "1300 bytes" in only(mtu_of(sound_lab, "node2")[:1]).found)
        shrunk, arriving = mtu_of(sound_lab, "node2")
        assert shrunk.level == WARNING
        assert "raise the MTU on the way to 192.168.33.21" in shrunk.change
        assert arriving.level == OK
    finally:
        sound_lab.set_path_mtu("node2", 1500)
        sound_lab.balancer.run(["ip", "route", "flush", "cache"])
    await_sound(sound_lab)


def mtu_of(lab: Lab, node: str) -> list[Finding]:
    return examined(lab.balancer).of("mtu", node)
