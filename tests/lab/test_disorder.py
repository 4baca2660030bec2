"""Faults without a clock or a socket: the impairer's core, and what the lab reads from text."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab import Faults, LabError, counters, topology
from lab.disorder import Disorder

PACKETS = [number.to_bytes(2, "big") for number in range(500)]


def delivered(faults: Faults) -> list[bytes]:
    """All packets come at time 0; what is held to the end is flushed."""
    disorder = Disorder(faults)
    out = [packet for sent in PACKETS for packet in disorder.receive(sent, 0.0)]
    return out + disorder.flush()


def test_without_faults_every_packet_passes_at_once_and_in_order() -> None:
    disorder = Disorder(Faults(seed=1))
    assert [disorder.receive(packet, 0.0) for packet in PACKETS] == [[packet] for packet in PACKETS]
    assert disorder.next_deadline() is None


def test_reordering_loses_and_adds_nothing() -> None:
    out = delivered(Faults(seed=1, reorder=0.2))
    assert out != PACKETS
    assert sorted(out) == PACKETS


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    faults = Faults(seed=1, reorder=0.2, duplicate=0.1, drop=0.1)
    assert delivered(faults) == delivered(faults)
    assert delivered(replace(faults, seed=2)) != delivered(faults)


def test_a_reordered_packet_is_overtaken_by_one_to_depth_packets() -> None:
    disorder = Disorder(Faults(seed=3, reorder=0.3, depth=2))
    passed = 0
    passed_when_held: dict[bytes, int] = {}
    overtakings: set[int] = set()
    for packet in PACKETS:
        out = disorder.receive(packet, 0.0)
        if out:
            passed += 1
        else:
            passed_when_held[packet] = passed
        overtakings.update(passed - passed_when_held[late] for late in out[1:])
    assert overtakings == {1, 2}


def test_a_held_packet_leaves_after_the_hold_time_although_nothing_overtook_it() -> None:
    disorder = Disorder(Faults(seed=1, reorder=1.0, hold=0.25))
    assert disorder.receive(b"x", 10.0) == []
    assert disorder.next_deadline() == 10.25
    assert disorder.on_timeout(10.2) == []
    assert disorder.on_timeout(10.25) == [b"x"]
    assert disorder.next_deadline() is None


def test_drop_takes_about_its_share() -> None:
    assert 350 < len(delivered(Faults(seed=1, drop=0.2))) < 450


def test_a_copy_comes_right_behind_or_after_its_delay() -> None:
    assert Disorder(Faults(seed=1, duplicate=1.0)).receive(b"x", 0.0) == [b"x", b"x"]
    disorder = Disorder(Faults(seed=1, duplicate=1.0, duplicate_delay=60.0))
    assert disorder.receive(b"x", 5.0) == [b"x"]
    assert disorder.next_deadline() == 65.0
    assert disorder.on_timeout(65.0) == [b"x"]


def test_delay_keeps_the_order_and_jitter_does_not() -> None:
    steady = Disorder(Faults(seed=1, delay=1.0))
    jittery = Disorder(Faults(seed=1, delay=1.0, jitter=1.0))
    for number, packet in enumerate(PACKETS):
        assert steady.receive(packet, number / 1000) == []
        assert jittery.receive(packet, number / 1000) == []
    assert steady.on_timeout(1.0) == PACKETS[:1]
    assert steady.flush() == PACKETS[1:]
    late = jittery.flush()
    assert late != PACKETS
    assert sorted(late) == PACKETS


@pytest.mark.parametrize(
    ("faults", "complaint"),
    [
        ({"drop": 1.5}, "drop 1.5 is no probability"),
        ({"hold": -1.0}, "hold -1.0 is negative"),
        ({"depth": 0}, "depth 0 is not at least 1"),
        ({"reorder": 0.1, "delay": 0.1}, "reorder cannot be combined"),
    ],
)
def test_senseless_faults_are_refused(faults: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Faults(seed=1, **faults)


def test_the_topology_has_the_addresses_of_the_daemons_defaults() -> None:
    loaded = topology.load()
    assert (str(loaded.service.vip), loaded.service.port, loaded.service.dscp) == ("192.168.33.10", 80, 1)
    assert [(node.name, str(node.bridge), str(node.backend)) for node in loaded.nodes] == [
        ("node1", "192.168.33.20", "192.168.33.30"),
        ("node2", "192.168.33.21", "192.168.33.31"),
        ("node3", "192.168.33.22", "192.168.33.32"),
    ]


def changed(tmp_path: Path, **changes: object) -> Path:
    document = json.loads(topology.TOPOLOGY_FILE.read_text())
    path = tmp_path / "topology.json"
    path.write_text(json.dumps(document | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"nods": []}, "topology: unknown key nods"),
        ({"service": {"vip": "192.168.33.10", "port": 80}}, "service: missing key dscp"),
        ({"service": {"vip": "192.168.33.10", "port": 80, "dscp": 64}}, "dscp 64"),
        ({"service": {"vip": "192.168.33.20", "port": 80, "dscp": 1}}, "192.168.33.20 stands twice"),
        ({"client": {"addresses": ["198.51.100.1"]}}, "198.51.100.1 is no host address"),
        ({"client": {"addresses": ["198.51.100.300"]}}, "198.51.100.300"),
        ({"links": {}}, "links: expected one each"),
    ],
)
def test_a_wrong_topology_is_refused_by_name(tmp_path: Path, changes: Any, complaint: str) -> None:
    path = changed(tmp_path, **changes)
    with pytest.raises(LabError, match=complaint) as refused:
        topology.load(path)
    assert str(path) in str(refused.value)


SNMP = """\
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn RetransSegs
Tcp: 1 200 120000 -1 7
IcmpMsg: InType3
IcmpMsg: 2
TcpExt: SyncookiesSent TCPTimeouts
TcpExt: 0 3
"""


def test_counters_have_the_names_that_nstat_shows() -> None:
    parsed = counters.parse(SNMP)
    assert parsed["TcpRetransSegs"] == 7
    assert parsed["TcpMaxConn"] == -1
    assert parsed["IcmpMsgInType3"] == 2
    assert parsed["TcpExtTCPTimeouts"] == 3


def test_increase_shows_changes_only_and_counts_new_counters_from_zero() -> None:
    assert counters.increase({"a": 1, "b": 2}, {"a": 1, "b": 5, "c": 4}) == {"b": 3, "c": 4}
