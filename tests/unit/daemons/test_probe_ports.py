"""Which ports health checks use."""

from pathlib import Path

import pytest

from balancer.probe_ports import REUSE_SECONDS, ProbePorts, find_ports
from common.net.errors import HostError

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def proc(folder: Path, ephemeral: str, *listening: int) -> Path:
    setting = folder / "sys" / "net" / "ipv4" / "ip_local_port_range"
    setting.parent.mkdir(parents=True)
    setting.write_text(ephemeral + "\n")
    sockets = folder / "thread-self" / "net"
    sockets.mkdir(parents=True)
    lines = [
        f"   {at}: 00000000:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0"
        for at, port in enumerate(listening)
    ]
    connected = "   9: 0100007F:FFFF 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 1"
    (sockets / "tcp").write_text(HEAD + "\n".join([*lines, connected]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("ephemeral", "listening", "expected"),
    [
        ("32768\t60999", (), range(61440, 65536)),
        ("32768\t60999", (65535,), range(61439, 65535)),
        ("32768\t60999", (63000,), range(28672, 32768)),
        ("32768\t65535", (30000,), range(25904, 30000)),
        ("1024\t65000", (), range(65001, 65536)),
        ("1024\t65000", (65100,), range(65101, 65536)),
    ],
)
def test_ports_are_free_of_listeners_and_of_the_kernels_choice(
    tmp_path: Path, ephemeral: str, listening: tuple[int, ...], expected: range
) -> None:
    assert find_ports(proc=proc(tmp_path, ephemeral, *listening)) == expected


def test_service_ports_are_left_out(tmp_path: Path) -> None:
    assert 64000 not in find_ports([64000], proc(tmp_path, "32768 60999"))


def test_host_without_free_ports_is_told_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="run `sysctl -w net"):
        find_ports(proc=proc(tmp_path, "1024 65535"))


def test_ports_are_in_use_until_the_last_one_is_given_back() -> None:
    ports = ProbePorts(range(100, 103), first=0)
    assert not ports.are_in_use
    first, second = ports.take(0.0), ports.take(0.0)
    assert first == 100
    assert second == 101
    ports.give_back(first, 1.0)
    assert ports.are_in_use
    ports.give_back(second, 1.0)
    assert not ports.are_in_use


def test_port_rests_before_it_comes_again() -> None:
    ports = ProbePorts(range(100, 103), first=1)
    assert [ports.take(0.0) for _ in range(4)] == [101, 102, 100, None]
    ports.give_back(102, 5.0)
    ports.give_back(101, 6.0)
    assert ports.take(4.9 + REUSE_SECONDS) is None
    assert ports.take(5.0 + REUSE_SECONDS) == 102
    assert ports.take(5.0 + REUSE_SECONDS) is None
    assert ports.take(6.0 + REUSE_SECONDS) == 101
