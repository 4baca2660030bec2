from pathlib import Path

import pytest

from common.net import host
from common.net.errors import HostError


@pytest.fixture
def proc_sys(tmp_path: Path) -> Path:
    (tmp_path / "net/ipv4/conf/all").mkdir(parents=True)
    return tmp_path


def test_strict_rp_filter_is_named_with_its_remedy(proc_sys: Path) -> None:
    (proc_sys / "net/ipv4/conf/all/rp_filter").write_text("1\n")
    with pytest.raises(HostError, match=r"run `sysctl -w net\.ipv4\.conf\.all\.rp_filter=2` \(or 0\)"):
        host.require_no_strict_rp_filter(proc_sys)


@pytest.mark.parametrize("value", ["0\n", "2\n"])
def test_loose_rp_filter_passes(proc_sys: Path, value: str) -> None:
    (proc_sys / "net/ipv4/conf/all/rp_filter").write_text(value)
    host.require_no_strict_rp_filter(proc_sys)


def test_missing_tun_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="tun does not exist: load the kernel module with `modprobe tun`"):
        host.require_tun_device(tmp_path / "tun")


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        ("0000000000000000", "CAP_NET_ADMIN"),
        ("0000000000001000", "CAP_NET_RAW"),
        ("0000000000002000", "CAP_NET_ADMIN"),
    ],
)
def test_missing_capability_says_run_as_root(tmp_path: Path, effective: str, missing: str) -> None:
    status = tmp_path / "status"
    status.write_text(f"Name:\tbalancer\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\n")
    with pytest.raises(HostError, match=f"run as root \\(the capability {missing} is missing\\)"):
        host.require_privileges(status)


def test_both_capabilities_are_enough(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("CapEff:\t0000000000003000\n")
    host.require_privileges(status)
