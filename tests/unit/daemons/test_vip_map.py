"""The VIP=DSCP files of L3DSR hosts."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import vip_map
from common.config import ConfigError

L3DSR = """
# VIP=DSCP
98.139.235.245=28    # this is the best L3DSR ever
 98.139.235.246 \t= 0x1D
98.139.235.247=036
98.139.235.248 =0o37#
\t
201F::0080:1d0:f8=29 # this is a good one, too
"""


def test_lines_are_read_as_l3dsr_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "vip.conf"
    file.write_text(L3DSR)
    found = vip_map.read([str(file)])
    assert found.indices == {
        IPv4Address("98.139.235.245"): 28,
        IPv4Address("98.139.235.246"): 29,
        IPv4Address("98.139.235.247"): 30,
        IPv4Address("98.139.235.248"): 31,
    }
    assert found.warnings == (f"{file}: line 8: 201f::80:1d0:f8 is skipped, as IPv6 is not supported yet",)


def test_all_files_of_a_pattern_are_read_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("10.0.0.1=1\r\n10.0.0.2=2")
    (tmp_path / "b.conf").write_text("10.0.0.2=0x2\n10.0.0.3=3\n")
    (tmp_path / "c.conf.bak").write_text("rubbish\n")
    found = vip_map.read([f"{tmp_path}/*.conf", f"{tmp_path}/none/*"])
    assert {str(vip): index for vip, index in found.indices.items()} == {
        "10.0.0.1": 1,
        "10.0.0.2": 2,
        "10.0.0.3": 3,
    }
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("98.139.235.245", "'98.139.235.245' is not VIP=DSCP, such as 192.168.33.10=28"),
        ("x" * 300, f"'{'x' * 200}' is not VIP=DSCP"),
        ("98.139.235.245=" + "0" * 300, f"'98.139.235.245={'0' * 185}' is not VIP=DSCP"),
        ("98.139.235.245=", "DSCP '' is not a number from 1 to 63, decimal, octal such as 034 or"),
        ("98.139.235.245=0", "DSCP '0' is not a number from 1 to 63"),
        ("98.139.235.245=64", "DSCP '64' is not a number from 1 to 63"),
        ("98.139.235.245=0x40", "DSCP '0x40' is not a number from 1 to 63"),
        ("98.139.235.245=09", "DSCP '09' is not a number from 1 to 63"),
        ("98.139.235.245=1c", "DSCP '1c' is not a number from 1 to 63"),
        ("98.139.235.245=-1", "DSCP '-1' is not a number from 1 to 63"),
        ("98.139.235.245=1=2", "DSCP '1=2' is not a number from 1 to 63"),
        ("2001:db8::1=77", "DSCP '77' is not a number from 1 to 63"),
        ("host.example.org=3", "'host.example.org' is not an IPv4 address such as 192.168.33.10"),
        ("127.0.0.1=3", "127.0.0.1 is not the address of one host"),
    ],
)
def test_anything_else_is_refused_with_file_and_line(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "vip.conf"
    file.write_text(f"# first\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        vip_map.read([str(file)])
    assert str(caught.value).startswith(f"{file}: line 2: {complaint}")


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.conf", tmp_path / "b.conf"
    first.write_text("10.0.0.1=1\n")
    second.write_text("10.0.0.1=2\n")
    with pytest.raises(ConfigError) as caught:
        vip_map.read([f"{tmp_path}/*"])
    assert str(caught.value) == f"{second}: line 1: 10.0.0.1 has the DSCP 1 in {first}: line 1"
    second.write_text("\n10.0.0.2=1\n")
    with pytest.raises(ConfigError) as caught:
        vip_map.read([f"{tmp_path}/*"])
    assert str(caught.value) == f"{second}: line 2: DSCP 1 is that of 10.0.0.1 in {first}: line 1"


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60) | st.text("0123456789.=x #\n:", max_size=60).map(str.encode))
def test_any_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.conf"
    file.write_bytes(content)
    said = "read"
    try:
        assert all(1 <= index <= 63 for index in vip_map.read([str(file)]).indices.values())
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
