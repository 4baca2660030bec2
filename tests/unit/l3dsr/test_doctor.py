"""The doctor's checks on literal facts."""

import threading
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from common.config import Endpoint
from common.net.errors import HostError
from common.net.interfaces import Interface
from common.reports import ChannelReport, CheckReport
from l3dsr.doctor import firewall, host, path
from l3dsr.doctor.facts import Kernel, Sysctl
from l3dsr.doctor.finding import Finding, Level
from l3dsr.doctor.legacy_tables import LegacyChain
from l3dsr.doctor.subject import Subject, Vip

VIP = Endpoint(IPv4Address("192.168.33.10"), 80)
BACKEND = Endpoint(IPv4Address("192.168.33.30"), 80)
BRIDGE = IPv4Address("192.168.33.20")
BALANCER = Subject("balancer", (Vip(VIP, 7, None),), None, {"node1": BRIDGE}, None, adopt=False, engine="raw")
NODE = Subject("packetbridge", (Vip(VIP, 7, BACKEND),), BRIDGE, {}, None, adopt=True, engine="raw")


def interface(name: str, *addresses: str, loopback: bool = False) -> Interface:
    found = tuple(IPv4Address(address) for address in addresses)
    return Interface(1, name, 1, 1500, True, loopback, False, 0, found)


def sysctls(**values: str) -> Sysctl:
    """By the last part of their names."""
    return lambda name: values.get(name.rpartition("/")[2])


def levels(findings: Iterable[Finding]) -> list[tuple[str, Level]]:
    return [(finding.check, finding.level) for finding in findings]


def the(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_missing_capabilities_are_named() -> None:
    assert the(host.privileges((1 << 40) - 1)).level is Level.OK
    found = the(host.privileges(1 << 12))
    assert found.level is Level.WARNING
    assert "CAP_NET_RAW, CAP_PERFMON, CAP_BPF" in found.found


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (Kernel("6.18.4", True, True, True), [("kernel", Level.OK)]),
        (Kernel("6.1.0-28-amd64", False, False, True), [("kernel", Level.OK)]),
        (Kernel("5.15.0", True, False, True), [("kernel", Level.WARNING)]),
        (Kernel("5.10.0", True, False, True), [("kernel", Level.FAULT)]),
        (Kernel("6.1.0", True, None, True), [("kernel", Level.WARNING)]),
        (Kernel("6.1.0", True, False, False), [("kernel", Level.OK), ("tun", Level.FAULT)]),
    ],
)
def test_kernels_are_judged_by_what_they_can_do(kernel: Kernel, expected: list[tuple[str, Level]]) -> None:
    assert levels(host.kernel(kernel)) == expected


def test_a_kernel_that_somebody_may_not_ask_is_judged_by_its_release() -> None:
    assert "attached by TCX" in the(host.kernel(Kernel("6.18.4", True, False, True))).found
    assert "attached by clsact" in the(host.kernel(Kernel("6.1.0", True, False, True))).found
    assert "attached by TCX" in the(host.kernel(Kernel("6.1.0", True, True, True))).found


def test_large_receive_offload_is_a_fault_and_missing_offloads_cost() -> None:
    good = {"gro": True, "gso": True, "tso": True, "tx-checksumming": True, "lro": False}
    found = list(host.offloads({"eth0": good, "eth1": good | {"lro": True}, "eth2": good | {"gro": False}}))
    assert [finding.level for finding in found] == [Level.OK, Level.FAULT, Level.WARNING]
    assert found[1].change == "run `ethtool -K eth1 lro off`"
    assert found[2].change == "run `ethtool -K eth2 gro on`"


def test_strict_rp_filter_for_all_is_a_fault_for_both_daemons() -> None:
    for subject in (BALANCER, NODE):
        found = the(host.rp_filter(sysctls(rp_filter="1"), [], subject))
        assert (found.level, "sysctl -w net.ipv4.conf.all.rp_filter=2" in found.change) == (Level.FAULT, True)


@pytest.mark.parametrize(("subject", "level"), [(NODE, Level.WARNING), (BALANCER, Level.OK)])
def test_strict_rp_filter_of_one_device_matters_on_nodes(subject: Subject, level: Level) -> None:
    values = {"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/eth0.5/rp_filter": "1"}
    found = the(host.rp_filter(values.get, [interface("eth0.5", "10.0.0.1")], subject))
    assert found.level is level
    if level is Level.WARNING:
        assert found.change == "run `sysctl -w net.ipv4.conf.eth0/5.rp_filter=2`"


@pytest.mark.parametrize("subject", [NODE, BALANCER])
def test_strict_rp_filter_of_the_daemon_s_own_device_is_a_fault(subject: Subject) -> None:
    values = {"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/l3dsr0/rp_filter": "1"}
    found = the(host.rp_filter(values.get, [interface("l3dsr0")], subject))
    assert found.level is Level.FAULT
    assert found.change == "run `sysctl -w net.ipv4.conf.l3dsr0.rp_filter=2`"


def test_a_table_of_tracked_connections_that_is_nearly_full_is_a_fault() -> None:
    full = sysctls(nf_conntrack_count="250000", nf_conntrack_max="262144")
    found = the(host.conntrack(full, NODE))
    assert (found.level, found.change.split("`")[1]) == (
        Level.FAULT,
        "sysctl -w net.netfilter.nf_conntrack_max=524288",
    )
    assert the(host.conntrack(full, NODE._replace(engine="ebpf"))).level is Level.WARNING
    assert not list(host.conntrack(sysctls(nf_conntrack_count="9", nf_conntrack_max="262144"), NODE))
    assert not list(host.conntrack(sysctls(), NODE))


def test_a_table_of_tracked_connections_without_a_limit_is_never_full() -> None:
    assert not list(host.conntrack(sysctls(nf_conntrack_count="9", nf_conntrack_max="0"), NODE))


def test_a_tun_that_no_longer_forwards_is_a_fault() -> None:
    values = {"net/ipv4/conf/l3dsr0/forwarding": "0", "net/ipv4/ip_forward": "0"}
    assert the(host.forwarding(values.get, [interface("l3dsr0")])).level is Level.FAULT
    values["net/ipv4/conf/l3dsr0/forwarding"] = "1"
    assert the(host.forwarding(values.get, [interface("l3dsr0")])).level is Level.OK


def test_rfc1337_and_syn_cookies_are_looked_at() -> None:
    assert the(host.rfc1337(sysctls(tcp_rfc1337="1"))).level is Level.WARNING
    assert the(host.rfc1337(sysctls(tcp_rfc1337="0"))).level is Level.OK
    assert the(host.syn_cookies(sysctls(tcp_syncookies="0"), NODE)).level is Level.WARNING
    assert list(host.syn_cookies(sysctls(tcp_syncookies="1"), NODE)) == []


def test_a_vip_on_no_interface_may_be_routed_here() -> None:
    assert the(host.own_addresses(BALANCER, [interface("eth0", "10.0.0.1")])).level is Level.WARNING
    assert the(host.own_addresses(BALANCER, [interface("eth0", "192.168.33.10")])).level is Level.OK


def test_a_node_needs_bridge_and_backend_and_not_the_vip() -> None:
    assert levels(host.own_addresses(NODE, [])) == [("addresses", Level.FAULT)] * 2
    right = [interface("eth0", "192.168.33.20"), interface("lo", "192.168.33.30", loopback=True)]
    assert the(host.own_addresses(NODE, right)).level is Level.OK
    on_loopback = [*right, interface("lo", "192.168.33.10", loopback=True)]
    assert the(host.own_addresses(NODE, on_loopback)).level is Level.OK
    found = the(host.own_addresses(NODE, [*right, interface("eth1", "192.168.33.10")]))
    assert (found.level, found.change[:44]) == (Level.FAULT, "run `ip address delete 192.168.33.10 dev eth")


def test_a_key_file_that_others_can_read_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "handoff.key"
    file.write_text("00" * 15 + "01\n")
    file.chmod(0o644)
    node = NODE._replace(key_file=file, file=tmp_path / "packetbridge.toml")
    assert the(host.key_file(node)).level is Level.FAULT
    file.chmod(0o600)
    assert the(host.key_file(node)).level is Level.OK
    assert the(host.key_file(node._replace(key_file=None))).level is Level.WARNING


def test_the_key_of_a_daemon_that_runs_by_options_is_not_known() -> None:
    assert the(host.key_file(NODE)).found.startswith("not looked at")


def chain(name: str, **more: Any) -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "filter", "name": name, **more}}


def base(name: str, hook: str, policy: str = "accept") -> dict[str, Any]:
    return chain(name, type="filter", hook=hook, prio=0, policy=policy)


def rule(chain_name: str, *expressions: Mapping[str, Any], table: str = "filter") -> dict[str, Any]:
    return {
        "rule": {
            "family": "inet",
            "table": table,
            "chain": chain_name,
            "handle": 9,
            "expr": list(expressions),
        }
    }


def state(right: Any) -> dict[str, Any]:
    return {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": right}}


def state_not(right: Any) -> dict[str, Any]:
    return {"match": {"op": "!=", "left": {"ct": {"key": "state"}}, "right": {"set": right}}}


def iifname(right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": right}}


def nfproto(right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": right}}


DROP = {"drop": None}
ACCEPT = {"accept": None}
NOT_SYN = {
    "match": {
        "op": "!=",
        "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["fin", "syn"]]},
        "right": "syn",
    }
}
ACCEPT_TUN: list[dict[str, Any]] = [iifname("l3dsr*"), ACCEPT]
CLOSED = base("forward", "forward", policy="drop")
BACK_BY_ANOTHER = {
    "match": {"op": "==", "left": {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, "right": False}
}
STATE_MAP = {
    "vmap": {
        "key": {"ct": {"key": "state"}},
        "data": {"set": [["established", {"accept": None}], ["invalid", {"drop": None}]]},
    }
}


XT_REJECT = {"xt": {"type": "target", "name": "REJECT"}}


@pytest.mark.parametrize(
    ("ruleset", "level"),
    [
        ([base("forward", "forward"), rule("forward", state("invalid"), DROP)], Level.FAULT),
        ([base("forward", "forward"), rule("forward", state(["invalid", "new"]), DROP)], Level.FAULT),
        ([base("forward", "forward"), rule("forward", STATE_MAP)], Level.FAULT),
        ([base("pre", "prerouting"), rule("pre", state("invalid"), {"reject": None})], Level.FAULT),
        (
            [
                base("forward", "forward"),
                chain("more"),
                rule("forward", {"jump": {"target": "more"}}),
                rule("more", state("invalid"), DROP),
            ],
            Level.FAULT,
        ),
        (
            [base("forward", "forward"), rule("forward", state("invalid"), {"counter": {}}, DROP)],
            Level.FAULT,
        ),
        (
            [base("forward", "forward"), rule("forward", state("invalid"), {"limit": {"rate": 1}}, DROP)],
            Level.WARNING,
        ),
        (
            [base("forward", "forward"), rule("forward", state_not(["established", "related", "new"]), DROP)],
            Level.FAULT,
        ),
        ([base("forward", "forward"), rule("forward", state_not("invalid"), DROP)], Level.OK),
        ([base("input", "input"), rule("input", state("invalid"), DROP)], Level.OK),
        ([base("input", "input"), rule("input", NOT_SYN, state("new"), DROP)], Level.FAULT),
        ([base("forward", "forward"), rule("forward", state("established"), DROP)], Level.OK),
        ([base("forward", "forward"), rule("forward", state("invalid"), {"accept": None})], Level.OK),
        ([chain("unused"), rule("unused", state("invalid"), DROP)], Level.OK),
        ([base("forward", "forward", policy="drop")], Level.FAULT),
        ([base("forward", "forward", policy="drop"), rule("forward", *ACCEPT_TUN)], Level.OK),
        (
            [
                base("forward", "forward"),
                rule("forward", *ACCEPT_TUN),
                rule("forward", state("invalid"), DROP),
            ],
            Level.OK,
        ),
        (
            [
                base("forward", "forward"),
                rule("forward", state("invalid"), DROP),
                rule("forward", *ACCEPT_TUN),
            ],
            Level.FAULT,
        ),
        ([base("forward", "forward"), rule("forward", {"xt": {"name": "conntrack"}}, DROP)], Level.WARNING),
        ([base("forward", "forward"), rule("forward", {"counter": {}}, XT_REJECT)], Level.FAULT),
        ([base("forward", "forward"), rule("forward", {"reject": {"type": "icmp"}})], Level.FAULT),
        ([base("forward", "forward"), rule("forward", iifname("eth1"), DROP)], Level.OK),
        ([base("input", "input"), rule("input", DROP)], Level.OK),
        ([base("pre", "prerouting"), rule("pre", BACK_BY_ANOTHER, DROP)], Level.FAULT),
        ([base("pre", "prerouting"), rule("pre", nfproto("ipv6"), BACK_BY_ANOTHER, DROP)], Level.OK),
        ([base("pre", "prerouting"), rule("pre", nfproto({"set": ["ipv4", "ipv6"]}), DROP)], Level.FAULT),
        ([base("pre", "prerouting"), rule("pre", nfproto("ipv4"), BACK_BY_ANOTHER, DROP)], Level.FAULT),
        ([base("pre", "prerouting"), rule("pre", *ACCEPT_TUN), rule("pre", BACK_BY_ANOTHER, DROP)], Level.OK),
        ([CLOSED, rule("forward", iifname("l3dsr0"), {"counter": {}}, ACCEPT)], Level.OK),
        ([CLOSED, rule("forward", iifname({"set": ["lo", "l3dsr0"]}), ACCEPT)], Level.OK),
        ([CLOSED, rule("forward", iifname("eth0"), ACCEPT)], Level.FAULT),
        ([CLOSED, rule("forward", iifname("l3dsr0"), state("established"), ACCEPT)], Level.FAULT),
        ([CLOSED, rule("forward", ACCEPT)], Level.OK),
        (
            [CLOSED, chain("more"), rule("forward", {"jump": {"target": "more"}}), rule("more", *ACCEPT_TUN)],
            Level.OK,
        ),
        ([{"metainfo": {"version": "1.0.6"}}], Level.OK),
    ],
)
def test_rules_that_would_drop_our_packets_are_found(ruleset: list[dict[str, Any]], level: Level) -> None:
    assert the(firewall.rules(ruleset, [], [], NODE)).level is level


def translation(*conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    nat = chain("post", type="nat", hook="postrouting", prio=100, policy="accept")
    return [nat, rule("post", *conditions, {"masquerade": None})]


def test_what_gives_a_handoff_another_source_is_found() -> None:
    out = {"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "eth0"}}
    port = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}}
    own = {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "::"}}
    expected: list[tuple[tuple[dict[str, Any], ...], Level]]
    expected = [((), Level.FAULT), ((out,), Level.FAULT), ((port,), Level.WARNING), ((own, out), Level.OK)]
    for conditions, level in expected:
        assert the(firewall.rules(translation(*conditions), [], [], BALANCER)).level is level
    assert the(firewall.rules(translation(), [], [], NODE)).level is Level.OK


def test_chains_of_iptables_legacy_are_named_if_they_do_something() -> None:
    chains = [
        LegacyChain("filter", "FORWARD", has_rules=False, drops=False),
        LegacyChain("mangle", "FORWARD", has_rules=True, drops=False),
        LegacyChain("raw", "PREROUTING", has_rules=False, drops=True),
    ]
    unread, closed = firewall.rules([], [], chains, NODE)
    assert (unread.level, unread.change.split("`")[1]) == (Level.WARNING, "iptables-legacy-save -t mangle")
    assert closed.level is Level.FAULT
    assert closed.change == "run `iptables-legacy -t raw -I PREROUTING -i l3dsr+ -j ACCEPT`"
    assert the(firewall.rules([], [], chains[:1], NODE)).level is Level.OK


def test_a_table_that_cannot_be_read_is_named() -> None:
    found = the(firewall.rules([], ["inet firewalld"], [], NODE))
    assert (found.level, "nft list table inet firewalld" in found.change) == (Level.WARNING, True)


def test_the_ebpf_engine_passes_by_most_rules() -> None:
    ruleset = [base("forward", "forward"), rule("forward", state("invalid"), DROP)]
    found = the(firewall.rules(ruleset, [], [], NODE._replace(engine="ebpf")))
    assert found.level is Level.WARNING
    assert found.change == 'run `nft insert rule inet filter forward iifname "l3dsr*" accept`'


def test_rules_against_new_connections_without_syn_matter_where_listeners_adopt() -> None:
    ruleset = [base("input", "input"), rule("input", NOT_SYN, state("new"), DROP)]
    assert the(firewall.rules(ruleset, [], [], NODE._replace(adopt=False))).level is Level.OK


@pytest.mark.parametrize(
    ("route", "arrives_up_to", "expected"),
    [
        (9000, 9000, [Level.OK]),
        (1400, 1400, [Level.WARNING, Level.OK]),
        (1500, 1499, [Level.FAULT]),
        (1500, 0, [Level.WARNING]),
    ],
)
def test_the_mtu_to_each_node_is_tried(route: int, arrives_up_to: int, expected: list[Level]) -> None:
    found = path.mtu(BALANCER, lambda _: route, lambda _, size: size <= arrives_up_to)
    assert [finding.level for finding in found] == expected


def test_nodes_that_do_not_answer_are_waited_for_together() -> None:
    """Each trial ends only when all have begun."""
    begun = threading.Barrier(10)

    def echoes(_address: IPv4Address, size: int) -> bool:
        if size == path.HANDOFF_SIZE:
            begun.wait(10)
        return False

    names = [f"node{number}" for number in range(10)]
    subject = BALANCER._replace(nodes=dict.fromkeys(names, BRIDGE))
    found = list(path.mtu(subject, lambda _: 1500, echoes))
    assert [finding.found.partition(":")[0] for finding in found] == names


def test_who_may_not_send_an_echo_is_told_why() -> None:
    def not_root(_address: IPv4Address, _size: int) -> bool:
        raise PermissionError

    def filtered(_address: IPv4Address, _size: int) -> bool:
        raise HostError("a rule of this host's firewall drops it")

    first, second = (the(path.mtu(BALANCER, lambda _: 1500, echoes)) for echoes in (not_root, filtered))
    assert (first.found, first.change) == ("node1: not tried: needs root", "run `sudo l3dsr doctor`")
    assert (second.level, "firewall" in second.found, "sudo" in second.change) == (
        Level.WARNING,
        True,
        False,
    )


def test_no_route_to_a_node_is_a_fault() -> None:
    def no_route(_: IPv4Address) -> int:
        raise HostError("no route to 192.168.33.20")

    assert the(path.mtu(BALANCER, no_route, lambda *_: True)).level is Level.FAULT


CHANNEL = ChannelReport("node1", str(BRIDGE), "ok", "", 9.0, "0.2.0", 0.001, 0.5, [], {7: 7})


@pytest.mark.parametrize(
    ("change", "check", "level", "words"),
    [
        ({"dscp_seen": {7: 0}}, "dscp", Level.FAULT, "DSCP 7 (TOS 28, 0x1c) arrives as DSCP 0 (TOS 0, 0x00)"),
        ({"dscp_seen": {7: None}}, "dscp", Level.FAULT, "DSCP 7 (TOS 28, 0x1c) does not arrive"),
        ({"clock_offset": 61.0}, "clock", Level.FAULT, "its clock is 1 min 1 s ahead: handoffs are refused"),
        ({"clock_offset": -6.0}, "clock", Level.WARNING, "its clock is 6.0 s behind"),
        ({"vip_map_problems": ["node1 maps DSCP 7 to x"]}, "vip map", Level.FAULT, "node1 maps DSCP 7 to x"),
        (
            {"state": "tag refused", "text": "refuses our key"},
            "channel",
            Level.FAULT,
            "node1: refuses our key",
        ),
    ],
)
def test_what_the_channel_says_is_judged(
    change: dict[str, Any], check: str, level: Level, words: str
) -> None:
    fields = {name: getattr(CHANNEL, name) for name in CHANNEL.__struct_fields__}
    (found,) = [
        each for each in path.channels([ChannelReport(**(fields | change))]) if each.level is not Level.OK
    ]
    assert (found.check, found.level, words in found.found) == (check, level, True)


def test_a_channel_that_is_refused_for_its_time_tells_of_the_clock_and_not_what_was_before() -> None:
    fields = {name: getattr(CHANNEL, name) for name in CHANNEL.__struct_fields__}
    refused = ChannelReport(**(fields | {"state": "time refused", "text": "its clock differs"}))
    found = {each.check: each for each in path.channels([refused])}
    assert (found["channel"].level, found["clock"].level) == (Level.FAULT, Level.FAULT)
    assert found["clock"].found == "node1: its clock is over 1 min 0 s off: handoffs are refused"
    assert "dscp" not in found


def test_a_sound_channel_has_three_good_findings() -> None:
    assert levels(path.channels([CHANNEL])) == [
        ("channel", Level.OK),
        ("clock", Level.OK),
        ("dscp", Level.OK),
    ]


def test_an_answer_lost_on_its_way_is_blamed_on_filters() -> None:
    lost = CheckReport("www", "node1", False, "answer_lost", "no packet came from the VIP", 1.0, 0.3)
    found = the(path.health([lost]))
    assert (found.level, "uRPF" in found.change) == (Level.FAULT, True)
    assert the(path.health([])).level is Level.WARNING


def test_backends_are_tried_by_a_connection() -> None:
    assert the(path.backends(NODE, lambda _: "Connection refused")).level is Level.FAULT
    assert the(path.backends(NODE, lambda _: "")).level is Level.OK
