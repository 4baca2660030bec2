"""Programs and maps that go on without their daemon, and that the next one takes over, or does not.

All daemons are told to keep flows, so one that is stopped leaves as much as one that is killed.
"""

import hashlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.bpf.maps import ArrayMap
from common.bpf.pins import PinDirectory
from lab import Host, Lab, Process
from lab.state_directory import PINS, mounts_below
from lab.testbed import daemon_program
from tests.lab.conversation import VIP, Client, converse, request
from tests.lab.fetch import md5_of_download
from tests.lab.footprint import footprint, pins
from tests.lab.lossless import repairs
from tests.lab.observed import counters_of, daemon_of, node_of
from tests.lab.sockets import ask, await_that, connection, say
from tests.lab.wellbeing import assert_all_is_well

pytestmark = [
    pytest.mark.root,
    pytest.mark.engine("ebpf", reason="the raw data plane ends with its process"),
]

KEEP = "--keep-flows"
SLOW = "/slow/file/500000/1m"
TAKEN_OVER = "the flows of an earlier run are carried on"
REMOVED = "is of another kind: removed"
ENDS: dict[str, Callable[[Process], int]] = {"killed": Process.kill, "stopped": Process.stop}
however = pytest.mark.parametrize("how", ENDS)
either = pytest.mark.parametrize("program", ["balancer", "packetbridge"])


@pytest.fixture(scope="module")
def kept_lab(lab: Lab) -> Lab:
    for node in lab.topology.nodes:
        lab.start_packetbridge(node.name, KEEP)
    lab.start_balancer(KEEP)
    return lab


class Daemon:
    """The one that serves a URL, as balancer or as its node's packetbridge."""

    def __init__(self, lab: Lab, program: str, target: str) -> None:
        self._lab = lab
        self._node = None if program == "balancer" else node_of(lab, target)
        self.host: Host = lab.hosts[self._node or program]

    def end(self, how: str) -> None:
        ENDS[how](daemon_of(self.host))

    def start(self, *options: str) -> Process:
        if self._node is None:
            return self._lab.start_balancer(*options)
        return self._lab.start_packetbridge(self._node, *options)

    @contextmanager
    def away(self, how: str) -> Iterator[None]:
        """Meanwhile. The next one takes over what it finds."""
        self.end(how)
        try:
            yield
        finally:
            assert TAKEN_OVER in self.start(KEEP).read_log()


@however
@either
def test_a_download_goes_on_without_the_daemon_and_with_the_next_one(
    kept_lab: Lab, program: str, how: str
) -> None:
    content = kept_lab.content.path("1m").read_bytes()
    daemon = Daemon(kept_lab, program, SLOW)
    with connection(kept_lab) as client:
        say(client, SLOW, "Connection: close")
        received = client.recv(1 << 16)
        with daemon.away(how):
            before = len(received)
            while len(received) < before + 300_000:
                received += client.recv(1 << 16)
        while more := client.recv(1 << 16):
            received += more
    assert received.partition(b"\r\n\r\n")[2] == content


@however
@either
def test_a_kept_connection_is_served_without_the_daemon_and_by_the_next_one(
    kept_lab: Lab, program: str, how: str
) -> None:
    daemon = Daemon(kept_lab, program, "/64k")
    content = kept_lab.content.path("64k").read_bytes()
    with connection(kept_lab) as client:
        assert ask(client, "/64k").body == content
        with daemon.away(how):
            assert ask(client, "/64k").body == content
        assert ask(client, "/64k").body == content
    assert counters_of(daemon_of(daemon.host))["flows"] > 0


@however
@either
def test_new_connections_are_answered_without_the_daemon(kept_lab: Lab, program: str, how: str) -> None:
    daemon = Daemon(kept_lab, program, "/64k")
    with daemon.away(how):
        answers = converse(kept_lab.client, [Client((request(f"/new/{number}"),)) for number in range(30)])
        assert {answer.status for answer in answers} == {200}
        assert {answer.node for answer in answers} == {"node1", "node2", "node3"}
        assert md5_of_download(kept_lab.client, f"{VIP}/64k") == kept_lab.content.md5("64k")
    assert_all_is_well(kept_lab)


@however
def test_a_handshake_with_the_last_balancer_is_good_for_the_next_one(kept_lab: Lab, how: str) -> None:
    """The first payload, too, may come while there is none."""
    daemon = Daemon(kept_lab, "balancer", "/64k")
    with connection(kept_lab) as early, connection(kept_lab) as late:
        with daemon.away(how):
            assert ask(early, "/shaken").status == 200
        assert ask(late, "/shaken").status == 200
        assert ask(early, "/shaken").status == 200


def test_nothing_is_lost_while_programs_are_replaced(kept_lab: Lab) -> None:
    """A download and an upload take longer than the restarts of the daemons through which they go."""
    client, content = kept_lab.client, kept_lab.content
    slowly = ["curl", "-sS", "--fail", "--limit-rate", "5M", "--max-time", "60"]
    downloaded, echoed = (client.directory / name for name in ("slow_download", "slow_echo"))
    upload = ["--data-binary", f"@{content.path('100m')}", "-o", str(echoed), f"{VIP}/echo"]

    def transfer() -> None:
        downloaded.unlink(missing_ok=True)
        transfers = [
            client.start([*slowly, "-o", str(downloaded), f"{VIP}/100m"]),
            client.start([*slowly, *upload]),
        ]
        await_that(lambda: downloaded.exists() and downloaded.stat().st_size > 0)
        for program, target in (("balancer", "/"), ("packetbridge", "/100m"), ("packetbridge", "/echo")):
            with Daemon(kept_lab, program, target).away("stopped"):
                pass
        assert [transfer.running for transfer in transfers] == [True, True]
        assert [transfer.wait(60) for transfer in transfers] == [0, 0]

    assert repairs(kept_lab, transfer) == {}
    for path in (downloaded, echoed):
        assert hashlib.md5(path.read_bytes()).hexdigest() == content.md5("100m")


def test_a_packetbridge_with_one_more_vip_carries_the_flows_on(kept_lab: Lab) -> None:
    daemon = Daemon(kept_lab, "packetbridge", "/others")
    second = kept_lab.topology.second_service
    backend = kept_lab.topology.node(daemon.host.name).second_backend
    with connection(kept_lab) as client:
        assert ask(client, "/others").status == 200
        daemon.end("stopped")
        successor = daemon.start(KEEP, f"--vip={second.dscp}={second.vip}@{backend}:80")
        assert TAKEN_OVER in successor.read_log()
        assert ask(client, "/others").status == 200
        assert successor.stop() == 0
        assert TAKEN_OVER in daemon.start(KEEP).read_log()
        assert ask(client, "/others").status == 200


# --- what is not carried on


def assert_is_carried_over(client: socket.socket, program: str, target: str, *, can_be: bool = True) -> None:
    """By the journal, which a packetbridge has; a balancer's connections are reset."""
    if program == "packetbridge" and can_be:
        assert ask(client, target).status == 200
        return
    with pytest.raises(ConnectionResetError):
        ask(client, target)


@either
def test_a_daemon_that_is_not_to_keep_flows_takes_its_maps_away(kept_lab: Lab, program: str) -> None:
    """Whether the one before was or not."""
    daemon = Daemon(kept_lab, program, "/ended")
    with connection(kept_lab) as client:
        assert ask(client, "/ended").status == 200
        daemon.end("stopped")
        successor = daemon.start()
        assert TAKEN_OVER in successor.read_log()
        assert ask(client, "/ended").status == 200
        assert successor.stop() == 0
        assert TAKEN_OVER not in daemon.start(KEEP).read_log()
        assert_is_carried_over(client, program, "/ended")
    assert_all_is_well(kept_lab)


def change_nothing(_daemon: Daemon) -> None:
    pass


def change_layout(daemon: Daemon) -> None:
    """What tells the layout is another version's; nothing else is different."""
    (path,) = (path for path in pins(daemon.host) if path.name == "meta")
    descriptor = PinDirectory(path.parent).get_map(path.name)
    assert descriptor is not None
    meta = ArrayMap(descriptor)
    said = bytearray(meta.lookup(0))
    said[0] ^= 1
    meta.update(0, bytes(said))
    os.close(descriptor)


@pytest.mark.parametrize(
    ("change", "options", "can_be_read"),
    [(change_layout, [], False), (change_nothing, ["--max-flows=4321"], True)],
    ids=["another_version", "other_options"],
)
@either
def test_maps_of_another_kind_are_removed_and_that_is_said(
    kept_lab: Lab, program: str, change: Callable[[Daemon], None], options: list[str], can_be_read: bool
) -> None:
    daemon = Daemon(kept_lab, program, "/another")
    with connection(kept_lab) as client:
        assert ask(client, "/another").status == 200
        daemon.end("stopped")
        change(daemon)
        successor = daemon.start(KEEP, *options)
        assert successor.read_log().count(REMOVED) == 1
        assert TAKEN_OVER not in successor.read_log()
        assert_is_carried_over(client, program, "/another", can_be=can_be_read)
    assert_all_is_well(kept_lab)
    assert successor.stop() == 0
    daemon.start(KEEP)


# --- the bpf file system


@contextmanager
def unmounted_afterwards(directory: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for mount_point in mounts_below(directory):
            subprocess.run(["umount", mount_point], check=True)


def test_the_daemon_mounts_a_bpf_file_system_and_takes_it_away_when_nothing_is_left_in_it(
    kept_lab: Lab, tmp_path: Path
) -> None:
    """Without `ip netns exec` around it, which would take away mounts by itself."""
    host, top = kept_lab.balancer, tmp_path / PINS
    process = f"/proc/{os.getpid()}"
    outside = [
        "nsenter",
        f"--mount={process}/ns/mnt",
        f"--root={process}/root",
        str(daemon_program("balancer")),
    ]
    options = [
        "--config=/dev/null",
        "--listen=192.168.33.11",
        f"--key-file={kept_lab.key_file}",
        f"--state-dir={tmp_path}",
        "--metrics=off",
    ]

    def start(*more: str) -> Process:
        started = host.start([*outside, *options, "--engine=ebpf", *more], name="outside")
        started.wait_for("ready")
        return started

    before = footprint(host)
    with unmounted_afterwards(tmp_path):
        keeping = start(KEEP)
        assert mounts_below(tmp_path) == [top]
        assert keeping.stop() == 0
        assert mounts_below(tmp_path) == [top]
        start(KEEP).kill()
        assert mounts_below(tmp_path) == [top]
        last = start()
        assert mounts_below(tmp_path) == [top]
        assert last.stop() == 0
        assert mounts_below(tmp_path) == []
    assert footprint(host) == before
