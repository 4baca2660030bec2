"""What keeps a daemon from starting is one line that says what to do, exit code 2, and a host left alone.

Most of it comes before the engine; where the engine matters, it stands among the options.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import Host, Lab
from lab.testbed import daemon_program
from tests.lab import refusal

pytestmark = pytest.mark.root

on_each_engine = pytest.mark.parametrize("engine_option", ["--engine=raw", "--engine=ebpf"])
whoever_came_first = pytest.mark.parametrize("engine_of_first", ["--engine=raw", "--engine=ebpf"])
NODES = ["--node=node1=192.168.33.20"]
WITHOUT_ANY = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


@pytest.fixture(scope="module")
def lab(bare_lab: Lab) -> Lab:
    return bare_lab


def refused(host: Host, program: str, *options: str, by: tuple[str, ...] = ()) -> str:
    """The line that the daemon says, which is not about a file, nor about its outlets."""
    common = ["--config=/dev/null", *apart(host)]
    return refusal.refused(host, program, *common, *options, by=by)


def apart(host: Host) -> list[str]:
    """Outlets that no other daemon of the host has."""
    return [f"--control={host.directory}/apart.sock", "--metrics=off"]


@contextmanager
def route(host: Host, *route_: str) -> Iterator[None]:
    host.run(["ip", "route", "add", *route_])
    try:
        yield
    finally:
        host.run(["ip", "route", "delete", *route_])


@pytest.mark.parametrize("program", ["balancer", "packetbridge"])
def test_help_is_no_error(lab: Lab, program: str) -> None:
    done = lab.balancer.run([str(daemon_program(program)), "--help"])
    assert (done.stdout.startswith(f"usage: {program} "), done.stderr) == (True, "")


@pytest.mark.parametrize("program", ["balancer", "packetbridge"])
@pytest.mark.parametrize(
    ("by", "capability"),
    [
        (WITHOUT_ANY, "CAP_NET_ADMIN"),
        (("setpriv", "--bounding-set=-net_admin"), "CAP_NET_ADMIN"),
        (("setpriv", "--bounding-set=-net_raw"), "CAP_NET_RAW"),
    ],
    ids=["without_any", "without_net_admin", "without_net_raw"],
)
def test_missing_privileges(lab: Lab, program: str, by: tuple[str, ...], capability: str) -> None:
    said = refused(lab.nodes[0], program, f"--key-file={lab.key_file}", by=by)
    assert said == f"{program}: not permitted: run as root (the capability {capability} is missing)\n"


@pytest.mark.parametrize("program", ["balancer", "packetbridge"])
def test_strict_rp_filter_in_the_way(lab: Lab, program: str) -> None:
    lab.nodes[0].sysctl("net.ipv4.conf.all.rp_filter", 1)
    try:
        said = refused(lab.nodes[0], program, "--insecure")
    finally:
        lab.nodes[0].sysctl("net.ipv4.conf.all.rp_filter", 0)
    assert "run `sysctl -w net.ipv4.conf.all.rp_filter=2`" in said


@pytest.mark.parametrize("program", ["balancer", "packetbridge"])
@pytest.mark.parametrize(
    ("text", "mode", "advice"),
    [
        (None, 0o600, "does not exist: make one"),
        ("0123456789abcdef0123456789abcdef\n", 0o640, "is open to others than its owner: run `chmod 600 "),
        ("0123456789abcdef\n", 0o600, "line 1 is not 32 hex digits"),
    ],
    ids=["none", "open_to_others", "too_short"],
)
def test_key_file_that_cannot_be_used(
    lab: Lab, tmp_path: Path, program: str, text: str | None, mode: int, advice: str
) -> None:
    path = tmp_path / "handoff.key"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    said = refused(lab.nodes[0], program, f"--key-file={path}")
    assert said.startswith(f"{program}: key file {path} {advice}")


# --- balancer


def test_node_without_a_route(lab: Lab) -> None:
    with route(lab.balancer, "unreachable", "192.0.2.0/24"):
        said = refused(lab.balancer, "balancer", "--insecure", "--node=far=192.0.2.1")
    assert said == "balancer: no route to 192.0.2.1 (No route to host): add one or correct the address\n"


def test_one_of_several_nodes_without_a_route_is_said_and_keeps_nothing_back(lab: Lab) -> None:
    with route(lab.balancer, "unreachable", "192.0.2.0/24"):
        started = lab.start_balancer(nodes=["node1=192.168.33.20", "far=192.0.2.1"])
    assert "WARNING: no route to 192.0.2.1 (No route to host): add one or" in started.read_log()
    started.wait_for("INFO: no longer: no route to 192.0.2.1 ")
    assert started.stop() == 0


def test_path_mtu_too_small_for_a_handoff(lab: Lab) -> None:
    with route(lab.balancer, "192.0.2.0/24", "via", "10.33.0.1", "mtu", "611"):
        said = refused(lab.balancer, "balancer", "--insecure", *NODES, "--node=far=192.0.2.1")
    assert said == ("balancer: the path MTU to the nodes is 611, too small for a handoff: raise it to 612\n")


@on_each_engine
@whoever_came_first
def test_vip_already_served(lab: Lab, tmp_path: Path, engine_of_first: str, engine_option: str) -> None:
    first = lab.start_balancer(engine_of_first)
    options = [*NODES, f"--key-file={lab.key_file}", engine_option]
    said = refused(lab.balancer, "balancer", *options)
    assert said == "balancer: VIP 192.168.33.10:80 is already served by another process\n"
    other = [f"--state-dir={tmp_path}", *apart(lab.balancer)]
    beside = lab.start_balancer("--listen=192.168.33.10:8080", engine_option, *other)
    assert beside.stop() == 0
    assert first.running
    assert first.stop() == 0


# --- packetbridge


@pytest.mark.parametrize("option", ["--listen=192.0.2.1", "--backend=192.0.2.1:80"])
def test_address_that_no_interface_has(lab: Lab, option: str) -> None:
    said = refused(lab.nodes[0], "packetbridge", "--insecure", option)
    assert said == (
        "packetbridge: no interface has the address 192.0.2.1: add it (ip address add 192.0.2.1/32 dev ...)\n"
    )


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ("2=192.168.33.11", "two VIPs have the backend 192.168.33.30:80"),
        ("2=192.168.33.10@192.168.33.40:80", "two VIPs have the address and port 192.168.33.10:80"),
        ("1=192.168.33.11@192.168.33.40:80", "two VIPs have the DSCP 1"),
    ],
    ids=["one_backend", "one_address", "one_dscp"],
)
def test_vips_that_overlap(lab: Lab, second: str, complaint: str) -> None:
    said = refused(lab.nodes[0], "packetbridge", "--insecure", "--vip=1=192.168.33.10", f"--vip={second}")
    assert said == f"packetbridge: /dev/null: {complaint}: each needs its own\n"


@on_each_engine
@whoever_came_first
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--backend=192.168.33.40:80"], "bridge address 192.168.33.20 is already served by another process"),
        (["--listen=10.33.1.2"], "backend 192.168.33.30:80 is already served by another process"),
    ],
    ids=["bridge_address", "backend"],
)
def test_what_another_packetbridge_serves(
    lab: Lab, tmp_path: Path, options: list[str], complaint: str, engine_of_first: str, engine_option: str
) -> None:
    first = lab.start_packetbridge("node1", engine_of_first)
    options = [*options, f"--state-dir={tmp_path}", engine_option]
    said = refused(lab.nodes[0], "packetbridge", "--insecure", *options)
    assert said == f"packetbridge: {complaint}\n"
    assert first.running
    assert first.stop() == 0


@pytest.mark.parametrize(
    ("program", "engine_option", "complaint"),
    [
        (
            "packetbridge",
            "--engine=raw",
            "cannot write {}/packetbridge-192.168.33.20.flows: Not a directory;",
        ),
        (
            "packetbridge",
            "--engine=ebpf",
            "cannot write {}/packetbridge-192.168.33.20.flows: Not a directory;",
        ),
        ("balancer", "--engine=ebpf", "cannot write {}/balancer.lock (Not a directory):"),
    ],
)
def test_state_directory_that_cannot_be_made(
    lab: Lab, tmp_path: Path, program: str, engine_option: str, complaint: str
) -> None:
    host = lab.balancer if program == "balancer" else lab.nodes[0]
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / "state"
    options = ["--insecure", f"--state-dir={directory}", engine_option]
    said = refused(host, program, *options)
    assert said == f"{program}: {complaint.format(directory)} choose another --state-dir\n"


def test_state_directory_that_cannot_be_entered(lab: Lab, tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    tmp_path.chmod(0o700)
    said = refused(
        lab.nodes[0],
        "packetbridge",
        "--insecure",
        "--engine=raw",
        f"--state-dir={tmp_path}",
        by=("setpriv", "--bounding-set=-dac_override,-dac_read_search"),
    )
    assert said.endswith("Permission denied; choose another --state-dir\n")
