"""Hosts whose middle one runs the control plane, a bpf file system for pins, and what a residence needs."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.bpf import attachments, objects
from common.bpf.attach import supports_tcx
from common.bpf.residence import Place, Plan
from tests.bpf.programs import compiled
from tests.root.ebpf.residing import place
from tests.root.namespaces import Hosts, three_hosts


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """The test's thread is in the middle one."""
    with three_hosts() as hosts, hosts.middle.entered():
        yield hosts


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bpffs"
    path.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", path], check=True, timeout=20)
    yield path
    subprocess.run(["umount", path], check=True, timeout=20)


@pytest.fixture(params=["tcx", "clsact"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of attaching; the second is taken where the kernel has no TCX."""
    if request.param == "tcx" and not supports_tcx():
        pytest.skip("this kernel has no TCX links")
    if request.param == "clsact":
        monkeypatch.setattr(attachments, "supports_tcx", lambda: False)
    return str(request.param)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes objects of the tests' own, compiled with other definitions, the installed ones."""

    def install(*defines: str) -> None:
        monkeypatch.setattr(objects, "_BUILT", compiled("residence", *defines).parent)

    install()
    return install


@pytest.fixture
def plan(bpffs: Path) -> Plan:
    directory = bpffs / "daemons"
    directory.mkdir()
    return Plan("residence", b"VIP 1", directory / "daemon", {"flows": 16})


@pytest.fixture
def m0(hosts: Hosts) -> Place:
    with hosts.middle.entered():
        return place("m0")


@pytest.fixture
def m1(hosts: Hosts) -> Place:
    with hosts.middle.entered():
        return place("m1")
