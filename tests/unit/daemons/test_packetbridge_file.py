"""The packetbridge's configuration file: what it means, and how a bad one is refused."""

import re
import tomllib
from ipaddress import IPv4Address
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import ConfigError, Endpoint
from packetbridge.config import PacketbridgeConfig, VipConfig, load, parse, restart_only
from packetbridge.core.service import Limits, Timeouts
from packetbridge.document import LimitKeys, TimeoutKeys
from tests.unit.daemons.any_toml import TABLES, assert_loads_or_is_refused_in_one_line, written

ONE = '[[vip]]\ndscp = 1\nvip = "10.0.0.1:80"\nbackend = "10.0.0.6:8080"\n'
TWO = ONE + '[[vip]]\ndscp = 2\nvip = "10.0.0.1:443"\nbackend = "10.0.0.6:8443"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "packetbridge.toml"


def loaded(file: Path, text: str, *options: str) -> PacketbridgeConfig:
    file.write_text(text, encoding="utf-8")
    return load(["--config", str(file), *options])


def refusal(file: Path, text: str, *options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(file, text, *options)
    return str(caught.value)


def endpoint(address: str, port: int) -> Endpoint:
    return Endpoint(IPv4Address(address), port)


def test_every_key_means_what_it_says(file: Path) -> None:
    config = loaded(
        file,
        """
        listen = "10.0.0.5"
        backend = "10.0.0.7:81"
        adopt = "off"
        insecure = true

        [limits]
        flows = 1
        tombstones = 2
        strangers = 3
        waiting-per-flow = 65536
        waiting-in-all = 65537
        resets-per-second = 6.5

        [timeouts]
        idle = 60

        [[vip]]
        dscp = 9
        vip = "10.0.0.1"

        [[vip]]
        dscp = 0x0a
        vip = "10.0.0.1:443"
        backend = "10.0.0.6:8443"
        """,
    )
    assert config.bridge == IPv4Address("10.0.0.5")
    assert config.vips == (
        VipConfig(9, endpoint("10.0.0.1", 80), endpoint("10.0.0.7", 81)),
        VipConfig(10, endpoint("10.0.0.1", 443), endpoint("10.0.0.6", 8443)),
    )
    assert (config.adopt, config.host.insecure, config.path) == (False, True, file)
    assert config.limits == Limits(
        flows=1,
        tombstones=2,
        strangers=3,
        waiting_per_flow=65536,
        waiting_in_all=65537,
        resets_per_second=6.5,
    )
    assert config.timeouts == Timeouts(60.0)


def test_every_limit_and_timeout_has_a_key_and_its_default() -> None:
    assert Limits(**msgspec.structs.asdict(LimitKeys())) == Limits()
    assert set(LimitKeys.__struct_fields__) == set(Limits._fields)
    assert Timeouts(**msgspec.structs.asdict(TimeoutKeys())) == Timeouts()
    assert set(TimeoutKeys.__struct_fields__) == set(Timeouts._fields)


def test_options_override_the_file(file: Path) -> None:
    config = loaded(
        file, TWO, "--vip=3=10.0.0.9", "--backend=10.0.0.8:1", "--listen=10.0.0.4", "--max-flows=7"
    )
    assert config.vips == (VipConfig(3, endpoint("10.0.0.9", 80), endpoint("10.0.0.8", 1)),)
    assert (config.bridge, config.limits.flows) == (IPv4Address("10.0.0.4"), 7)
    assert loaded(file, ONE, "--backend=10.0.0.8:1").vips[0].backend == endpoint("10.0.0.8", 1)


@pytest.mark.parametrize(
    ("backend", "first", "second"),
    [
        ("VIP", endpoint("10.0.0.1", 8000), endpoint("10.0.0.2", 8000)),
        ("VIP:81", endpoint("10.0.0.1", 81), endpoint("10.0.0.2", 81)),
    ],
)
def test_vips_of_a_map_have_backends_at_their_own_addresses(
    file: Path, tmp_path: Path, backend: str, first: Endpoint, second: Endpoint
) -> None:
    (tmp_path / "a.conf").write_text("10.0.0.1=034\n10.0.0.2=2\n2001:db8::1=3\n")
    config = loaded(file, f'[vip-map]\nfiles = ["{tmp_path}/*.conf"]\nport = 8000\nbackend = "{backend}"')
    assert config.vips == (
        VipConfig(28, endpoint("10.0.0.1", 8000), first),
        VipConfig(2, endpoint("10.0.0.2", 8000), second),
    )
    assert config.warnings == (
        f"{tmp_path}/a.conf: line 3: 2001:db8::1 is skipped, as IPv6 is not supported yet",
    )


def test_a_vip_of_a_map_may_be_served_elsewhere(file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("10.0.0.1=4\n10.0.0.2=2\n")
    own = '[[vip]]\ndscp = "map"\nvip = "10.0.0.1:81"\nbackend = "10.0.0.7:82"\n'
    table = f'[vip-map]\nfiles = ["{tmp_path}/a.conf"]\n'
    alone = VipConfig(4, endpoint("10.0.0.1", 81), endpoint("10.0.0.7", 82))
    assert loaded(file, own + table).vips == (alone,)
    other = VipConfig(2, endpoint("10.0.0.2", 80), endpoint("10.0.0.6", 8080))
    assert loaded(file, own + table + 'backend = "10.0.0.6:8080"').vips == (alone, other)


BAD = {
    'bridge = "10.0.0.5"': 'unknown key "bridge": allowed are engine, ',
    'listen = "10.0.0.500"': "listen: '10.0.0.500' is not an IPv4 address such as 192.168.33.10",
    "listen = 5": 'listen 5 is not "ADDR"',
    'adopt = "on"': 'adopt "on" is not "auto" or "off"',
    "vip = 3": "vip 3 is not a list of tables",
    "vip = [3]": "vip (a list) is not a list of tables",
    "[[vip]]\ndscp = 1": 'vip 1: vip is missing: it is "ADDR[:PORT]"',
    '[[vip]]\nvip = "10.0.0.1"': 'vip 1: dscp is missing: it is a number from 1 to 63 or "map"',
    ONE.replace("= 1", "= 64"): 'vip 1: dscp 64 is not a number from 1 to 63 or "map"',
    ONE.replace("8080", "80800"): "vip 1: backend: port '80800' is not a number from 1 to 65535",
    TWO.replace("8443", "8080"): "two VIPs have the backend 10.0.0.6:8080: each needs its own",
    TWO.replace("dscp = 2", "dscp = 1"): "two VIPs have the DSCP 1: each needs its own",
    TWO.replace(":443", ":80"): "two VIPs have the address and port 10.0.0.1:80: each needs its own",
    'listen = "10.0.0.1"\n'
    + ONE: "listen: 10.0.0.1 is the address of a VIP: it must be one of this host alone",
    "[limits]\nstrangers = 0": "limits: strangers 0 is not a number from 1 to 10000000",
    "[timeouts]\nverified = 3": 'timeouts: unknown key "verified": allowed are idle',
    '[vip-map]\nbackend = "VIP"\nfiles = []': "vip-map: files [] is not a list of file names",
    '[vip-map]\nbackend = "VIP"\nfiles = ["/nowhere/*"]': (
        "there is no VIP to serve: give a [[vip]], or fill the files of vip-map"
    ),
    '[vip-map]\nbackend = "vip"': (
        "vip-map: backend: 'vip' is not an IPv4 address such as 192.168.33.10, VIP or VIP:PORT"
    ),
    '[vip-map]\nbackend = "VIP:0"': "vip-map: backend: port '0' is not a number from 1 to 65535",
}


@pytest.mark.parametrize(("text", "complaint"), BAD.items())
def test_a_bad_file_is_refused_in_one_line_that_says_where_and_why(
    file: Path, text: str, complaint: str
) -> None:
    said = refusal(file, text)
    assert said.startswith(f"{file}: {complaint}")
    assert "\n" not in said


def test_one_backend_for_several_vips_of_a_map_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("10.0.0.1=4\n10.0.0.2=2\n")
    text = f'[vip-map]\nfiles = ["{tmp_path}/a.conf"]\nbackend = "10.0.0.6:80"'
    assert refusal(file, text) == f"{file}: two VIPs have the backend 10.0.0.6:80: each needs its own"


def test_a_map_file_that_is_named_must_be_there(file: Path) -> None:
    text = '[vip-map]\nfiles = ["/nowhere/a.conf"]\nbackend = "VIP"'
    assert refusal(file, text) == "/nowhere/a.conf: cannot be read: No such file or directory"


def test_a_backend_by_option_is_refused_where_several_vips_have_their_own(file: Path) -> None:
    assert refusal(file, TWO, "--backend=10.0.0.8:1") == (
        f"{file}: --backend is for one VIP, but there are 2 here: change the file instead"
    )


def test_check_says_what_there_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(TWO)
    with pytest.raises(SystemExit) as ended:
        parse(["--config", str(file), "--check", "--insecure"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{file}: ok, 2 VIPs\n"


def test_a_reload_takes_all_but_what_needs_a_new_start(file: Path) -> None:
    before = loaded(file, ONE)
    assert restart_only(before, loaded(file, 'log-level = "debug"\n' + TWO)) == []
    changed = (
        'listen = "10.0.0.9"\nadopt = "off"\ninsecure = true\n[limits]\nflows = 9\n[timeouts]\nidle = 9\n'
    )
    assert restart_only(before, loaded(file, changed)) == [
        "insecure",
        "listen",
        "adopt",
        "limits",
        "timeouts",
    ]


def test_the_example_file_is_right() -> None:
    path = Path(__file__).parents[3] / "setup" / "examples" / "packetbridge.toml"
    config = load(["--config", str(path)])
    assert config.vips == (VipConfig(1, endpoint("203.0.113.10", 80), endpoint("10.0.1.6", 80)),)


def test_the_documented_example_is_right(file: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    part = text.partition("## The packetbridge\n")[2].partition("The service port")[0]
    config = loaded(file, re.sub(r"^    ", "", part, flags=re.MULTILINE))
    assert config.vips == (VipConfig(1, endpoint("203.0.113.10", 80), endpoint("10.0.1.6", 8080)),)


@settings(max_examples=200, deadline=None)
@given(tables=TABLES, whole=st.booleans())
def test_any_tables_load_or_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, object], whole: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    base = tomllib.loads(TWO) if whole else {}
    file.write_text(written({**base, **tables}), encoding="utf-8")
    for options in ([], ["--backend=10.0.0.9:1"], ["--vip=3=10.0.0.1@10.0.0.2", "--max-flows=3"]):
        assert_loads_or_is_refused_in_one_line(load, ["--config", str(file), *options])
