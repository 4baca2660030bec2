"""Reports as text, read by Prometheus's own parser."""

import ast
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from balancer.ebpf import abi as balancer_abi
from common.metrics.errors import ErrorCount, errors
from common.metrics.exposition import text
from common.metrics.families import (
    BALANCER,
    COUNTER,
    EVENTS,
    FAMILIES,
    GAUGE,
    PACKETBRIDGE,
    Family,
    family_of,
)
from common.reports import BalancerReport, PacketbridgeReport, Report
from packetbridge.core.machine import Event
from packetbridge.ebpf import abi as packetbridge_abi
from tests.unit.metrics import reports

ROOT = Path(__file__).parents[3]
FILMS = {"service": "films", "node": "node1"}
UNITS = ("bytes", "seconds", "ratio")


def _samples(report: Report) -> list[Sample]:
    parsed = text_string_to_metric_families(text(report).decode())
    return list(chain.from_iterable(family.samples for family in parsed))


def _value(report: Report, name: str, **labels: str) -> float:
    (found,) = [
        sample.value for sample in _samples(report) if sample.name == name and sample.labels == labels
    ]
    return found


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("info", {"version": "0.1.0", "engine": "ebpf"}, 1),
        ("uptime_seconds", {}, 7384.5),
        ("configuration_generation", {}, 2),
        ("warnings", {}, 1),
        (
            "service_info",
            {"service": "films", "vip": "192.168.33.10:80", "dscp": "1", "hash_key": "segments:2"},
            1,
        ),
        ("service_load_factor_ratio", {"service": "films"}, 1.25),
        ("node_state", {**FILMS, "state": "up"}, 1),
        ("node_state", {**FILMS, "state": "down"}, 0),
        ("node_weight", FILMS, 3),
        ("node_effective_weight", FILMS, 1.5),
        ("node_table_share_ratio", FILMS, 0.25),
        ("node_flows", FILMS, 17),
        ("node_sent_to_clients_bytes_total", {"node": "node1"}, 1_000_000),
        ("node_handoffs_total", FILMS, 40),
        ("node_channel_up", FILMS, 1),
        ("node_channel_up", {"service": "films", "node": "node2"}, 0),
        ("node_check_age_seconds", FILMS, 0.7),
        ("table_entries", {"table": "half_open"}, 3),
        ("table_memory_bytes", {"table": "map"}, 4_000_000),
        ("sent_to_nodes_bytes_total", {}, 3000),
        ("syns_answered_total", {}, 50),
        ("keyless_flows_total", {}, 6),
        ("error_answers_total", {"status": "503"}, 4),
        ("error_answers_total", {"status": "400"}, 0),
        ("dropped_packets_total", {"reason": "bad_checksum"}, 5),
        ("resets_total", {}, 7),
        ("resets_limited_total", {}, 8),
        ("table_full_total", {"table": "flows"}, 1),
        ("device_errors_total", {"error": "tun_refused"}, 9),
        ("bugs_total", {}, 0),
        ("health_checks_total", {"result": "failed"}, 3),
        ("bounded_flows_total", {"outcome": "away"}, 11),
        ("channel_events_total", {"kind": "answers"}, 12),
        ("events_total", {"event": "forward"}, 900),
    ],
)
def test_balancers_report_is_exposed(name: str, labels: dict[str, str], value: float) -> None:
    assert _value(reports.BALANCER, f"l3dsr_balancer_{name}", **labels) == value


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("info", {"version": "0.1.0", "engine": "raw"}, 1),
        ("vip_info", {"vip": "192.168.33.10:80", "dscp": "1", "backend": "192.168.33.30:80"}, 1),
        ("flows", {"vip": "192.168.33.11:8080"}, 5),
        ("sent_to_clients_bytes_total", {}, 1_000_000),
        ("sent_to_backends_bytes_total", {}, 3000),
        ("handoffs_total", {"kind": "new"}, 40),
        ("handoffs_total", {"kind": "replayed"}, 1),
        ("handoffs_refused_total", {"reason": "bad_tag"}, 6),
        ("dropped_packets_total", {"reason": "unknown_dscp"}, 8),
        ("backend_refusals_total", {}, 2),
        ("backend_timeouts_total", {}, 4),
        ("resets_total", {}, 5),
        ("table_full_total", {"table": "strangers"}, 7),
        ("table_memory_bytes", {"table": "waiting"}, 2920),
        ("journal_failures_total", {}, 1),
        ("events_total", {"event": "adopted"}, 3),
    ],
)
def test_packetbridges_report_is_exposed(name: str, labels: dict[str, str], value: float) -> None:
    assert _value(reports.PACKETBRIDGE, f"l3dsr_packetbridge_{name}", **labels) == value


def test_what_a_node_does_not_say_is_missing() -> None:
    of_node2 = {sample.name for sample in _samples(reports.BALANCER) if sample.labels.get("node") == "node2"}
    assert "l3dsr_balancer_node_weight" in of_node2
    assert not of_node2 & {
        "l3dsr_balancer_node_flows",
        "l3dsr_balancer_node_sent_to_clients_bytes_total",
        "l3dsr_balancer_node_check_age_seconds",
    }


@pytest.mark.parametrize("report", [reports.BALANCER, reports.PACKETBRIDGE])
def test_every_counter_is_counted_once(report: Report) -> None:
    counted = [
        sample.value
        for sample in _samples(report)
        if sample.name.endswith("_total") and "node" not in sample.labels
    ]
    assert sum(counted) == sum(report.counters.values())


@pytest.mark.parametrize("report", [reports.BALANCER, reports.PACKETBRIDGE])
def test_no_sample_stands_twice(report: Report) -> None:
    names = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in _samples(report)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("report", [reports.BALANCER, reports.PACKETBRIDGE])
def test_every_metric_has_one_help_and_one_type_before_its_samples(report: Report) -> None:
    heads: dict[str, list[str]] = {}
    for line in text(report).decode().splitlines():
        if line.startswith("# "):
            _, kind, name, said = line.split(" ", 3)
            heads.setdefault(name, []).append(kind)
            assert said
        else:
            assert heads[re.split("[{ ]", line)[0]] == ["HELP", "TYPE"]


def test_labels_with_odd_characters_come_through() -> None:
    odd = 'a"b\\c\n{d}'
    report = PacketbridgeReport(odd, "raw", 0, 1, "192.168.33.20", [], {odd: 3}, {})
    assert _value(report, "l3dsr_packetbridge_info", version=odd, engine="raw") == 1
    assert _value(report, "l3dsr_packetbridge_events_total", event=odd) == 3


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_conventions(family: Family) -> None:
    assert re.fullmatch("[a-z]+(_[a-z]+)*", family.name)
    assert family.kind in {COUNTER, GAUGE}
    assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert all(re.fullmatch("[a-z_]+", label) and label not in {"le", "quantile"} for label in family.labels)
    in_name = [unit for unit in UNITS if unit in family.name.split("_")]
    assert not in_name or family.name.endswith(in_name[0]), "the unit comes last"
    assert family.meaning.endswith(".")
    assert "\n" not in family.meaning


@pytest.mark.parametrize("daemon", [BALANCER, PACKETBRIDGE])
def test_no_two_families_of_a_daemon_share_a_name_or_a_counter(daemon: str) -> None:
    own = [family for family in FAMILIES if daemon in family.daemons]
    names = [family.name for family in own]
    counters = list(chain.from_iterable(family.counted for family in own))
    assert len(names) == len(set(names))
    assert len(counters) == len(set(counters))


def _literals() -> set[str]:
    """All strings in the daemons' sources; each may be a counter's name."""
    sources = chain.from_iterable(
        (ROOT / folder).rglob("*.py") for folder in ("balancer", "packetbridge", "common")
    )
    nodes = chain.from_iterable(
        ast.walk(ast.parse(source.read_text())) for source in sources if source.parent.name != "metrics"
    )
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_counters_that_are_named_exist() -> None:
    enums = (balancer_abi.Counter, packetbridge_abi.Counter, Event)
    of_enums = {member.name.lower() for member in chain.from_iterable(enums)}
    named = set(chain.from_iterable(family.counted for family in FAMILIES))
    assert named - of_enums - _literals() == set()


@pytest.mark.parametrize(
    ("daemon", "name"),
    [
        (daemon, counter.name.lower())
        for daemon, counters in ((BALANCER, balancer_abi.Counter), (PACKETBRIDGE, packetbridge_abi.Counter))
        for counter in counters
        if re.match("DROPPED_|BAD_|UNKNOWN_|HANDOFF_|.*_FULL$", counter.name)
    ],
)
def test_what_programs_drop_is_told_apart_from_events(daemon: str, name: str) -> None:
    family, _ = family_of(name, daemon)
    assert family is not EVENTS


def test_errors_are_told_in_words_the_most_frequent_first() -> None:
    assert errors(reports.BALANCER) == [
        ErrorCount("lost at taps and TUN", "tun refused", 9),
        ErrorCount("resets to clients of unknown flows", "", 7),
        ErrorCount("packets dropped", "bad checksum", 5),
        ErrorCount("answered by the balancer itself", "503", 4),
        ErrorCount("no room", "flows", 1),
    ]
    assert [error.reason for error in errors(reports.PACKETBRIDGE) if error.what == "handoffs refused"] == [
        "bad tag"
    ]


def test_nothing_has_gone_wrong_in_an_empty_report() -> None:
    assert errors(BalancerReport("0.1.0", "raw", 0, 1, [], {}, {})) == []


def test_daemon_that_is_not_scraped_does_not_load_the_library() -> None:
    program = "import sys, common.web; print('prometheus_client' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == "False\n"
