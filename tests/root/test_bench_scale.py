"""What the benchmark makes by itself for very many flows and for floods, beside what it is to be."""

import ctypes
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bench.errors import BenchError
from bench.scale import cost, knowing, population, syn_flood
from bench.scale.compiled import compiled
from bench.scale.cost import Way
from bench.scale.giving import Giver
from bench.scale.knowing import Load
from common.bpf import libbpf
from common.bpf.abi import FLOW_ID, FlowId
from common.bpf.maps import HashMap
from lab.topology import load

pytestmark = pytest.mark.root

TOPOLOGY = load()
FLOWS = 40_000
"""More than one address has ports."""
PACKETS = 50
FRAME = bytes.fromhex("0200000000aa 0200000000bb 0800") + syn_flood.unsummed_syn(IPv4Address("192.0.2.1"), 80)
XDP_PASS = 2


@pytest.fixture(scope="module")
def giver_path() -> Iterator[Path]:
    with compiled("random_flow") as path:
        yield path


@pytest.mark.parametrize(
    ("daemon", "load_programs", "way"),
    [(daemon, cost.LOADS[daemon], way) for daemon, ways in cost.WAYS.items() for way in ways],
    ids=lambda value: value.name if isinstance(value, Way) else "",
)
def test_every_flow_of_the_population_is_known_to_the_programs(
    giver_path: Path, daemon: str, load_programs: Load, way: Way
) -> None:
    with (
        closing(Giver(giver_path, TOPOLOGY, daemon, FLOWS)) as giver,
        load_programs(TOPOLOGY, FLOWS, FLOWS) as loaded,
    ):
        for _ in range(PACKETS):
            giver.nanoseconds(way.origin, loaded.program(way.program), FLOWS, 1, way.verdict)


def test_the_population_fills_the_map_with_flows_of_different_clients() -> None:
    with knowing.balancer(TOPOLOGY, FLOWS, FLOWS) as loaded:
        keys = {key for key, _ in HashMap(loaded.map("flows")).items()}
    assert len(keys) == FLOWS
    first_of_second_address = FlowId(b"\xc6\x12\x00\x01", b"\x04\x00", TOPOLOGY.service.dscp)
    assert FLOW_ID.pack(first_of_second_address) in keys


def test_a_flow_that_was_not_filled_in_is_unknown(giver_path: Path) -> None:
    way = cost.WAYS["balancer"][0]
    with (
        closing(Giver(giver_path, TOPOLOGY, "balancer", FLOWS)) as giver,
        knowing.balancer(TOPOLOGY, 0, FLOWS) as loaded,
        pytest.raises(BenchError, match="verdict"),
    ):
        giver.nanoseconds(way.origin, loaded.program(way.program), FLOWS, 1, way.verdict)


def test_spoofed_syns_have_right_checksums_and_clients_of_their_own() -> None:
    with compiled("syn_flood") as path, syn_flood.load(path, FRAME) as loaded:
        frames = [_flooded(loaded.program("flood"), bytes(len(FRAME))) for _ in range(PACKETS)]
    clients = set()
    for frame in frames:
        packet = Ether(frame)
        assert frame[:14] == FRAME[:14]
        assert (packet[IP].dst, packet[TCP].dport, str(packet[TCP].flags)) == ("192.0.2.1", 80, "S")
        assert IPv4Address(packet[IP].src) >= population.FIRST_ADDRESS
        assert _summed_anew(packet) == frame
        clients.add((packet[IP].src, packet[TCP].sport, packet[TCP].seq))
    assert len(clients) == PACKETS


def _flooded(program: int, packet: bytes) -> bytes:
    given = ctypes.create_string_buffer(packet, len(packet))
    made = ctypes.create_string_buffer(len(packet))
    options = libbpf.TestRunOptions(
        data_in=ctypes.addressof(given),
        data_size_in=len(given),
        data_out=ctypes.addressof(made),
        data_size_out=len(made),
        repeat=1,
    )
    libbpf.check(libbpf.library().bpf_prog_test_run_opts(program, options))
    assert options.retval == XDP_PASS
    return made.raw


def _summed_anew(packet: Ether) -> bytes:
    again = packet.copy()
    del again[IP].chksum, again[TCP].chksum
    return bytes(again)
