"""The balancer's configuration file: what it means, and how a bad one is refused."""

import re
import tomllib
from ipaddress import IPv4Address
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.config import (
    BalancerConfig,
    HealthConfig,
    NodeConfig,
    NoNode,
    OnFail,
    load,
    parse,
    restart_only,
)
from balancer.core.service import Limits, NonHttp, Timeouts
from balancer.document import LimitKeys, TimeoutKeys
from common.config import ConfigError, Endpoint
from common.hashing.request_key import KeySpec
from common.options import refuse_loss
from tests.unit.daemons.any_toml import CONTENTS, TABLES, assert_loads_or_is_refused_in_one_line, written

POOL = """
[[pool]]
name = "www"
[[pool.node]]
name = "a"
address = "10.0.0.2"
[[pool.node]]
name = "b"
address = "10.0.0.3"
"""
SERVICE = """
[[service]]
name = "www"
listen = "10.0.0.1:80"
dscp = 7
"""
OTHER_POOL = '[[pool]]\nname = "api"\n[[pool.node]]\nname = "c"\naddress = "10.0.0.4"\n'
OTHER_SERVICE = '[[service]]\nname = "api"\nlisten = "10.0.0.1:8080"\ndscp = 8\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "balancer.toml"


def loaded(file: Path, text: str, *options: str) -> BalancerConfig:
    file.write_text(text, encoding="utf-8")
    return load(["--config", str(file), *options])


def refusal(file: Path, text: str, *options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(file, text, *options)
    return str(caught.value)


def test_every_key_means_what_it_says(file: Path) -> None:
    config = loaded(
        file,
        """
        engine = "ebpf"
        key-file = "/k"
        metrics = "off"

        [limits]
        flows = 1
        half-open = 2
        verified = 3
        collecting = 4
        collecting-bytes = 65536
        answered = 6
        resets-per-second = 7

        [timeouts]
        idle = 10
        verified = 20
        preamble = 0.1

        [[pool]]
        name = "www"
        on-fail = "reset"
        no-node = "all"
        slow-start = 30
        load-factor = 2

        [pool.health]
        path = "/up"
        host = "example.org"
        expect = ["200-299", "404"]
        interval = 5
        timeout = 5
        rise = 1
        fall = 9
        source = "10.0.0.99"

        [[pool.node]]
        name = "a"
        address = "10.0.0.2"
        weight = 5

        [[pool]]
        name = "api"
        health = "off"
        [[pool.node]]
        name = "a"
        address = "10.0.0.2"

        [[service]]
        name = "site"
        listen = "10.0.0.1:8080"
        dscp = 63
        pool = "www"
        hash-key = "segments:2"
        hash-seed = 99
        non-http = "hash"
        window-scale = 9

        [[service]]
        listen = "10.0.0.9"
        dscp = 1
        pool = "api"
        """,
    )
    assert (config.host.engine, config.host.key_file, config.host.metrics) == ("ebpf", Path("/k"), None)
    assert config.limits == Limits(
        flows=1,
        half_open=2,
        verified=3,
        collecting=4,
        collecting_bytes=65536,
        answered=6,
        resets_per_second=7.0,
    )
    assert config.timeouts == Timeouts(10.0, 20.0, 0.1)
    assert config.path == file
    site, api = config.services
    assert (site.name, site.vip, site.index) == ("site", Endpoint(IPv4Address("10.0.0.1"), 8080), 63)
    assert (site.key, site.hash_seed) == (KeySpec("segments", 2), 99)
    assert (site.non_http, site.promised_scale) == (NonHttp.HASH, 9)
    assert (site.pool.name, site.pool.on_fail, site.pool.no_node) == ("www", OnFail.RESET, NoNode.ALL)
    assert (site.pool.slow_start, site.pool.load_factor) == (30.0, 2.0)
    assert site.pool.nodes == (NodeConfig(name="a", address=IPv4Address("10.0.0.2"), weight=5),)
    assert site.pool.health == HealthConfig(
        path="/up",
        host="example.org",
        expect=(range(200, 300), range(404, 405)),
        interval=5.0,
        timeout=5.0,
        rise=1,
        fall=9,
        source=IPv4Address("10.0.0.99"),
    )
    assert (api.name, api.vip.port, api.pool.health, api.pool.load_factor) == ("10.0.0.9:80", 80, None, None)
    assert config.addresses == {"a": IPv4Address("10.0.0.2")}


def test_every_limit_and_timeout_has_a_key_and_its_default() -> None:
    assert Limits(**msgspec.structs.asdict(LimitKeys())) == Limits()
    assert set(LimitKeys.__struct_fields__) == set(Limits._fields)
    assert Timeouts(**msgspec.structs.asdict(TimeoutKeys())) == Timeouts()
    assert set(TimeoutKeys.__struct_fields__) == set(Timeouts._fields)


def test_a_file_that_names_no_service_leaves_it_to_the_options(file: Path) -> None:
    config = loaded(file, 'log-level = "debug"', "--listen", "10.9.9.9", "--log-level", "error")
    assert config.host.log_level == "error"
    assert [str(service.vip) for service in config.services] == ["10.9.9.9:80"]
    assert list(config.addresses) == ["node1"]


def test_options_override_the_one_service_and_its_pool(file: Path) -> None:
    options = "--listen 10.0.0.8:81 --dscp 9 --hash-key uri --node x=10.0.0.7@3 --health off --on-fail reset"
    text = OTHER_POOL + POOL + SERVICE + 'pool = "www"\nwindow-scale = 3\n'
    (service,) = loaded(file, text, *options.split()).services
    assert (str(service.vip), service.index, service.key.kind) == ("10.0.0.8:81", 9, "uri")
    assert (service.name, service.promised_scale) == ("www", 3)
    assert service.pool.nodes == (NodeConfig(name="x", address=IPv4Address("10.0.0.7"), weight=3),)
    assert (service.pool.name, service.pool.health, service.pool.on_fail) == ("www", None, OnFail.RESET)


def test_options_override_the_pool_that_the_service_names_by_its_default_name(file: Path) -> None:
    text = OTHER_POOL + POOL.replace('name = "www"\n', "") + SERVICE + 'pool = "default"\n'
    (service,) = loaded(file, text, "--node=d=10.0.0.9", "--on-fail=reset").services
    assert (service.pool.name, service.pool.on_fail) == ("default", OnFail.RESET)
    assert [node.name for node in service.pool.nodes] == ["d"]


def test_a_path_to_check_is_put_into_the_checks_of_the_file(file: Path) -> None:
    text = POOL + "[pool.health]\nfall = 7\n" + SERVICE
    health = loaded(file, text, "--health", "/up").services[0].pool.health
    assert health == HealthConfig(path="/up", fall=7)
    off = POOL.replace('"www"', '"www"\nhealth = "off"') + SERVICE
    assert loaded(file, off).services[0].pool.health is None
    assert loaded(file, off, "--health", "/up").services[0].pool.health == HealthConfig(path="/up")


def test_secrecy_given_by_option_overrides_the_file_either_way(file: Path) -> None:
    assert loaded(file, 'key-file = "/k"', "--insecure").host.insecure
    host = loaded(file, "insecure = true", "--key-file", "/k").host
    assert (host.insecure, host.key_file) == (False, Path("/k"))


def test_the_dscp_may_come_out_of_a_map(file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("10.0.0.1 = 0x1c # ours\n2001:db8::1=3\n")
    text = POOL + SERVICE.replace("7", '"map"') + f'[vip-map]\nfiles = ["{tmp_path}/*.conf"]\n'
    config = loaded(file, text)
    assert config.services[0].index == 28
    assert config.warnings == (
        f"{tmp_path}/a.conf: line 2: 2001:db8::1 is skipped, as IPv6 is not supported yet",
    )


NODE = '[[pool.node]]\nname = "{}"\naddress = "{}"\n'
BAD = {
    'speed = "high"': 'unknown key "speed": allowed are engine, keep-flows, ',
    'engine = "magic"': 'engine "magic" is not "auto" or "ebpf" or "raw"',
    "keep-flows = 1": "keep-flows 1 is not true or false",
    "key-file = 7": "key-file 7 is not a file name",
    "log-level = [1]": "log-level (a list) is not ",
    'metrics = "9713"': "metrics: '9713' is not ADDR:PORT, such as 127.0.0.1:9713, or off",
    'control-group = "nobody-has-this"': 'control-group "nobody-has-this" is not a group of this host',
    'insecure = true\nkey-file = "/k"': "insecure = true and key-file exclude each other",
    "limits = 3": "limits 3 is not a table",
    "[limits]\nflow = 3": 'limits: unknown key "flow": allowed are flows, ',
    "[limits]\nflows = 0": "limits: flows 0 is not a number from 1 to 10000000",
    "[timeouts]\nidle = nan": "timeouts: idle nan is not a number from 1 to 604800",
    "[timeouts]\nidle = 2024-01-01": "timeouts: idle 2024-01-01 is not a number from 1 to 604800",
    "a = 1\na = 2": "not TOML: Cannot overwrite a value (at ",
    "\nengine = auto": "not TOML: Invalid value (at line 2, column 10)",
    "engine = " + "[" * 5000: "not TOML that can be used: a number or a nesting without end",
    "channel-port = 0x" + "f" * 5000: f"channel-port 0x{'f' * 58}... is not a number from 1 to 65535",
    '[vip-map]\nfiles = ["\\u0000/*"]': 'vip-map: files: entry 1 "\\u0000/*" is not a file name',
    "engine = " + "1" * 5000: "not TOML that can be used: a number or a nesting without end",
    POOL: "there is a pool, but no [[service]] that uses it",
    SERVICE: "there is a service, but no [[pool]] with its nodes",
    POOL + "[[service]]\ndscp = 1": 'service 1: listen is missing: it is "ADDR[:PORT]"',
    POOL
    + '[[service]]\nlisten = "10.0.0.1"': 'service 1: dscp is missing: it is a number from 1 to 63 or "map"',
    POOL + SERVICE.replace("7", "77"): 'service "www": dscp 77 is not a number from 1 to 63 or "map"',
    POOL + SERVICE.replace("7", "0"): 'service "www": dscp 0 is not a number from 1 to 63 or "map"',
    POOL + SERVICE.replace("7", '"7"'): 'service "www": dscp "7" is not a number from 1 to 63 or "map"',
    POOL + SERVICE.replace("7", '"map"') + '[vip-map]\nfiles = ["/nowhere/*.conf"]': (
        'service "www": dscp is to come out of vip-map, but none of its files names 10.0.0.1'
    ),
    POOL + SERVICE.replace(":80", ":0"): "service \"www\": listen: port '0' is not a number from 1 to 65535",
    POOL + SERVICE.replace("10.0.0.1:80", "::1"): (
        "service \"www\": listen: '::1' is not ADDR[:PORT] with an IPv4 address, such as 192.168.33.10:80"
    ),
    POOL + SERVICE.replace("10.0.0.1", "x" * 5000): (
        f'service "www": listen "{"x" * 59}... is not "ADDR[:PORT]"'
    ),
    POOL + SERVICE.replace('"10.0.0.1:80"', "80"): 'service "www": listen 80 is not "ADDR[:PORT]"',
    POOL + SERVICE + 'pool = "x"': 'service "www": pool "x" is not one of www',
    POOL + OTHER_POOL + SERVICE: 'service "www": pool is missing: it is one of www, api',
    POOL
    + SERVICE
    + 'hash-key = "cookie"': "service \"www\": hash-key: hash key 'cookie' is none of: path, uri, ",
    POOL + SERVICE + "hash-seed = 18446744073709551616": (
        'service "www": hash-seed 18446744073709551616 is not a number from 0 to 18446744073709551615'
    ),
    POOL + SERVICE + 'non-http = "drop"': 'service "www": non-http "drop" is not "reset" or "hash"',
    POOL + SERVICE + "window-scale = 15": 'service "www": window-scale 15 is not a number from 0 to 14',
    POOL
    + SERVICE
    + OTHER_SERVICE.replace('"api"', '"www"'): "two services have the name www: each needs its own",
    POOL + SERVICE + OTHER_SERVICE.replace("8080", "80"): (
        "two services have the VIP and port 10.0.0.1:80: each needs its own"
    ),
    POOL + SERVICE + OTHER_SERVICE.replace("dscp = 8", "dscp = 7"): (
        "two services have the DSCP 7: each needs its own"
    ),
    POOL + SERVICE.replace("0.1:", "0.3:"): "node 'b' has the address of the VIP, 10.0.0.3",
    POOL + POOL + SERVICE: "two pools have the name www: each needs its own",
    SERVICE
    + '[[pool]]\nname = "www"': 'pool "www": node is missing: it is a list of tables that is not empty',
    SERVICE
    + '[[pool]]\nname = "www"\nnode = []': 'pool "www": node [] is not a list of tables that is not empty',
    SERVICE + "[pool]\n": "pool (a table) is not a list of tables",
    POOL
    + NODE.format("a", "10.0.0.9")
    + SERVICE: 'pool "www": two nodes have the name a: each needs its own',
    POOL + NODE.format("c", "10.0.0.3") + SERVICE: (
        'pool "www": two nodes have the address 10.0.0.3: each needs its own'
    ),
    POOL + NODE.format("c d", "10.0.0.4") + SERVICE: (
        'pool "www": node "c d": name "c d" is not a name of 1 to 64 letters, digits, dots,'
    ),
    POOL + NODE.format("c", "::1") + SERVICE: (
        'pool "www": node "c": address: \'::1\' is not an IPv4 address such as 192.168.33.10'
    ),
    POOL + "weight = 1001" + SERVICE: 'pool "www": node "b": weight 1001 is not a number from 0 to 1000',
    POOL + "weight = 1.5" + SERVICE: 'pool "www": node "b": weight 1.5 is not a number from 0 to 1000',
    POOL + OTHER_POOL.replace('"c"', '"a"') + SERVICE + 'pool = "www"': (
        'pool "api": node "a": address 10.0.0.4 is not the one it has in another pool, 10.0.0.2'
    ),
    POOL + OTHER_POOL.replace("0.4", "0.2") + SERVICE + 'pool = "www"': (
        'pool "api": node "c": address 10.0.0.2 is that of node a in another pool'
    ),
    POOL + "[pool.health]\nrise = 0" + SERVICE: 'pool "www": health: rise 0 is not a number from 1 to 100',
    POOL + "[pool.health]\nfall = 0" + SERVICE: 'pool "www": health: fall 0 is not a number from 1 to 100',
    POOL + '[pool.health]\npath = "x"' + SERVICE: (
        'pool "www": health: path "x" is not a path that begins with / and has no spaces'
    ),
    POOL + '[pool.health]\nexpect = ["200", "20x"]' + SERVICE: (
        "pool \"www\": health: expect: entry 2: '20x' is not a status from 200 to 599 or a range of them,"
        " such as 200-399"
    ),
    POOL + '[pool.health]\nexpect = ["100-399"]' + SERVICE: (
        "pool \"www\": health: expect: entry 1: '100-399' is not a status from 200 to 599 or a range of them"
    ),
    POOL + '[pool.health]\nexpect = "200"' + SERVICE: (
        'pool "www": health: expect "200" is not a list such as ["200-299", "404"]'
    ),
    POOL + "[pool.health]\nexpect = [404]" + SERVICE: (
        'pool "www": health: expect: entry 1 404 is not a status from 200 to 599 or a range of them,'
        ' such as "200-399"'
    ),
    POOL + "[pool.health]\ninterval = 1\ntimeout = 1.5" + SERVICE: (
        'pool "www": health: timeout 1.5 is longer than the interval, 1:'
        " a check must end before the next one begins"
    ),
    POOL.replace('"www"', '"www"\nhealth = "on"')
    + SERVICE: 'pool "www": health "on" is not a table or "off"',
    POOL.replace('"www"', '"www"\nload-factor = 1') + SERVICE: (
        'pool "www": load-factor 1 is not a number above 1 and up to 10 or "off"'
    ),
    POOL.replace('"www"', '"www"\nno-node = 503') + SERVICE: 'pool "www": no-node 503 is not "503" or "all"',
    POOL.replace('"www"', '"w\\nw"')
    + SERVICE: 'pool "w\\nw": name "w\\nw" is not a name of 1 to 64 letters, ',
}


@pytest.mark.parametrize(("text", "complaint"), BAD.items())
def test_a_bad_file_is_refused_in_one_line_that_says_where_and_why(
    file: Path, text: str, complaint: str
) -> None:
    said = refusal(file, text)
    assert said.startswith(f"{file}: {complaint}")
    assert "\n" not in said


def test_check_shows_what_was_skipped(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.conf").write_text("10.0.0.1=3\n2001:db8::1=3\n")
    file.write_text(POOL + SERVICE.replace("7", '"map"') + f'[vip-map]\nfiles = ["{tmp_path}/a.conf"]\n')
    with pytest.raises(SystemExit) as ended:
        parse(["--config", str(file), "--check", "--insecure"])
    assert ended.value.code == 0
    assert capsys.readouterr().err == (
        f"balancer: {tmp_path}/a.conf: line 2: 2001:db8::1 is skipped, as IPv6 is not supported yet\n"
    )


@pytest.mark.parametrize("option", ["--listen=10.0.0.8", "--dscp=3", "--node=x=10.0.0.9", "--health=off"])
def test_an_option_for_one_service_is_refused_where_there_are_several(file: Path, option: str) -> None:
    name = option.partition("=")[0]
    assert refusal(file, POOL + SERVICE + OTHER_SERVICE, option) == (
        f"{file}: {name} is for one service, but there are 2 here: change the file instead"
    )


def test_a_file_that_is_no_text_is_refused(file: Path) -> None:
    file.write_bytes(b"engine = '\xff'")
    with pytest.raises(ConfigError, match=r"^\S+: not TOML: it is not text in UTF-8$"):
        load(["--config", str(file)])
    with pytest.raises(ConfigError, match=r"^\S+: cannot be read: Is a directory$"):
        load(["--config", str(file.parent)])


def test_the_default_file_is_read_if_it_exists(tmp_path: Path) -> None:
    assert load([]).path is None
    default = tmp_path / "etc" / "balancer.toml"
    default.parent.mkdir()
    default.write_text('log-level = "error"')
    assert (load([]).path, load([]).host.log_level) == (default, "error")


def test_a_reload_does_not_take_the_defaults_for_services_that_the_file_named(tmp_path: Path) -> None:
    default = tmp_path / "etc" / "balancer.toml"
    default.parent.mkdir()
    default.write_text(POOL + SERVICE)
    old = load([])
    refuse_loss(old, load([]), "service")
    default.write_text('log-level = "error"')
    bare = load([])
    with pytest.raises(ConfigError, match=r"balancer\.toml: there is no \[\[service\]\] any more"):
        refuse_loss(old, bare, "service")
    default.unlink()
    with pytest.raises(ConfigError, match=r"balancer\.toml: this file does not exist any more"):
        refuse_loss(old, load([]), "service")
    refuse_loss(bare, load([]), "service")


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (POOL + SERVICE + OTHER_SERVICE, ["--insecure"], "{file}: ok, 2 services, 2 nodes\n"),
        (OTHER_POOL + OTHER_SERVICE, ["--insecure"], "{file}: ok, 1 service, 1 node\n"),
    ],
)
def test_check_says_what_there_is(
    file: Path, text: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        parse(["--config", str(file), "--check", *options])
    assert ended.value.code == 0
    assert capsys.readouterr().out == said.format(file=file)


def test_check_looks_at_the_key_file_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = file.with_name("key")
    key.write_text("11" * 16)
    key.chmod(0o644)
    with pytest.raises(SystemExit) as ended:
        parse(["--check", "--key-file", str(key)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"balancer: key file {key} is open to others than its owner: run `chmod 600 {key}`\n"
    )
    key.chmod(0o600)
    with pytest.raises(SystemExit) as ended:
        parse(["--check", "--key-file", str(key)])
    assert (ended.value.code, capsys.readouterr().out) == (0, "balancer: ok, 1 service, 1 node\n")


def test_a_reload_takes_all_but_what_needs_a_new_start(file: Path) -> None:
    before = loaded(file, POOL + SERVICE)
    after = loaded(file, 'log-level = "debug"\n' + POOL + OTHER_POOL + OTHER_SERVICE + 'pool = "api"')
    assert restart_only(before, after) == []
    changed = (
        'engine = "raw"\nmetrics = "off"\nchannel-port = 9\n[limits]\nflows = 5\n[timeouts]\nidle = 60\n'
    )
    assert restart_only(before, loaded(file, changed)) == [
        "engine",
        "metrics",
        "channel-port",
        "limits",
        "timeouts",
    ]
    others = (
        'keep-flows = true\nstate-dir = "/s"\nkey-file = "/k"\nlog-format = "json"\ncontrol-group = "root"\n'
    )
    assert restart_only(before, loaded(file, others)) == [
        "keep-flows",
        "state-dir",
        "key-file",
        "log-format",
        "control",
        "control-group",
    ]


def test_the_example_file_is_right() -> None:
    path = Path(__file__).parents[3] / "setup" / "examples" / "balancer.toml"
    config = load(["--config", str(path)])
    assert [service.name for service in config.services] == ["www"]
    assert list(config.addresses) == ["n1", "n2", "n3"]


def test_the_documented_example_is_right(file: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    part = text.partition("## The balancer\n")[2].partition("A service is")[0]
    config = loaded(file, re.sub(r"^    ", "", part, flags=re.MULTILINE))
    assert config.addresses == {"n1": IPv4Address("10.0.1.5"), "n2": IPv4Address("10.0.2.5")}


@settings(max_examples=200, deadline=None)
@given(tables=TABLES, whole=st.booleans())
def test_any_tables_load_or_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, object], whole: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    base = tomllib.loads(POOL + SERVICE) if whole else {}
    file.write_text(written({**base, **tables}), encoding="utf-8")
    for options in ([], ["--node=x=10.0.0.9", "--health=/x"], ["--health=off", "--max-flows=3"]):
        assert_loads_or_is_refused_in_one_line(load, ["--config", str(file), *options])


@settings(max_examples=200, deadline=None)
@given(content=CONTENTS)
def test_any_bytes_load_or_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.toml"
    file.write_bytes(content)
    assert_loads_or_is_refused_in_one_line(load, ["--config", str(file)])
