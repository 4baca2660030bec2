"""Daemons that are configured by files: as the only source, under options, checked, wrong, and L3DSR's."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Host, Lab
from lab.state_directory import make
from lab.testbed import daemon_program
from tests.lab import file_server
from tests.lab.configured import bridge, nodes_of, pool, service, table, vip
from tests.lab.conversation import VIP, VIP_ADDRESS
from tests.lab.fetch import curl, md5_of_download
from tests.lab.footprint import footprint
from tests.lab.observed import daemon_of, segments
from tests.lab.refusal import refused

pytestmark = pytest.mark.root

SECOND_VIP_ADDRESS = "192.168.33.11"
WITHOUT_ANY = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
MAIN_SERVICE = service(f"{VIP_ADDRESS}:80", 1, name="www")


def packetbridge_file(lab: Lab, node: str) -> str:
    backend = lab.topology.node(node).backend
    return bridge(lab, node, vip(f"{VIP_ADDRESS}:80", 1, f"{backend}:80"))


def end_daemons(lab: Lab) -> None:
    daemons = [daemon_of(host) for host in (lab.balancer, *lab.nodes)]
    for daemon in daemons:
        daemon.begin_stop()
    assert [daemon.stop() for daemon in daemons] == [0] * len(daemons)


# --- one file for all


def start_from_file_alone(lab: Lab, host: Host, daemon: str, text: str) -> None:
    """Without any option but the one that names the file."""
    make(host.state_directory)
    top = {"engine": lab.engine, "state-dir": host.state_directory, "key-file": lab.key_file}
    path = lab.configuration_file(host, daemon)
    path.write_text("".join(f'{key} = "{value}"\n' for key, value in top.items()) + text)
    started = host.start([str(daemon_program(daemon)), f"--config={path}"], name=daemon)
    started.wait_for('"event": "ready: ')
    assert f"engine {lab.engine}" in started.read_log()


def test_daemons_serve_what_their_files_say(lab: Lab) -> None:
    """Their logs, not being on a terminal, are JSON."""
    for node in lab.nodes:
        start_from_file_alone(lab, node, "packetbridge", packetbridge_file(lab, node.name))
    text = pool(lab, {"node1": 1, "node2": 2, "node3": 1}) + MAIN_SERVICE
    start_from_file_alone(lab, lab.balancer, "balancer", text)
    assert set(nodes_of(lab, [f"{VIP}/file/{number}" for number in range(30)])) == {
        "node1",
        "node2",
        "node3",
    }
    assert md5_of_download(lab.client, f"{VIP}/1m") == lab.content.md5("1m")
    end_daemons(lab)


def test_options_override_the_file(lab: Lab) -> None:
    for node in lab.topology.nodes:
        text = bridge(lab, node.name, vip(f"{VIP_ADDRESS}:80", 9, "192.0.2.1:80"))
        options = (f"--vip=1={VIP_ADDRESS}:80", f"--backend={node.backend}:80")
        lab.start_configured(lab.hosts[node.name], "packetbridge", text, *options)
    text = pool(lab, {"node1": 1, "node2": 1, "node3": 1}) + service(f"{VIP_ADDRESS}:80", 9, hash_key="uri")
    changed = ("--dscp=1", "--hash-key=segments:1")
    lab.start_configured(lab.balancer, "balancer", text, *changed)
    assert len(set(nodes_of(lab, [f"{VIP}/over/{number}" for number in range(20)]))) == 1
    assert len(set(nodes_of(lab, [f"{VIP}/{number}/over" for number in range(20)]))) == 3
    assert daemon_of(lab.balancer).stop() == 0
    lab.start_configured(lab.balancer, "balancer", text, *changed, "--node=node3=192.168.33.22")
    assert set(nodes_of(lab, [f"{VIP}/{number}/over" for number in range(20)])) == {"node3"}
    end_daemons(lab)


# --- --check


@pytest.mark.parametrize("by", [(), WITHOUT_ANY], ids=["root", "without_privileges"])
def test_check_says_what_is_right_and_touches_nothing(
    bare_lab: Lab, tmp_path: Path, by: tuple[str, ...]
) -> None:
    texts = {
        "balancer": pool(bare_lab, {"node1": 1, "node2": 1}) + MAIN_SERVICE,
        "packetbridge": packetbridge_file(bare_lab, "node1"),
    }
    said = {"balancer": "ok, 1 service, 2 nodes", "packetbridge": "ok, 1 VIP"}
    host = bare_lab.nodes[0]
    before = footprint(host)
    for program, text in texts.items():
        path = tmp_path / f"{program}.toml"
        path.write_text(text)
        options = [f"--config={path}", f"--key-file={bare_lab.key_file}", f"--state-dir={tmp_path}/none"]
        done = host.run([*by, str(daemon_program(program)), "--check", *options])
        assert (done.stdout, done.stderr) == (f"{path}: {said[program]}\n", "")
    assert footprint(host) == before
    assert not (tmp_path / "none").exists()


def test_check_refuses_what_a_start_would_refuse(bare_lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "balancer.toml"
    path.write_text(pool(bare_lab, {"node1": 1}) + service(VIP_ADDRESS, 77, name="www"))
    key = f"--key-file={bare_lab.key_file}"
    said = refused(bare_lab.balancer, "balancer", f"--config={path}", key, "--check")
    assert said == refused(bare_lab.balancer, "balancer", f"--config={path}", key)
    path.write_text(pool(bare_lab, {"node1": 1}) + MAIN_SERVICE)
    options = [f"--config={path}", f"--key-file={tmp_path / 'none'}", "--check"]
    assert "none does not exist: make one" in refused(bare_lab.balancer, "balancer", *options)


# --- files that are wrong


GOOD = {
    "balancer": """
[[pool]]
name = "www"
health = { interval = 2.0, timeout = 1.0 }
node = [{ name = "node1", address = "192.168.33.20", weight = 1 },
        { name = "node2", address = "192.168.33.21", weight = 1 }]
[[service]]
name = "first"
listen = "192.168.33.10:80"
dscp = 1
[[service]]
name = "second"
listen = "192.168.33.11:80"
dscp = 2
pool = "www"
""",
    "packetbridge": """
listen = "192.168.33.20"
[[vip]]
vip = "192.168.33.10:80"
dscp = 1
backend = "192.168.33.30:80"
[[vip]]
vip = "192.168.33.11:80"
dscp = 2
backend = "192.168.33.40:80"
""",
}
WRONG = [
    ("balancer", "dscp = 2", "dscp = 64", 'service "second": dscp 64 is not a number from 1 to 63 or "map"'),
    ("balancer", "dscp = 2", "dscp = 1", "two services have the DSCP 1: each needs its own"),
    ("balancer", "33.11:80", "33.10:80", "two services have the VIP and port 192.168.33.10:80: "),
    ("balancer", '"second"', '"first"', "two services have the name first: each needs its own"),
    ("balancer", '"node2"', '"node1"', 'pool "www": two nodes have the name node1: each needs its own'),
    ("balancer", "33.21", "33.20", 'pool "www": two nodes have the address 192.168.33.20: '),
    ("balancer", "33.21", "33.10", "node 'node2' has the address of the VIP, 192.168.33.10"),
    ("balancer", "33.21", "33.256", 'pool "www": node "node2": address: \'192.168.33.256\' is not an IPv4'),
    ("balancer", 'pool = "www"', 'pool = "ftp"', 'service "second": pool "ftp" is not one of www'),
    ("balancer", "weight = 1 }]", 'weight = "1" }]', 'pool "www": node "node2": weight "1" is not a number'),
    ("balancer", "dscp = 2", 'dscp = "map"', 'service "second": dscp is to come out of vip-map'),
    ("balancer", "pool = ", "poll = ", 'service "second": unknown key "poll": allowed are name, listen'),
    (
        "balancer",
        "timeout = 1.0",
        "timeout = 3.0",
        'pool "www": health: timeout 3 is longer than the interval, 2',
    ),
    ("balancer", "dscp = 2", "dscp 2", "not TOML: "),
    ("packetbridge", "33.40", "33.30", "two VIPs have the backend 192.168.33.30:80: each needs its own"),
    ("packetbridge", "dscp = 2", "dscp = 77", 'vip 2: dscp 77 is not a number from 1 to 63 or "map"'),
    ("packetbridge", "dscp = 2", "dscp = 1", "two VIPs have the DSCP 1: each needs its own"),
    ("packetbridge", "33.11:80", "33.11:0", "vip 2: vip: port '0' is not a number from 1 to 65535"),
    ("packetbridge", "33.11:80", "33.20:80", "listen: 192.168.33.20 is the address of a VIP"),
    ("packetbridge", "dscp = 2", "dhcp = 2", 'vip 2: unknown key "dhcp": allowed are dscp, vip, backend'),
]


@pytest.mark.parametrize(("program", "right", "wrong", "complaint"), WRONG)
def test_a_wrong_file_is_refused_with_the_place_of_what_is_wrong(
    bare_lab: Lab, tmp_path: Path, program: str, right: str, wrong: str, complaint: str
) -> None:
    path = tmp_path / f"{program}.toml"
    before, _, after = GOOD[program].rpartition(right)
    path.write_text(before + wrong + after)
    said = refused(bare_lab.nodes[0], program, f"--config={path}", f"--key-file={bare_lab.key_file}")
    assert said.startswith(f"{program}: {path}: {complaint}")


@pytest.mark.parametrize("program", ["balancer", "packetbridge"])
def test_a_file_that_is_named_must_be_there(bare_lab: Lab, tmp_path: Path, program: str) -> None:
    said = refused(bare_lab.nodes[0], program, f"--config={tmp_path}/none.toml", "--insecure")
    assert said == f"{program}: {tmp_path}/none.toml: this file does not exist\n"


def test_an_option_that_could_mean_any_of_several_services_is_refused(bare_lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "balancer.toml"
    path.write_text(GOOD["balancer"])
    said = refused(bare_lab.balancer, "balancer", f"--config={path}", "--insecure", "--hash-key=uri")
    assert said == (
        f"balancer: {path}: --hash-key is for one service, but there are 2 here: change the file instead\n"
    )


def test_a_line_of_a_map_that_is_no_vip_and_dscp_is_named(bare_lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "vips.conf").write_text(f"# ours\n{VIP_ADDRESS} = 0x40\n")
    path = tmp_path / "packetbridge.toml"
    files = f'[vip-map]\nfiles = ["{tmp_path}/*.conf"]\nbackend = "VIP"\n'
    path.write_text('listen = "192.168.33.20"\n' + files)
    said = refused(bare_lab.nodes[0], "packetbridge", f"--config={path}", "--insecure")
    assert said.startswith(f"packetbridge: {tmp_path}/vips.conf: line 2: DSCP '0x40' is not a number from 1")


# --- the maps of L3DSR


MAP = f"""\
# VIP = DSCP, as the kernel module had it
{VIP_ADDRESS} = 0x1c    # hexadecimal

{SECOND_VIP_ADDRESS}=017
2001:db8::10 = 3
"""
DSCPS = {VIP_ADDRESS: 28, SECOND_VIP_ADDRESS: 15}


@pytest.fixture(scope="module")
def l3dsr_lab(lab: Lab) -> Iterator[Lab]:
    """Two nodes as L3DSR has them: VIPs on the loopback device, a server at each VIP's own address."""
    files = lab.directory / "dsr.d"
    files.mkdir()
    (files / "vips.conf").write_text(MAP)
    read = f'[vip-map]\nfiles = ["{files}/*.conf"]\n'
    for node in lab.nodes[:2]:
        for address in DSCPS:
            node.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
            serve_at(lab, node, address)
        text = bridge(lab, node.name) + read + 'backend = "VIP"\n'
        lab.start_configured(node, "packetbridge", text)
    text = read + pool(lab, {"node1": 1, "node2": 1})
    services = [service(f"{address}:80", "map") for address in DSCPS]
    lab.start_configured(lab.balancer, "balancer", text + "".join(services))
    yield lab
    for host in (lab.balancer, *lab.nodes[:2]):
        assert daemon_of(host).stop() == 0


def serve_at(lab: Lab, node: Host, address: str) -> None:
    """The lab's files, and `who`: node and address."""
    directory = node.directory / address
    directory.mkdir()
    (directory / "who").write_text(f"{node.name} {address}")
    (directory / "1m").symlink_to(lab.content.path("1m"))
    command = [sys.executable, file_server.__file__, address, str(directory)]
    node.start(command, name="server").wait_for(file_server.READY)


@pytest.mark.parametrize("address", DSCPS)
def test_vips_on_the_loopback_device_are_served_with_the_dscp_of_the_map(
    l3dsr_lab: Lab, address: str
) -> None:
    bridges = " or ".join(f"dst host {node.bridge}" for node in l3dsr_lab.topology.nodes)
    with l3dsr_lab.balancer.capture(filter_expression=f"tcp and ({bridges})", snap_bytes=128) as path:
        said = {curl(l3dsr_lab.client, f"http://{address}/who?{number}") for number in range(3)}
        assert len(said) == 1
        assert md5_of_download(l3dsr_lab.client, f"http://{address}/1m") == l3dsr_lab.content.md5("1m")
    assert said < {f"node1 {address}", f"node2 {address}"}
    assert {packet.tos >> 2 for packet in segments(path)} == {DSCPS[address]}


def test_what_a_map_says_of_ipv6_is_skipped_and_said(l3dsr_lab: Lab) -> None:
    for host in (l3dsr_lab.balancer, l3dsr_lab.nodes[0]):
        log = daemon_of(host).read_log()
        assert "vips.conf: line 5: 2001:db8::10 is skipped, as IPv6 is not supported yet" in log


def test_a_map_may_stand_beside_vips_that_the_file_names(l3dsr_lab: Lab) -> None:
    """Those have backends of their own; their DSCP may come out of the map, too."""
    node = l3dsr_lab.topology.nodes[2]
    read = f'[vip-map]\nfiles = ["{l3dsr_lab.directory}/dsr.d/*.conf"]\n'
    named = table("vip", vip=f"{VIP_ADDRESS}:80", dscp="map", backend=f"{node.backend}:80")
    text = bridge(l3dsr_lab, node.name) + read + named
    started = l3dsr_lab.start_configured(l3dsr_lab.nodes[2], "packetbridge", text)
    assert f"DSCP 28 = VIP {VIP_ADDRESS}:80 to {node.backend}:80" in started.read_log()
    assert started.stop() == 0
