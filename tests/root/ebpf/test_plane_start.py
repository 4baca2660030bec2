"""Both daemons' eBPF planes, started for real: what a start takes from the host, and what it gives back.

What they then do with packets is shown by the lab.
"""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import balancer.ebpf.plane
import balancer.raw
import packetbridge.ebpf.plane
from balancer.core.service import Limits as BalancerLimits
from balancer.core.service import Service as BalancedService
from balancer.core.service import Timeouts as BalancerTimeouts
from balancer.core.service import make_nodes
from common import engine
from common.bpf import attach, objects
from common.bpf.errors import BpfError
from common.bpf.maps import shape_of
from common.bpf.pins import PinDirectory
from common.config import AUTO, EBPF
from common.engine import Engine, Site
from common.keyring import KeySource
from common.net.errors import HostError
from packetbridge.core.service import Limits as BridgeLimits
from packetbridge.core.service import Service as BridgedService
from packetbridge.core.service import Timeouts as BridgeTimeouts
from packetbridge.journal import Journal, path_of
from tests.root.ebpf.residing import attached
from tests.root.namespaces import CLIENT, MIDDLE, SERVER, Hosts

pytestmark = pytest.mark.root

LOGGER = logging.getLogger("plane")
VIP_PORT, BACKEND_PORT = 80, 8080

Start = Callable[[Site, ExitStack], Engine[Any]]


def make_service(vip_port: int = VIP_PORT, index: int = 1) -> BalancedService:
    nodes, table = make_nodes(MIDDLE.packed, vip_port, index, {"node1": (SERVER.packed, 1)})
    return BalancedService(MIDDLE.packed, vip_port, index, nodes, table)


def start_balancer(site: Site, owned: ExitStack, vip_port: int = VIP_PORT) -> Engine[Any]:
    limits = BalancerLimits(flows=64, verified=64, half_open=64)
    services = [make_service(vip_port)]
    return balancer.ebpf.plane.start(services, limits, BalancerTimeouts(), site, owned).engine


def start_packetbridge(site: Site, owned: ExitStack, *, adopt: bool = False) -> Engine[Any]:
    service = BridgedService(1, CLIENT.packed, VIP_PORT, MIDDLE.packed, MIDDLE.packed, BACKEND_PORT)
    limits = BridgeLimits(flows=64, tombstones=32)
    started = packetbridge.ebpf.plane.start([service], limits, BridgeTimeouts(), site, owned, adopt=adopt)
    return started.engine


STARTS: dict[str, Start] = {
    "balancer": start_balancer,
    "packetbridge": start_packetbridge,
    "packetbridge whose listener adopts": partial(start_packetbridge, adopt=True),
}


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest) -> Start:
    return STARTS[str(request.param)]


@pytest.fixture
def site(hosts: Hosts, tmp_path: Path) -> Iterator[Site]:
    with hosts.middle.entered():
        yield Site(
            keys=KeySource(tmp_path / "none", is_insecure=True),
            state_dir=tmp_path,
            keep_flows=False,
            logger=LOGGER,
        )
    if (tmp_path / "bpf").is_mount():
        subprocess.run(["umount", tmp_path / "bpf"], check=True, timeout=20)


def footprint(hosts: Hosts, site: Site) -> tuple[list[str], list[str], int, int]:
    """Devices, tables, rules, qdiscs, mounts and open descriptors."""
    links = [link["ifname"] for link in json.loads(hosts.middle.run("ip -j link"))]
    shown = [
        hosts.middle.run(command)
        for command in ("nft list tables", "ip rule", "ip route show table all", "tc qdisc show")
    ]
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").count(str(site.state_dir))
    return links, shown, mounts, len(os.listdir("/proc/self/fd"))


def test_stop_leaves_the_host_as_it_was(hosts: Hosts, site: Site, start: Start) -> None:
    warm_up(site, start)
    before = footprint(hosts, site)
    with ExitStack() as owned:
        started = start(site, owned)
        assert started.name == EBPF
        assert started.sizes()["flows"] == 0
        assert started.sizes()["map_bytes"] > 0
        assert set(started.counters().values()) == {0}
        started.take_keys()
        assert footprint(hosts, site) != before
    assert footprint(hosts, site) == before


def warm_up(site: Site, start: Start) -> None:
    """What a process opens once, and keeps."""
    with ExitStack() as owned:
        start(site, owned)


def no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_BUILT", tmp_path)


def refused_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tmp_path / "built"
    built.mkdir()
    for path in objects._BUILT.glob("*.bpf.o"):
        shutil.copy(path, built)
        (built / path.name).write_bytes(path.read_bytes()[:1000])
    monkeypatch.setattr(objects, "_BUILT", built)


def no_attachment(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BpfError("the kernel attaches nothing")

    monkeypatch.setattr(attach.TcxLink, "create", refuse)
    monkeypatch.setattr(attach.ClsactFilter, "create", refuse)


def no_room_for_pins(tmp_path: Path, _: pytest.MonkeyPatch) -> None:
    (tmp_path / "bpf").touch()


OBSTACLES = [no_object, refused_object, no_attachment, no_room_for_pins]


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("keep_flows", [False, True], ids=["", "keeping flows"])
def test_start_that_fails_leaves_the_host_as_it_was(
    hosts: Hosts,
    site: Site,
    start: Start,
    keep_flows: bool,
    obstacle: Callable[[Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
) -> None:
    """A TUN and a table have been taken by then, and most often a file system."""
    warm_up(site, start)
    shutil.rmtree(tmp_path / "bpf")
    before = footprint(hosts, site)
    with pytest.MonkeyPatch.context() as patch:
        obstacle(tmp_path, patch)
        owned = ExitStack()
        with pytest.raises(BpfError):
            engine.start(
                EBPF,
                ebpf=partial(start, site._replace(keep_flows=keep_flows)),
                raw=partial(start, site),
                owned=owned,
                logger=LOGGER,
            )
        assert footprint(hosts, site) == before
        owned.close()


def test_auto_falls_back_over_what_ebpf_had_taken(
    hosts: Hosts,
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    no_object(tmp_path, monkeypatch)
    with ExitStack() as owned:
        chosen = engine.start(
            AUTO,
            ebpf=partial(start_balancer, site),
            raw=lambda attempt: (
                balancer.raw.start(
                    [make_service()], BalancerLimits(), BalancerTimeouts(), site, attempt
                ).engine
            ),
            owned=owned,
            logger=LOGGER,
        )
        assert chosen.name == "raw"
        assert hosts.middle.run("nft list tables").count("l3dsr") == 1
    (line,) = caplog.messages
    assert line.startswith(
        "engine raw, because engine ebpf cannot be used: this installation has no eBPF program"
    )


def test_what_is_served_already_is_refused_and_goes_on(
    hosts: Hosts, site: Site, start: Start, tmp_path: Path
) -> None:
    other = site._replace(state_dir=tmp_path / "other")
    with ExitStack() as owned:
        start(site, owned)
        before = footprint(hosts, site)
        with ExitStack() as second, pytest.raises(HostError, match="is already served by another process"):
            start(other, second)
        assert footprint(hosts, site) == before


def test_a_packetbridge_whose_journal_is_in_use_is_refused(hosts: Hosts, site: Site) -> None:
    before = footprint(hosts, site)
    path = path_of(site.state_dir, MIDDLE)
    in_use = pytest.raises(HostError, match="is in use by another packetbridge")
    with closing(Journal(path, LOGGER)), ExitStack() as owned, in_use:
        start_packetbridge(site, owned)
    assert footprint(hosts, site) == before


def test_flows_that_were_left_are_carried_on(
    site: Site, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        with ExitStack() as owned:
            start(site._replace(keep_flows=True), owned)
    assert caplog.messages == ["the flows of an earlier run are carried on"]
    with ExitStack() as owned:
        start(site, owned)
    assert not any((site.state_dir / "bpf").iterdir())


def test_a_balancer_whose_state_directory_is_in_use_is_refused(hosts: Hosts, site: Site) -> None:
    with ExitStack() as owned:
        start_balancer(site, owned)
        before = footprint(hosts, site)
        in_use = f"{site.state_dir} is in use by another balancer: choose another --state-dir"
        with ExitStack() as second, pytest.raises(HostError, match=f"^{in_use}$"):
            start_balancer(site, second, 81)
        with pytest.raises(HostError, match=f"^{in_use}$"):
            balancer.ebpf.plane.remove_left(site)
        assert footprint(hosts, site) == before


def test_two_balancers_with_directories_of_their_own_share_the_host(
    hosts: Hosts, site: Site, way: str, tmp_path: Path
) -> None:
    ours = [f"{name} {way}/ingress" for name in ("m0", "m1")]
    with ExitStack() as one:
        start_balancer(site, one)
        with ExitStack() as other:
            start_balancer(site._replace(state_dir=tmp_path / "other"), other, 81)
            assert attached(hosts) == sorted(2 * ours)
        assert attached(hosts) == ours
    assert "l3dsr" not in hosts.middle.run("nft list tables")


@pytest.mark.usefixtures("hosts")
def test_a_packetbridge_has_as_much_room_as_it_is_told(site: Site) -> None:
    with ExitStack() as owned:
        start_packetbridge(site, owned)
        (directory,) = pins(site)
        for name, room in (("flows", 64), ("tombstones", 32)):
            found = directory.get_map(name)
            assert found is not None
            assert shape_of(found).max_entries == room
            os.close(found)


def pins(site: Site) -> list[PinDirectory]:
    directories = [path for path in (site.state_dir / "bpf").iterdir() if path.is_dir()]
    return [PinDirectory(path) for path in directories]


def pinned(site: Site) -> Path:
    (directory,) = pins(site)
    return directory.path


def keep_nothing_but_meta(path: Path) -> None:
    for each in path.iterdir():
        if each.name != "meta":
            each.unlink()


def exchange(path: Path) -> None:
    (path / "flows").rename(path / "between")
    (path / "clock").rename(path / "flows")
    (path / "between").rename(path / "clock")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no meta": lambda path: (path / "meta").unlink(),
    "a map is missing": lambda path: (path / "flows").unlink(),
    "a map has taken another's place": lambda path: (path / "flows").rename(path / "clock"),
    "two maps have changed places": exchange,
    "a symbolic link": lambda path: (path / "other").symlink_to("nothing"),
    "nothing but meta": keep_nothing_but_meta,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_pins_are_removed_and_the_start_is_a_fresh_one(
    hosts: Hosts, site: Site, start: Start, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    warm_up(site, start)
    before = footprint(hosts, site)
    with ExitStack() as owned:
        start(site._replace(keep_flows=True), owned)
    DAMAGES[damage](pinned(site))
    with ExitStack() as owned:
        assert start(site, owned).sizes()["flows"] == 0
    (line,) = caplog.messages
    assert line.endswith("is of another kind: removed")
    assert footprint(hosts, site) == before


def test_what_is_no_pin_is_an_error_in_one_line_and_nothing_is_taken(
    hosts: Hosts, site: Site, start: Start
) -> None:
    with ExitStack() as owned:
        start(site._replace(keep_flows=True), owned)
    somebodys = pinned(site) / "somebody"
    somebodys.mkdir()
    before = footprint(hosts, site)
    with ExitStack() as owned, pytest.raises(BpfError, match=f"^{somebodys} is no pin: remove it [^\n]*$"):
        start(site, owned)
    somebodys.rmdir()
    assert footprint(hosts, site)[:2] == before[:2]
