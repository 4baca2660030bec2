"""Checks of the host itself; none needs a daemon that runs."""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address

from common import keyring
from common.config import ConfigError
from common.net.interfaces import Interface
from common.net.privileges import WORKING
from l3dsr.doctor.facts import Kernel, Sysctl, addresses
from l3dsr.doctor.finding import Finding, fault, ok, or_ok, warning
from l3dsr.doctor.subject import Subject

_OLDEST_EBPF, _OLDEST_TCX, _OLDEST_OWNER = (6, 1), (6, 6), (5, 12)
_STRICT = "1"
_TUN_PREFIX = "l3dsr"
_CONNTRACK = "net/netfilter/nf_conntrack"
_NEARLY_FULL = 0.9


def privileges(effective: int) -> Iterator[Finding]:
    missing = [f"CAP_{capability.name}" for capability in WORKING if not effective >> capability & 1]
    if missing:
        yield warning(
            "privileges",
            f"this shell has not {', '.join(missing)}: some of what follows cannot be seen",
            "run `sudo l3dsr doctor`; the daemons need these capabilities, too",
        )
    else:
        yield ok("privileges", "all capabilities that the daemons need")


def kernel(found: Kernel) -> Iterator[Finding]:
    version = _version(found.release)
    if version < _OLDEST_OWNER:
        yield fault(
            "kernel",
            f"Linux {found.release} has no nftables tables with an owner",
            f"use Linux {_text(_OLDEST_OWNER)} or newer, for engine ebpf {_text(_OLDEST_EBPF)}",
        )
    elif version < _OLDEST_EBPF:
        yield warning(
            "kernel",
            f"Linux {found.release} is too old for the programs of engine ebpf: engine raw only",
            f"use Linux {_text(_OLDEST_EBPF)} or newer",
        )
    elif found.has_tcx is None:
        yield warning(
            "kernel",
            f"Linux {found.release}, but libbpf cannot be used: engine raw only",
            "run `apt install libbpf1`",
        )
    else:
        has_tcx = found.has_tcx or version >= _OLDEST_TCX  # who may not ask is told no
        how = "TCX" if has_tcx else f"clsact filters, TCX from Linux {_text(_OLDEST_TCX)} on"
        btf = "with BTF" if found.has_btf else "without BTF: listeners cannot adopt connections"
        yield ok("kernel", f"Linux {found.release}, programs attached by {how}, {btf}")
    if not found.has_tun:
        yield fault("tun", "/dev/net/tun does not exist", "run `modprobe tun`")


def offloads(by_interface: Mapping[str, Mapping[str, bool]]) -> Iterator[Finding]:
    """What the drivers say; interfaces that are not used are left out by the caller."""
    for name, features in by_interface.items():
        if features.get("lro"):
            yield fault(
                "offloads",
                f"{name}: large receive offload merges packets that cannot be cut again to be sent on",
                f"run `ethtool -K {name} lro off`",
            )
        off = [
            feature for feature in ("gro", "gso", "tso", "tx-checksumming") if features.get(feature) is False
        ]
        if off:
            commands = " ".join(f"{'tx' if feature == 'tx-checksumming' else feature} on" for feature in off)
            yield warning(
                "offloads",
                f"{name}: {', '.join(off)} off; each packet costs its own way",
                f"run `ethtool -K {name} {commands}`",
            )
        if not off and not features.get("lro"):
            yield ok("offloads", f"{name}: {'as they should be' if features else 'the driver tells of none'}")


def rp_filter(sysctl: Sysctl, interfaces: Iterable[Interface], subject: Subject) -> Iterator[Finding]:
    """The kernel takes the larger of `all` and the device's own value."""
    everywhere = sysctl("net/ipv4/conf/all/rp_filter")
    if everywhere == _STRICT:
        yield fault(
            "rp_filter",
            "strict reverse path filtering for all interfaces drops what the daemon sends by its TUN",
            "run `sysctl -w net.ipv4.conf.all.rp_filter=2` (or 0), and set it in /etc/sysctl.d",
        )
        return
    strict = [
        interface.name
        for interface in interfaces
        if sysctl(f"net/ipv4/conf/{interface.name}/rp_filter") == _STRICT
        and everywhere == "0"
        and not interface.is_loopback
    ]
    own = [name for name in strict if name.startswith(_TUN_PREFIX)]
    if own:
        yield fault(
            "rp_filter",
            f"strict on {', '.join(own)}, the daemon's own: what it sends is dropped",
            _loosened(own),
        )
    elif strict and not subject.is_balancer:
        yield warning(
            "rp_filter",
            f"strict on {', '.join(strict)}: clients' packets come from the balancer, and are dropped where"
            " the way back to a client is another interface",
            _loosened(strict),
        )
    else:
        yield ok("rp_filter", "not strict where it matters")


def _loosened(names: Iterable[str]) -> str:
    commands = (f"sysctl -w net.ipv4.conf.{_dotted(name)}.rp_filter=2" for name in names)
    return f"run `{' && '.join(commands)}`"


def conntrack(sysctl: Sysctl, subject: Subject) -> Iterator[Finding]:
    """A full table drops whatever is new: on engine raw each connection, which passes netfilter."""
    tracked, most = sysctl(f"{_CONNTRACK}_count"), sysctl(f"{_CONNTRACK}_max")
    limit = int(most or 0)  # 0: there is none
    if tracked and limit and int(tracked) > _NEARLY_FULL * limit:
        severity = warning if subject.engine == "ebpf" else fault
        yield severity(
            "conntrack",
            f"{tracked} of {limit} connections are tracked: what is new is dropped when that is all",
            f"run `sysctl -w {_CONNTRACK.replace('/', '.')}_max={2 * limit}`, or track less (notrack)",
        )


def forwarding(sysctl: Sysctl, interfaces: Iterable[Interface]) -> Iterator[Finding]:
    """The daemons' TUN devices forward, whatever the host does, unless somebody has set `ip_forward` since:
    that sets all devices.
    """
    names = [interface.name for interface in interfaces if interface.name.startswith(_TUN_PREFIX)]
    stopped = [name for name in names if sysctl(f"net/ipv4/conf/{name}/forwarding") == "0"]
    wrong = (
        fault(
            "forwarding",
            f"{name} does not forward: somebody has set net.ipv4.ip_forward since the daemon's start",
            f"run `sysctl -w net.ipv4.conf.{name}.forwarding=1`",
        )
        for name in stopped
    )
    said = f"{', '.join(names)} forwards" if names else "the daemon's own device will forward"
    return or_ok(wrong, "forwarding", f"{said}; net.ipv4.ip_forward may be {sysctl('net/ipv4/ip_forward')}")


def rfc1337(sysctl: Sysctl) -> Iterator[Finding]:
    if sysctl("net/ipv4/tcp_rfc1337") == "1":
        yield warning(
            "tcp_rfc1337",
            "sockets in TIME-WAIT ignore RST: a client that uses a port again soon may wait for seconds",
            "run `sysctl -w net.ipv4.tcp_rfc1337=0`",
        )
    else:
        yield ok("tcp_rfc1337", "off")


def syn_cookies(sysctl: Sysctl, subject: Subject) -> Iterator[Finding]:
    if subject.adopt and sysctl("net/ipv4/tcp_syncookies") == "0":
        yield warning(
            "tcp_syncookies",
            "off: listeners do not adopt connections, each costs a handshake on the node",
            "run `sysctl -w net.ipv4.tcp_syncookies=1`",
        )


def own_addresses(subject: Subject, interfaces: Iterable[Interface]) -> Iterator[Finding]:
    here = addresses(interfaces)
    wrong = _balancer_addresses(subject, here) if subject.is_balancer else _node_addresses(subject, here)
    return or_ok(wrong, "addresses", "all that are needed are on this host")


def _balancer_addresses(subject: Subject, here: Mapping[IPv4Address, Interface]) -> Iterator[Finding]:
    for address in sorted({vip.endpoint.address for vip in subject.vips} - here.keys()):
        yield warning(
            "addresses",
            f"no interface has the VIP {address}: clients reach it only if a router sends it here",
            f"nothing, if one does; else run `ip address add {address}/32 dev ...`",
        )


def _node_addresses(subject: Subject, here: Mapping[IPv4Address, Interface]) -> Iterator[Finding]:
    if subject.bridge not in here:
        yield fault(
            "addresses",
            f"no interface has the bridge address {subject.bridge}",
            f"run `ip address add {subject.bridge}/32 dev ...`, or correct `listen`",
        )
    for vip in subject.vips:
        address, backend = vip.endpoint.address, vip.backend
        if backend is not None and backend.address not in here:
            yield fault(
                "addresses",
                f"no interface has the address of the backend {backend} of VIP {vip.endpoint}",
                f"run `ip address add {backend.address}/32 dev lo`, or correct the backend",
            )
        if address in here and not here[address].is_loopback:
            yield fault(
                "addresses",
                f"{here[address].name} has the VIP {address}: this node may answer its ARP requests",
                f"run `ip address delete {address} dev {here[address].name}`: no node needs it",
            )


def key_file(subject: Subject) -> Iterator[Finding]:
    if subject.engine and subject.file is None:
        yield ok("key", "not looked at: the running daemon has been told of it by an option")
        return
    if subject.key_file is None:
        yield warning(
            "key",
            "none (insecure): whoever can send to a node can forge requests",
            "make a key: `setup/make-key`",
        )
        return
    try:
        found = keyring.load(subject.key_file)
    except ConfigError as error:
        yield fault("key", str(error), "the same file, mode 0600, must be on the balancer and all nodes")
    else:
        yield ok("key", f"{subject.key_file}: {len(found.keys)} key{'s' if len(found.keys) > 1 else ''}")


def _version(release: str) -> tuple[int, int]:
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _dotted(name: str) -> str:
    """As sysctl(8) wants a name that has dots itself."""
    return name.replace(".", "/")
