"""The two commands' options: what they mean, and how bad ones are refused."""

import re
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType

import pytest

import balancer.config
import packetbridge.config
from balancer.config import HealthConfig, NodeConfig, NoNode, OnFail
from balancer.core.service import NonHttp
from common.config import Endpoint, HostConfig
from common.hashing.request_key import KeySpec
from lab.topology import load
from packetbridge.config import VipConfig

Parse = Callable[[list[str]], object]


def test_the_defaults_fit_the_topology_of_lab_and_boxes() -> None:
    topology = load()
    node = topology.nodes[0]
    service = topology.service
    vip = Endpoint(IPv4Address(str(service.vip)), service.port)
    given = balancer.config.parse([])
    (only,) = given.services
    assert (only.vip, only.index, only.name) == (vip, service.dscp, "192.168.33.10:80")
    address = IPv4Address(str(node.bridge))
    assert only.pool.nodes == (NodeConfig(name=node.name, address=address, weight=1),)
    bridge = packetbridge.config.parse([])
    assert bridge.bridge == IPv4Address(str(node.bridge))
    backend = Endpoint(IPv4Address(str(node.backend)), service.port)
    assert bridge.vips == (VipConfig(service.dscp, vip, backend),)


def test_balancer_options_mean_what_they_say() -> None:
    text = (
        "--listen 10.0.0.1:8080 --node a=10.0.0.2 --node b-2=10.0.0.3@0 --dscp 63 --hash-key segments:2"
        " --hash-seed 18446744073709551615 --non-http hash --window-scale 10 --insecure --max-flows 9"
    )
    config = balancer.config.parse(text.split())
    (given,) = config.services
    assert given.vip == Endpoint(IPv4Address("10.0.0.1"), 8080)
    assert given.pool.nodes == (
        NodeConfig(name="a", address=IPv4Address("10.0.0.2"), weight=1),
        NodeConfig(name="b-2", address=IPv4Address("10.0.0.3"), weight=0),
    )
    assert (given.index, given.key, given.hash_seed) == (63, KeySpec("segments", 2), 2**64 - 1)
    assert (given.non_http, given.promised_scale) == (NonHttp.HASH, 10)
    assert (config.host.insecure, config.limits.flows) == (True, 9)


def test_options_of_a_pool_mean_what_they_say() -> None:
    text = "--on-fail reset --no-node all --load-factor 1.25 --slow-start 30 --health /up"
    pool = balancer.config.parse(text.split()).services[0].pool
    assert (pool.on_fail, pool.no_node) == (OnFail.RESET, NoNode.ALL)
    assert (pool.load_factor, pool.slow_start) == (1.25, 30.0)
    assert pool.health == HealthConfig(path="/up")


def test_options_of_checks_mean_what_they_say() -> None:
    text = (
        "--health-expect 204,300-303 --health-interval 9 --health-timeout 4 --health-rise 5 --health-fall 6"
    )
    assert balancer.config.parse(text.split()).services[0].pool.health == HealthConfig(
        expect=(range(204, 205), range(300, 304)), interval=9.0, timeout=4.0, rise=5, fall=6
    )


def test_nodes_are_checked_unless_that_is_switched_off() -> None:
    health = balancer.config.parse([]).services[0].pool.health
    assert health is not None
    assert (health.path, health.host, health.expect) == ("/", None, (range(200, 500),))
    assert (health.interval, health.timeout, health.rise, health.fall) == (2.0, 1.0, 2, 3)
    assert balancer.config.parse(["--health", "off"]).services[0].pool.health is None


@pytest.mark.parametrize("module", [balancer.config, packetbridge.config])
def test_options_of_the_process_mean_what_they_say(module: ModuleType) -> None:
    text = (
        "--key-file /k --engine ebpf --keep-flows --state-dir /s --log-level debug --log-format json"
        " --control /c.sock --control-group root --metrics 0.0.0.0:9000 --channel-port 1"
    )
    assert module.parse(text.split()).host == HostConfig(
        engine="ebpf",
        keep_flows=True,
        state_dir=Path("/s"),
        key_file=Path("/k"),
        insecure=False,
        log_level="debug",
        log_format="json",
        control=Path("/c.sock"),
        control_group="root",
        metrics=Endpoint(IPv4Address("0.0.0.0"), 9000),
        channel_port=1,
    )


@pytest.mark.parametrize(
    ("module", "socket", "port"),
    [(balancer.config, "balancer.sock", 9713), (packetbridge.config, "packetbridge.sock", 9714)],
)
def test_each_daemon_has_a_control_socket_and_metrics_of_its_own(
    module: ModuleType, socket: str, port: int
) -> None:
    host = module.parse(["--state-dir", "/s"]).host
    assert host.control == Path("/s") / socket
    assert host.metrics == Endpoint(IPv4Address("127.0.0.1"), port)
    assert module.parse(["--metrics", "off"]).host.metrics is None


@pytest.mark.parametrize("module", [balancer.config, packetbridge.config])
def test_the_engine_is_chosen_by_itself_and_a_stop_cleans_up_unless_told_otherwise(
    module: ModuleType,
) -> None:
    host = module.parse([]).host
    assert (host.engine, host.keep_flows, host.state_dir) == ("auto", False, Path("/run/l3dsr"))


def test_packetbridge_options_mean_what_they_say() -> None:
    text = "--listen 10.0.0.2 --backend 10.0.0.9:8080 --vip 1=10.0.0.1 --vip 7=10.0.0.1:443@10.0.0.8:8443"
    given = packetbridge.config.parse(text.split())
    assert given.bridge == IPv4Address("10.0.0.2")
    assert given.vips == (
        VipConfig(1, Endpoint(IPv4Address("10.0.0.1"), 80), Endpoint(IPv4Address("10.0.0.9"), 8080)),
        VipConfig(7, Endpoint(IPv4Address("10.0.0.1"), 443), Endpoint(IPv4Address("10.0.0.8"), 8443)),
    )


BAD_FOR_BALANCER = {
    "--listen 300.1.1.1": "'300.1.1.1' is not an IPv4 address",
    "--listen 10.0.0.1:0": "port '0' is not a number from 1 to 65535",
    "--listen 10.0.0.1:": "port '' is not a number",
    "--listen 127.0.0.1": "127.0.0.1 is not the address of one host",
    "--listen 2001:db8::1": "'2001:db8::1' is not ADDR[:PORT] with an IPv4 address",
    "--listen [2001:db8::1]:80": "'[2001:db8::1]:80' is not ADDR[:PORT] with an IPv4 address",
    "--listen 224.0.0.1": "224.0.0.1 is not the address of one host",
    "--node 10.0.0.2": "--node '10.0.0.2' is not NAME=ADDR[@WEIGHT]",
    "--node a=b": "'b' is not an IPv4 address",
    "--node a=10.0.0.2@-1": "weight of node 'a' '-1' is not a number from 0 to 1000",
    "--node a=10.0.0.2 --node a=10.0.0.3": "two nodes have the name a",
    "--node a=10.0.0.2 --node b=10.0.0.2": "two nodes have the address 10.0.0.2",
    "--listen 10.0.0.2 --node a=10.0.0.2": "node 'a' has the address of the VIP",
    "--dscp 0": "--dscp '0' is not a number from 1 to 63",
    "--dscp 64": "--dscp '64' is not a number from 1 to 63",
    "--dscp ¹": "--dscp '¹' is not a number from 1 to 63",
    "--hash-key cookie": "hash key 'cookie' is none of: path, uri, segments:N",
    "--hash-key segments:0": "hash key 'segments:0' is none of",
    "--hash-seed -1": "--hash-seed",
    "--window-scale 15": "--window-scale '15' is not a number from 0 to 14",
    "--hash-seed 18446744073709551616": "'18446744073709551616' is not a number from 0 to 184467440737",
    "--non-http drop": '--non-http \'drop\' is not "reset" or "hash"',
    "--engine magic": '--engine \'magic\' is not "auto" or "ebpf" or "raw"',
    "--health up": "--health 'up' is not a path that begins with /",
    "--load-factor 1": "--load-factor '1' is not a number above 1 and up to 10",
    "--load-factor nan": "--load-factor 'nan' is not a number above 1 and up to 10",
    "--slow-start -1": "--slow-start '-1' is not a number from 0 to 3600",
    "--health-rise 0": "--health-rise '0' is not a number from 1 to 100",
    "--health off --health-fall 2": "--health-fall: health checks are off",
    "--health-expect 200,2x": "expect: entry 2: '2x' is not a status from 200 to 599 or a range",
    "--no-node 404": '--no-node \'404\' is not "503" or "all"',
    "--metrics 9713": "'9713' is not ADDR:PORT",
    "--metrics ::1:9713": "'::1:9713' is not ADDR:PORT",
    f"--control /{'c' * 107}": "--control: the control socket's path may have 107 bytes, and not 108",
    f"--state-dir /{'s' * 93}": "--state-dir: the control socket's path may have 107 bytes, and not 108",
    "--channel-port 65536": "--channel-port '65536' is not a number from 1 to 65535",
    "--control-group nobody-has-this": "--control-group 'nobody-has-this' is not a group of this host",
    "--config /nowhere/l3dsr.toml": "/nowhere/l3dsr.toml: this file does not exist",
    "--key-file k --insecure": "--insecure: not allowed with argument --key-file",
    "--list 10.0.0.1": "unrecognized arguments: --list",
}

BAD_FOR_PACKETBRIDGE = {
    "--listen 10.0.0.256": "'10.0.0.256' is not an IPv4 address",
    "--backend 10.0.0.9:99999": "port '99999' is not a number from 1 to 65535",
    "--vip 10.0.0.1": "--vip '10.0.0.1' is not DSCP=ADDR",
    "--vip 64=10.0.0.1": "DSCP '64' is not a number from 1 to 63",
    "--vip 1=10.0.0.1 --vip 1=10.0.0.3@10.0.0.8:80": "two VIPs have the DSCP 1",
    "--vip 1=10.0.0.1 --vip 2=10.0.0.1@10.0.0.8:80": "two VIPs have the address and port 10.0.0.1:80",
    "--vip 1=10.0.0.1 --vip 2=10.0.0.3": "two VIPs have the backend 192.168.33.30:80",
    "--listen 10.0.0.1 --vip 1=10.0.0.1": "--listen: 10.0.0.1 is the address of a VIP",
    "--max-flows 0": "--max-flows '0' is not a number from 1",
}


@pytest.mark.parametrize(
    ("parse", "arguments", "complaint"),
    [(balancer.config.parse, *bad) for bad in BAD_FOR_BALANCER.items()]
    + [(packetbridge.config.parse, *bad) for bad in BAD_FOR_PACKETBRIDGE.items()],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    parse: Parse, arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments.split())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("parse", [balancer.config.parse, packetbridge.config.parse])
def test_help_explains_every_option_with_its_default(
    parse: Parse, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    options = capsys.readouterr().out.partition("options:")[2]
    blocks = [" ".join(block.split()) for block in re.split(r"\n  (?=-)", options)[1:]]
    assert len(blocks) > 7
    for block in blocks:
        assert "(default: " in block or block.startswith("-h"), block
