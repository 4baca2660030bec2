"""The file that a control socket is: who may use it, and whose it is after a daemon has died."""

import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from common import control
from common.commands import Arguments
from common.control import Command, ControlSocket
from common.control_client import NotRunningError, ask_once
from common.net.errors import HostError
from tests.unit.serving import serving

_AS_A_STRANGER = """
import os, sys
from l3dsr.cli import main

os.setgroups([])
os.setgid(65533)
os.setuid(65533)
del sys.argv[0]
main()
"""
"""The tool's modules may be where a stranger does not come."""


async def _status(_: Arguments) -> str:
    return "here"


@contextmanager
def _served(path: Path) -> Iterator[None]:
    commands = {"status": Command(Arguments, _status)}
    with closing(ControlSocket(path)) as daemon, serving(lambda: daemon.serve(commands, logging.getLogger())):
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "daemon.sock"


@pytest.fixture
def served(path: Path) -> Iterator[Path]:
    with _served(path):
        yield path


def test_socket_is_for_its_owner_and_group_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = os.getgroups()[0] if os.getgroups() else os.getgid()
    monkeypatch.setattr(control, "_group_id", lambda _: group)
    with closing(ControlSocket(path, "some")):
        made = path.stat()
        assert stat.S_IMODE(made.st_mode) == 0o660
        assert (made.st_uid, made.st_gid) == (os.getuid(), group)


def test_without_the_default_group_the_socket_is_its_owners(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "DEFAULT_GROUP", "l3dsr-no-such-group")
    with closing(ControlSocket(path, "l3dsr-no-such-group")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_group_that_does_not_exist_is_refused(path: Path) -> None:
    with pytest.raises(HostError, match="there is no group l3dsr-no-such-group for the control socket"):
        ControlSocket(path, "l3dsr-no-such-group")
    assert not path.exists()


@pytest.mark.root
@pytest.mark.parametrize(
    ("owners", "mode", "way_in"),
    [
        ("root:nogroup", 0o660, "add yourself to its group (nogroup), or use sudo"),
        ("root:nogroup", 0o600, "use sudo"),
        ("root:root", 0o660, "use sudo"),
        ("root:4000000", 0o660, "use sudo"),
    ],
)
def test_who_may_not_use_the_socket_is_told_the_way_in(owners: str, mode: int, way_in: str) -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as daemon:
        Path(directory).chmod(0o755)
        path = Path(directory, "daemon.sock")
        daemon.bind(str(path))
        daemon.listen()
        subprocess.run(["chown", owners, path], check=True)
        path.chmod(mode)
        tool = [sys.executable, "-c", _AS_A_STRANGER, "l3dsr", "status", f"--socket={path}"]
        refused = subprocess.run(tool, stderr=subprocess.PIPE, text=True, check=False)
        assert refused.returncode == 1
        assert refused.stderr == f"l3dsr status: {path} is not for you: {way_in}\n"


def test_socket_of_a_dead_daemon_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
        dead.listen()
    with pytest.raises(NotRunningError, match=r"no daemon listens on .*daemon.sock: start it"):
        ask_once(path, "status")
    with _served(path):
        assert ask_once(path, "status") == "here"
    assert not path.exists()


def test_socket_of_a_living_daemon_is_left_alone(served: Path) -> None:
    with pytest.raises(HostError, match=r"a daemon listens on .*daemon.sock already: stop it"):
        ControlSocket(served)
    assert ask_once(served, "status") == "here"


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(HostError, match="is no socket: remove it"):
        ControlSocket(path)
    assert path.read_text() == "precious"


def test_socket_file_of_a_successor_outlives_its_predecessor(path: Path) -> None:
    first = ControlSocket(path)
    path.unlink()
    with closing(ControlSocket(path)):
        first.close()
        assert path.exists()


def test_path_too_long_for_a_socket_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"control socket .* cannot be made: AF_UNIX path too long"):
        ControlSocket(tmp_path / ("x" * 120))
