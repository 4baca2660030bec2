"""`l3dsr trace` in a network namespace: what passes there, as lines and as a file."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.utils import rdpcap

from l3dsr.scapy_layer import handoff_option
from l3dsr.trace.passage import MAX_ADDRESSES, Passage
from tests.root.namespaces import Hosts, Namespace, three_hosts
from tests.unit.l3dsr import reports
from tests.unit.l3dsr.daemon import Answers, answering
from tests.unit.wire.packets import Described, built
from tests.unit.wire.test_handoff_document import hex_block

pytestmark = pytest.mark.root

HANDOFF = hex_block("packet")
TAGGED = built(Described(server="192.168.33.20", tos=28, seq=5000, ack=9000, payload=b"xyz"))
UNTAGGED = built(Described(server="192.168.33.10", seq=5003, ack=9100))
STRANGE = built(Described(server="10.98.2.2", seq=1, ack=1))


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with three_hosts() as hosts:
        hosts.client.run("ip route add 192.168.33.0/24 via 10.98.1.2")
        yield hosts


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    answers: Answers = {"status": lambda _: [reports.BALANCER], "flow": lambda _: [*reports.SIDES]}
    with answering(tmp_path / "balancer.sock", answers):
        yield tmp_path


def trace_in(where: Namespace, state_dir: Path, *arguments: str) -> list[str]:
    tool = [sys.executable, "-m", "l3dsr", "trace", "--state-dir", str(state_dir), *arguments]
    return ["ip", "netns", "exec", where.name, *tool]


@contextmanager
def tracing(
    where: Namespace, state_dir: Path, *arguments: str, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """Once its socket is there."""
    argv = trace_in(where, state_dir, *arguments)
    process = subprocess.Popen(argv, stdout=stdout, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 20
        while len(where.run("cat /proc/net/packet").splitlines()) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def await_read(where: Namespace) -> None:
    """Until nothing waits in packet sockets: the seventh column of packet(7)'s file in /proc."""
    end = time.monotonic() + 20
    while any(line.split()[6] != "0" for line in where.run("cat /proc/net/packet").splitlines()[1:]):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.2)


def send(hosts: Hosts, *packets: bytes) -> None:
    with (
        hosts.client.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender,
    ):
        for packet in packets:
            sender.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))


def test_tagged_packets_are_shown_with_both_legs(hosts: Hosts, state_dir: Path) -> None:
    with tracing(hosts.middle, state_dir, "-c", "2") as trace:
        send(hosts, STRANGE, HANDOFF, UNTAGGED, TAGGED)
        out, err = trace.communicate(timeout=20)
    first, second = out.splitlines()
    assert "m0 in   203.0.113.7:49152 > 192.168.33.20:80  DSCP 1 (TOS 4, 0x04)  HANDOFF S-1 16909060" in first
    assert second.endswith(
        "DSCP 7 (TOS 28, 0x1c)  [.] seq 5000 ack 9000 win 502 len 3"
        "  | client leg seq 5000 ack 9000 | backend leg seq 5000 ack 8000"
    )
    assert (trace.returncode, err) == (0, "2 packets shown, 0 lost, 0 unreadable\n")


def test_a_client_s_packets_are_shown_tagged_or_not(hosts: Hosts, state_dir: Path) -> None:
    with tracing(hosts.middle, state_dir, "-c", "2", "client", "203.0.113.7") as trace:
        send(hosts, STRANGE, UNTAGGED, TAGGED)
        out, _ = trace.communicate(timeout=20)
    assert [line.split(" > ")[1].split()[0] for line in out.splitlines()] == [
        "192.168.33.10:80",
        "192.168.33.20:80",
    ]


def test_a_file_has_the_packets_as_they_passed(hosts: Hosts, state_dir: Path) -> None:
    file = state_dir / "trace.pcap"
    with tracing(hosts.middle, state_dir, "-w", str(file), "-c", "2") as trace:
        send(hosts, HANDOFF, TAGGED)
        assert trace.communicate(timeout=20)[0] == ""
    packets = rdpcap(str(file))
    assert [bytes(packet) for packet in packets] == [HANDOFF, TAGGED]
    option = handoff_option(packets[0])
    assert option is not None
    assert option.tag == HANDOFF[68:76]
    assert abs(float(packets[0].time) - time.time()) < 60
    assert packets[1][IP][TCP].seq == 5000


def test_a_reader_of_standard_output_gets_each_packet_as_it_passes(hosts: Hosts, state_dir: Path) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        with tracing(hosts.middle, state_dir, "-w", "-", "-c", "2", stdout=writing) as trace:
            os.close(writing)
            assert pipe.read(24)[:4] in (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4")
            for packet in (HANDOFF, TAGGED):
                send(hosts, packet)
                assert pipe.read(16 + len(packet))[16:] == packet
            assert trace.wait(20) == 0
        assert pipe.read() == b""


def test_an_unwritable_file_is_one_line(hosts: Hosts, state_dir: Path) -> None:
    argv = trace_in(hosts.middle, state_dir, "-w", "/dev/full")
    trace = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    said = "l3dsr trace: cannot write /dev/full: No space left on device\n"
    assert (trace.returncode, trace.stderr) == (1, said)


def test_interfaces_may_come_and_go_meanwhile(hosts: Hosts, state_dir: Path) -> None:
    with tracing(hosts.middle, state_dir, "-c", "5") as trace:
        send(hosts, TAGGED)
        hosts.middle.run("ip link add gone0 type veth peer name gone1")
        hosts.middle.run("ip link set gone0 up arp off")
        hosts.middle.run("ip link set gone1 up")
        hosts.middle.run("ip route replace 192.168.33.20/32 dev gone0")
        send(hosts, TAGGED)
        await_read(hosts.middle)
        hosts.middle.run("ip link delete gone0")
        send(hosts, TAGGED)
        out, _ = trace.communicate(timeout=20)
    assert [" ".join(line.split()[1:3]) for line in out.splitlines()] == [
        "m0 in",
        "m0 in",
        "gone0 out",
        "gone1 in",
        "m0 in",
    ]
    assert trace.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_file_is_whole(
    hosts: Hosts, state_dir: Path, number: signal.Signals
) -> None:
    file = state_dir / "trace.pcap"
    with tracing(hosts.middle, state_dir, "-w", str(file)) as trace:
        send(hosts, TAGGED)
        await_read(hosts.middle)
        trace.send_signal(number)
        _, err = trace.communicate(timeout=20)
    assert (trace.returncode, err) == (0, "1 packet shown, 0 lost, 0 unreadable\n")
    assert len(rdpcap(str(file))) == 1


def test_it_ends_when_nobody_reads_it_any_more(hosts: Hosts, state_dir: Path) -> None:
    with tracing(hosts.middle, state_dir) as trace:
        assert trace.stdout is not None
        os.close(os.dup(trace.stdout.fileno()))
        trace.stdout.close()
        assert trace.wait(20) == 0


@pytest.mark.parametrize("count", [0, 1, MAX_ADDRESSES, MAX_ADDRESSES + 1])
def test_the_kernel_filters_by_dscp_and_address(hosts: Hosts, count: int) -> None:
    """With too many addresses it takes all of TCP."""
    vip = bytes([192, 168, 33, 10])
    addresses = [bytes([10, 0, 0, each]) for each in range(count - 1)] + [vip] * min(count, 1)
    with hosts.middle.entered(), closing(Passage(addresses)) as passage:
        send(hosts, STRANGE, UNTAGGED, TAGGED)
        time.sleep(0.5)
        found = [passing.data for passing in passage.waiting() if passing.interface == "m0"]
    expected = {0: [TAGGED], MAX_ADDRESSES + 1: [STRANGE, UNTAGGED, TAGGED]}
    assert found == expected.get(count, [UNTAGGED, TAGGED])


def test_it_ends_in_time(hosts: Hosts, state_dir: Path) -> None:
    with tracing(hosts.middle, state_dir, "--time", "1") as trace:
        assert trace.wait(20) == 0


def test_without_a_daemon_it_shows_one_leg_and_says_so(hosts: Hosts, tmp_path: Path) -> None:
    with tracing(hosts.middle, tmp_path, "-c", "1") as trace:
        send(hosts, TAGGED)
        out, err = trace.communicate(timeout=20)
    assert out.endswith("[.] seq 5000 ack 9000 win 502 len 3\n")
    assert err.startswith(
        "l3dsr trace: sequence numbers of one leg only, and no names of nodes: no daemon listens"
    )
