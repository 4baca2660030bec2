"""Looks at the host before anything is touched. What is required and not there raises `HostError`."""

from pathlib import Path

from common.net.errors import HostError

_CAP_NET_ADMIN, _CAP_NET_RAW = 12, 13
_TUN_DEVICE = Path("/dev/net/tun")
_RP_FILTER = "net.ipv4.conf.all.rp_filter"
_STRICT = 1
_SYN_COOKIES = "net.ipv4.tcp_syncookies"


def require_privileges(status: Path = Path("/proc/self/status")) -> None:
    """CAP_NET_ADMIN and CAP_NET_RAW; root has both, except in many containers."""
    effective = next(
        int(line.split()[1], 16) for line in status.read_text().splitlines() if line.startswith("CapEff:")
    )
    for bit, name in ((_CAP_NET_ADMIN, "CAP_NET_ADMIN"), (_CAP_NET_RAW, "CAP_NET_RAW")):
        if not effective >> bit & 1:
            raise HostError(f"not permitted: run as root (the capability {name} is missing)")


def require_tun_device(path: Path = _TUN_DEVICE) -> None:
    if not path.exists():
        raise HostError(f"{path} does not exist: load the kernel module with `modprobe tun`")


def has_syn_cookies(proc_sys: Path = Path("/proc/sys")) -> bool:
    """Whether listeners take the end of a handshake of which they have not seen the begin."""
    path = proc_sys / _SYN_COOKIES.replace(".", "/")
    return path.exists() and path.read_text().strip() != "0"


def require_no_strict_rp_filter(proc_sys: Path = Path("/proc/sys")) -> None:
    """The kernel takes the larger of `all` and the device's own value, and our TUN's own is 0.

    Strict filtering would drop what the daemon writes to its TUN, whose sources are clients beyond
    other interfaces.
    """
    for obstacle in obstacles(proc_sys):
        raise HostError(obstacle)


def obstacles(proc_sys: Path = Path("/proc/sys")) -> list[str]:
    """What somebody may have set since the start, and only the operator can set back."""
    value = int((proc_sys / _RP_FILTER.replace(".", "/")).read_text())
    if value != _STRICT:
        return []
    strict = f"strict reverse path filtering ({_RP_FILTER} = 1)"
    return [f"{strict} would drop the traffic: run `sysctl -w {_RP_FILTER}=2` (or 0)"]
