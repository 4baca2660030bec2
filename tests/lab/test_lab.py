"""The lab itself: what it promises to the tests that stand on it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.utils import rdpcap

from lab import Lab, LabError, nginx, run_directory
from lab.state_directory import mounts_below
from tests.lab.fetch import NODE1, NODE2, NODE3, curl, md5_of_download
from tests.lab.instead import have_daemons_run
from tests.lab.lossless import undisturbed
from tests.lab.observed import logged

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab(bare_lab: Lab) -> Lab:
    """No daemon of the project runs here."""
    return bare_lab


def namespaces() -> set[str]:
    shown = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in shown.splitlines()}


def namespaces_of(prefix: str) -> set[str]:
    return {name for name in namespaces() if name.startswith(f"{prefix}-")}


@contextmanager
def lab_of_another_process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    program = (
        "import time; from lab import Lab, state_directory\n"
        "lab = Lab(); lab.up(); lab.client.start(['sleep', '600'])\n"
        "state_directory.make(lab.client.state_directory)\n"
        "print(lab.prefix, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        prefix = child.stdout.readline().strip()
        try:
            yield child, prefix
        finally:
            child.kill()
            child.wait()
            run_directory.remove(lambda found: found.prefix == prefix)


# --- what stands in the lab ---


@pytest.mark.parametrize(("url", "name"), [(NODE1, "node1"), (NODE2, "node2"), (NODE3, "node3")])
def test_each_backend_answers_with_its_name_and_the_clients_address(lab: Lab, url: str, name: str) -> None:
    shown = curl(lab.client, "-i", "--interface", "198.51.100.11", f"{url}/any/url?x=1")
    assert f"X-Node: {name}\r\n" in shown
    assert "X-Client: 198.51.100.11\r\n" in shown
    assert shown.endswith(f"\r\n\r\n{name} /any/url?x=1\n")


def test_the_second_backend_is_told_apart(lab: Lab) -> None:
    assert "X-Backend: 192.168.33.41\r\n" in curl(lab.client, "-i", "http://192.168.33.41/")


def test_all_nodes_have_the_same_files(lab: Lab) -> None:
    assert lab.content.path("100m").stat().st_size == 104857600
    for url in (NODE1, NODE2, NODE3):
        assert md5_of_download(lab.client, f"{url}/1m") == lab.content.md5("1m")
    assert md5_of_download(lab.client, f"{NODE1}/100m") == lab.content.md5("100m")


def test_echo_returns_a_body_of_100_mib(lab: Lab) -> None:
    sent = lab.content.path("100m")
    target = lab.client.directory / "echoed"
    curl(lab.client, "--data-binary", f"@{sent}", "-o", str(target), f"{NODE1}/echo")
    assert hashlib.md5(target.read_bytes()).hexdigest() == lab.content.md5("100m")


def test_nginx_takes_urls_of_8_kib_and_headers_of_30_kib(lab: Lab) -> None:
    path = "/" + "u" * 8191
    assert curl(lab.client, "-H", f"X-Large: {'h' * 30720}", NODE1 + path) == f"node1 {path}\n"


def test_slow_answers_take_their_time(lab: Lab) -> None:
    started = time.monotonic()
    assert curl(lab.client, f"{NODE1}/slow/answer/0.2") == "node1 /slow/answer/0.2\n"
    assert time.monotonic() - started >= 0.2
    started = time.monotonic()
    assert md5_of_download(lab.client, f"{NODE1}/slow/file/400000/1m") == lab.content.md5("1m")
    assert time.monotonic() - started >= 1.0


def test_the_access_log_tells_client_and_request(lab: Lab) -> None:
    curl(lab.client, "-H", "X-Request-Id: log-test", "-o", "/dev/null", f"{NODE2}/4k?logged")
    (line,) = logged(lab, "node2", "log-test", at_least=1)
    fields = line.split(" ", 2)
    assert fields[0] == "198.51.100.10"
    assert fields[2] == '192.168.33.31 200 4096 "GET /4k?logged HTTP/1.1" "log-test"'


def test_a_stopped_nginx_refuses_and_a_started_one_answers_again(lab: Lab) -> None:
    lab.nginx["node3"].stop()
    refused = lab.client.run(["curl", "-sS", NODE3], check=False)
    assert refused.returncode == 7
    lab.nginx["node3"].start(backlog=16)
    assert "node3" in curl(lab.client, NODE3)
    listening = lab.hosts["node3"].run(["ss", "-Hltn", "src", "192.168.33.32:80"]).stdout
    assert listening.split()[2] == "16"


# --- network ---


def test_every_host_has_the_router_as_its_only_neighbour(lab: Lab) -> None:
    for host in (lab.balancer, *lab.nodes):
        lab.client.run(["ping", "-c1", "-W10", str(lab.topology.link(host.name).addresses[0])])
        host.run(["ping", "-c1", "-W10", "198.51.100.10"])
    for host in lab.hosts.values():
        if host is lab.router:
            continue
        shown = json.loads(host.run(["ip", "-json", "-4", "neighbour", "show"]).stdout)
        assert {entry["dst"] for entry in shown} == {str(lab.topology.link(host.name).router)}


def test_only_the_router_forwards_and_it_does_not_filter(lab: Lab) -> None:
    for name, host in lab.hosts.items():
        forwards = host.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout.strip()
        assert forwards == ("1" if name == "router" else "0")
    filters = lab.router.run(["sh", "-c", "cat /proc/sys/net/ipv4/conf/*/rp_filter"]).stdout
    assert set(filters.split()) == {"0"}


def test_the_vips_are_addresses_of_the_balancer(lab: Lab) -> None:
    lab.client.run(["ping", "-c1", "-W10", "192.168.33.10"])
    lab.client.run(["ping", "-c1", "-W10", "192.168.33.11"])


def test_sysctls_are_of_one_namespace_only(lab: Lab) -> None:
    before = Path("/proc/sys/net/ipv4/tcp_sack").read_text()
    lab.client.sysctl("net.ipv4.tcp_sack", 0)
    try:
        assert lab.client.run(["cat", "/proc/sys/net/ipv4/tcp_sack"]).stdout == "0\n"
        assert lab.balancer.run(["cat", "/proc/sys/net/ipv4/tcp_sack"]).stdout == before
        assert Path("/proc/sys/net/ipv4/tcp_sack").read_text() == before
    finally:
        lab.client.sysctl("net.ipv4.tcp_sack", before.strip())


def test_links_keep_order_and_break_no_checksum(lab: Lab) -> None:
    def transfer() -> None:
        for _ in range(3):
            curl(lab.client, "-o", "/dev/null", f"{NODE1}/100m")

    for changes in undisturbed(lab, transfer).values():
        assert changes.get("TcpExtTCPOFOQueue", 0) == 0
        assert changes.get("TcpExtTCPSACKReorder", 0) == 0
        assert changes.get("TcpInCsumErrors", 0) == 0


def test_interface_bytes_count_what_was_delivered(lab: Lab) -> None:
    before = lab.client.interface_bytes()
    balancer_before = lab.balancer.interface_bytes()
    curl(lab.client, "-o", "/dev/null", f"{NODE1}/1m")
    after = lab.client.interface_bytes()
    assert 1048576 < after.received - before.received < 1048576 * 1.1
    assert lab.balancer.interface_bytes().received - balancer_before.received < 2000


def test_a_routed_vip_is_no_address_and_mtu_sized_links_carry_no_superpackets() -> None:
    with Lab(vip_local=False, mtu_sized=True) as routed:
        assert "192.168.33.10" not in routed.balancer.run(["ip", "-4", "address"]).stdout
        with routed.balancer.capture(filter_expression="icmp and dst 192.168.33.10") as at_balancer:
            assert routed.client.run(["ping", "-c1", "-W0.2", "192.168.33.10"], check=False).returncode == 1
        assert len(rdpcap(str(at_balancer))) == 1
        with routed.client.capture(filter_expression="tcp", snap_bytes=64) as at_client:
            assert md5_of_download(routed.client, f"{NODE1}/1m") == routed.content.md5("1m")
        lengths = [packet[IP].len for packet in rdpcap(str(at_client))]
        assert max(lengths) == 1500
        assert sum(lengths) > 1048576


def test_a_client_behind_mtu_1400_gets_icmp_sent_to_the_node_and_the_whole_file() -> None:
    with Lab() as narrow:
        narrow.set_path_mtu("client", 1400)
        with narrow.hosts["node1"].capture(filter_expression="icmp") as errors:
            assert md5_of_download(narrow.client, f"{NODE1}/1m") == narrow.content.md5("1m")
        first = rdpcap(str(errors))[0]
        assert (first[IP].src, first["ICMP"].type, first["ICMP"].code) == ("10.33.1.1", 3, 4)
        assert first["ICMP"].nexthopmtu == 1400
        narrow.set_path_mtu("client", 1500)
        narrow.set_link_mtu("client", 1300)
        with narrow.client.capture(filter_expression="tcp[13] & 2 != 0") as handshake:
            assert md5_of_download(narrow.client, f"{NODE2}/1m") == narrow.content.md5("1m")
        assert dict(rdpcap(str(handshake))[0]["TCP"].options)["MSS"] == 1260


# --- programs and captures ---


def test_a_failing_program_is_an_error_that_shows_what_it_wrote(lab: Lab) -> None:
    with pytest.raises(LabError, match="ended with 3\nwhy"):
        lab.client.run(["sh", "-c", "echo why; exit 3"])
    with pytest.raises(LabError, match=r"took over 0\.1 s"):
        lab.client.run(["sleep", "5"], timeout=0.1)


def test_output_and_input_keep_every_byte(lab: Lab) -> None:
    every_byte = bytes(range(256))
    shown = lab.client.run(["cat"], input=every_byte).stdout
    assert shown.encode("utf-8", "surrogateescape") == every_byte


def test_a_process_is_in_the_namespace_and_ends_when_told(lab: Lab) -> None:
    sleeper = lab.client.start(["sh", "-c", "echo inside; exec sleep 60"])
    sleeper.wait_for("inside")
    assert (
        Path(f"/proc/{sleeper.pid}/ns/net").stat().st_ino
        == os.stat(f"/run/netns/{lab.client.namespace}").st_ino
    )
    assert sleeper.stop() == -signal.SIGTERM
    assert not sleeper.running


def test_a_process_that_ignores_sigterm_is_killed(lab: Lab) -> None:
    stubborn = lab.client.start(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"])
    stubborn.wait_for("deaf")
    assert stubborn.stop(timeout=0.2) == -signal.SIGKILL


def test_waiting_for_a_word_that_never_comes_shows_the_log(lab: Lab) -> None:
    silent = lab.client.start(["sh", "-c", "echo something else; sleep 60"])
    silent.wait_for("something else")
    with pytest.raises(LabError, match=r"did not say 'ready' within 0\.2 s(.|\n)*something else"):
        silent.wait_for("ready", timeout=0.2)
    silent.kill()
    with pytest.raises(LabError, match="ended with -9 before it said 'ready'"):
        silent.wait_for("ready")


def test_a_capture_holds_every_packet_of_its_block_and_no_other(lab: Lab) -> None:
    curl(lab.client, f"{NODE1}/before")
    with lab.client.capture(filter_expression="tcp port 80") as path:
        curl(lab.client, f"{NODE1}/inside")
    curl(lab.client, f"{NODE1}/after")
    payloads = b"".join(bytes(packet["TCP"].payload) for packet in rdpcap(str(path)))
    assert b"GET /inside" in payloads
    assert b"/before" not in payloads
    assert b"/after" not in payloads
    syns = [packet for packet in rdpcap(str(path)) if packet["TCP"].flags == "S"]
    assert len(syns) == 1


def test_a_capture_with_a_wrong_filter_is_an_error(lab: Lab) -> None:
    with (
        pytest.raises(LabError, match="syntax error"),
        lab.client.capture(filter_expression="no such thing"),
    ):
        pass


# --- daemons ---


def test_daemons_get_the_addresses_of_the_topology_and_the_labs_key(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_daemons_run('echo "options: $*"\necho ready\nexec sleep 60', tmp_path, monkeypatch)
    balancer = lab.start_balancer("--log-level=debug")
    packetbridge = lab.start_packetbridge("node2")
    key = lab.key_file
    assert (
        "options: --config=/dev/null --listen=192.168.33.10:80 --dscp=1 --node=node1=192.168.33.20 "
        "--node=node2=192.168.33.21 --node=node3=192.168.33.22 --health=off --engine=auto "
        f"--state-dir={lab.directory}/balancer/state --key-file={key} --log-format=human --log-level=debug\n"
    ) in balancer.read_log()
    assert (
        "options: --config=/dev/null --listen=192.168.33.21 --backend=192.168.33.31:80 "
        f"--vip=1=192.168.33.10:80 --engine=auto --state-dir={lab.directory}/node2/state "
        f"--key-file={key} --log-format=human\n"
    ) in packetbridge.read_log()
    assert (key.stat().st_mode & 0o777, len(bytes.fromhex(key.read_text()))) == (0o600, 16)
    assert balancer.stop() == packetbridge.stop() == -signal.SIGTERM


def test_a_daemon_that_ends_before_it_is_ready_shows_its_log(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_daemons_run("echo no such address\nexit 2", tmp_path, monkeypatch)
    with pytest.raises(LabError, match=r"ended with 2 (.|\n)*no such address"):
        lab.start_balancer()


# --- coming and going ---


def test_each_daemon_has_a_bpf_file_system_for_its_pins_as_long_as_the_lab_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_daemons_run("echo ready\nexec sleep 60", tmp_path, monkeypatch)
    with Lab() as fresh:
        directory = fresh.directory
        fresh.start_daemons()
        fresh.start_balancer()
        hosts = [fresh.balancer, *fresh.nodes]
        assert set(mounts_below(directory)) == {host.state_directory / "bpf" for host in hosts}
        assert len(mounts_below(directory)) == len(hosts)
    assert mounts_below(directory) == []


def test_two_labs_stand_side_by_side_and_leave_nothing(lab: Lab) -> None:
    with Lab() as other:
        prefix, directory = other.prefix, other.directory
        pids = [nginx.process.pid for nginx in other.nginx.values()]
        assert prefix != lab.prefix
        other.nginx["node1"].stop()
        assert lab.client.run(["curl", "-sS", NODE1]).stdout == "node1 /\n"
        assert other.client.run(["curl", "-sS", NODE1], check=False).returncode == 7
        assert len(namespaces_of(prefix)) == 6
    assert namespaces_of(prefix) == set()
    assert not directory.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert curl(lab.client, f"{NODE1}/") == "node1 /\n"


def test_an_error_in_its_block_takes_the_lab_down() -> None:
    prefix = f"l3dsr-test{os.getpid()}"
    with pytest.raises(LabError, match="client: false ended with 1"), Lab(prefix=prefix) as failing:
        failing.client.run(["false"])
    assert namespaces_of(prefix) == set()


def test_a_lab_that_cannot_be_built_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nginx, "ECHO_MODULE", "absent.so")
    prefix = f"l3dsr-test{os.getpid()}"
    with pytest.raises(LabError, match=r"absent\.so"):
        Lab(prefix=prefix).up()
    assert namespaces_of(prefix) == set()
    assert not (run_directory.DIRECTORY / prefix).exists()


def test_the_end_of_the_process_takes_the_lab_down() -> None:
    program = "from lab import Lab\nlab = Lab()\nlab.up()\nprint(lab.prefix)"
    prefix = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert prefix.startswith("l3dsr-")
    assert namespaces_of(prefix) == set()


def test_a_prefix_that_is_taken_is_refused_and_the_lab_there_left_alone(lab: Lab) -> None:
    with pytest.raises(LabError, match=f"there is a lab {lab.prefix} already"):
        Lab(prefix=lab.prefix).up()
    assert curl(lab.client, f"{NODE1}/") == "node1 /\n"


def test_sigterm_takes_the_lab_down() -> None:
    with lab_of_another_process() as (child, prefix):
        assert len(namespaces_of(prefix)) == 6
        child.terminate()
        assert child.wait(timeout=60) == 128 + signal.SIGTERM
        assert namespaces_of(prefix) == set()


def test_what_a_killed_run_left_is_removed_and_living_labs_are_not(lab: Lab) -> None:
    with lab_of_another_process() as (child, prefix):
        both = {prefix, lab.prefix}
        assert run_directory.remove(lambda found: found.prefix in both) == []
        child.kill()
        child.wait()
        assert len(namespaces_of(prefix)) == 6
        assert len(mounts_below(run_directory.DIRECTORY / prefix)) == 1
        assert run_directory.processes(f"{prefix}-client") != []
        assert run_directory.remove(lambda found: found.prefix in both) == [prefix]
        assert namespaces_of(prefix) == set()
        assert mounts_below(run_directory.DIRECTORY / prefix) == []
        assert not (run_directory.DIRECTORY / prefix).exists()
    assert curl(lab.client, f"{NODE1}/") == "node1 /\n"


def test_the_command_line_lab_stands_until_it_is_taken_down() -> None:
    name = f"test{os.getpid()}"

    def command(word: str, *options: str) -> str:
        argv = [sys.executable, "-m", "lab", word, *options]
        done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        shown = command("up", "--name", name)
        assert f"ip netns exec l3dsr-{name}-client curl -i http://192.168.33.10/any/url" in shown
        assert f"l3dsr-{name} (standing)" in command("status")
        asked = ["ip", "netns", "exec", f"l3dsr-{name}-client", "curl", "-sS", NODE1]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "node1 /\n"
        assert "up already" in command("up", "--name", name)
    finally:
        removed = command("down", "--name", name)
    assert f"l3dsr-{name}" in removed
    assert namespaces_of(f"l3dsr-{name}") == set()
    assert f"l3dsr-{name}" not in command("status")
