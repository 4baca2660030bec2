"""The scripts of setup/, run for real in a scratch checkout that needs no network.

The scratch project has the scripts and the package names of the real one, and a build backend of its own with
no requirements.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)  # for pip on a busy machine
ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "setup"

SCRATCH_PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "l3dsr"
version = "0.1.0"
"""

SCRATCH_BACKEND = """\
import os, zipfile

INFO = "l3dsr-0.1.0.dist-info"
METADATA = "Metadata-Version: 2.1\\nName: l3dsr\\nVersion: 0.1.0\\nProvides-Extra: dev\\n"
MODULES = {"balancer": "balancer", "packetbridge": "packetbridge", "l3dsr": "tool"}
SCRIPTS = "\\n".join(["[console_scripts]", *(f"{name} = {module}:main" for name, module in MODULES.items())])

def _build(directory, modules):
    name = "l3dsr-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        for path, text in modules.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{INFO}/METADATA", METADATA)
        wheel.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{INFO}/entry_points.txt", SCRIPTS)
        wheel.writestr(f"{INFO}/RECORD", "")
    return name

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    names = [f"{module}.py" for module in MODULES.values()]
    return _build(wheel_directory, {name: open(name).read() for name in names})

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return _build(wheel_directory, {"l3dsr.pth": os.getcwd() + "\\n"})
"""


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copytree(SETUP, checkout / "setup")
    (checkout / "pyproject.toml").write_text(SCRATCH_PYPROJECT)
    (checkout / "backend.py").write_text(SCRATCH_BACKEND)
    for name in ("balancer", "packetbridge", "tool"):
        (checkout / f"{name}.py").write_text(f"def main():\n    print('this is {name}')\n")
    return checkout


def run(
    *argv: str | Path, path: Path | None = None, environ: Mapping[str, str] | None = None, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run with an ordinary environment, `path` first in PATH, and demand the exit status `expect`."""
    search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    clean = {
        "PATH": f"{path}:{search}" if path else search,
        "HOME": "/nonexistent",
        "PIP_NO_INDEX": "1",
        "PIP_NO_CACHE_DIR": "1",
        **(environ or {}),
    }
    done = subprocess.run(argv, env=clean, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def program(directory: Path, name: str, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/bash\n{text}\n")
    (directory / name).chmod(0o755)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


# make-key


def test_new_key_is_32_hex_digits_that_only_its_owner_reads(tmp_path: Path) -> None:
    key = tmp_path / "etc" / "l3dsr" / "handoff.key"
    run("/bin/sh", "-c", 'umask 000; exec "$0" "$1"', SETUP / "make-key", key)
    assert re.fullmatch(r"[0-9a-f]{32}\n", key.read_text())
    assert mode(key) == 0o600
    assert mode(key.parent) == 0o755
    assert list(key.parent.iterdir()) == [key]


def test_two_new_keys_differ(tmp_path: Path) -> None:
    run(SETUP / "make-key", tmp_path / "one")
    run(SETUP / "make-key", tmp_path / "two")
    assert (tmp_path / "one").read_text() != (tmp_path / "two").read_text()


def test_existing_key_is_never_replaced(tmp_path: Path) -> None:
    key = tmp_path / "handoff.key"
    key.write_text("00112233445566778899aabbccddeeff\n")
    assert run(SETUP / "make-key", key).stdout == ""
    assert key.read_text() == "00112233445566778899aabbccddeeff\n"


def test_keys_made_at_the_same_time_leave_one_and_nothing_else(tmp_path: Path) -> None:
    key = tmp_path / "handoff.key"
    racers = [
        subprocess.Popen([SETUP / "make-key", key], stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    told = [racer.communicate(timeout=60)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 8
    assert sorted(filter(None, told)) == [f"made a new handoff key: {key}\n"]
    assert list(tmp_path.iterdir()) == [key]


def test_key_without_a_path_is_a_usage_error() -> None:
    assert "usage:" in run(SETUP / "make-key", expect=2).stderr


# packages


def entries() -> list[tuple[str, str]]:
    """(package, group) of each line of the list."""
    lines = (SETUP / "debian-packages.txt").read_text().splitlines()
    return [(line.split()[0], line.split()[1]) for line in lines if line and not line.startswith("#")]


def test_package_list_names_each_package_once_in_a_known_group() -> None:
    assert {group for _, group in entries()} == {"run", "build", "check", "lab", "linux61"}
    assert [
        package for package, count in Counter(package for package, _ in entries()).items() if count > 1
    ] == []


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A PATH entry whose dpkg-query knows all packages but those in $ABSENT, and whose apt-get fails;
    `id` tells that the user is not root, whoever runs the tests.
    """
    directory = tmp_path / "fakes"
    program(
        directory,
        "dpkg-query",
        '[[ " $ABSENT " != *" ${!#} "* ]] && echo -n installed',
    )
    program(directory, "id", "echo 1000")
    program(directory, "apt-get", f'echo "apt-get $*" >>{tmp_path}/ran; exit 1')
    return directory


def test_packages_that_are_there_cost_nothing_and_need_no_root(fakes: Path, tmp_path: Path) -> None:
    done = run(SETUP / "packages", path=fakes, environ={"ABSENT": ""})
    assert done.stdout + done.stderr == ""
    assert not (tmp_path / "ran").exists()


def test_missing_package_without_root_is_named_with_what_to_do(fakes: Path, tmp_path: Path) -> None:
    done = run(SETUP / "packages", path=fakes, environ={"ABSENT": "wrk curl"}, expect=1)
    assert done.stderr == "setup/packages: not installed: curl wrk. Run 'sudo make setup' once.\n"
    assert not (tmp_path / "ran").exists()


def test_group_of_packages_leaves_the_other_groups_alone(fakes: Path) -> None:
    run(
        SETUP / "packages",
        "run",
        "check",
        path=fakes,
        environ={"ABSENT": "wrk curl nginx-light"},
    )


def test_emulator_is_installed_only_where_its_group_is_named(fakes: Path) -> None:
    absent = {"ABSENT": "qemu-system-x86"}
    run(SETUP / "packages", path=fakes, environ=absent)
    done = run(SETUP / "packages", "linux61", path=fakes, environ=absent, expect=1)
    assert "not installed: qemu-system-x86." in done.stderr


@pytest.mark.root
@pytest.mark.parametrize("earlier", [None, "#!/bin/sh\nexit 104\n"], ids=["no policy", "policy of the host"])
def test_new_service_is_neither_started_nor_enabled_and_the_policy_is_as_before(
    tmp_path: Path, earlier: str | None
) -> None:
    """In a mount namespace with an /usr/sbin of its own; the installation fails half-way, as they do."""
    scratch_list = tmp_path / "setup"
    scratch_list.mkdir()
    shutil.copy(SETUP / "packages", scratch_list)
    (scratch_list / "debian-packages.txt").write_text("a-server  lab  # serves [a-service]\n")
    fakes = tmp_path / "fakes"
    program(fakes, "dpkg-query", "exit 1")
    program(
        fakes,
        "apt-get",
        f"""
        [[ " $* " == *" install "* ]] || exit 0
        touch /etc/init.d/a-service
        for service in a-service a-service.service another; do
            status=0
            /usr/sbin/policy-rc.d $service start || status=$?
            echo "$service $status" >>{tmp_path}/asked
        done
        exit 100""",
    )
    program(fakes, "update-rc.d", f'echo "update-rc.d $*" >>{tmp_path}/asked')
    (tmp_path / "sbin").mkdir()
    (tmp_path / "init.d").mkdir()
    if earlier is not None:
        (tmp_path / "sbin" / "policy-rc.d").write_text(earlier)
        (tmp_path / "sbin" / "policy-rc.d").chmod(0o755)
    within = f"""
        mount --bind {tmp_path}/sbin /usr/sbin; mount --bind {tmp_path}/init.d /etc/init.d
        exec {scratch_list}/packages"""
    run("unshare", "--mount", "bash", "-ec", within, path=fakes, expect=100)

    assert (tmp_path / "asked").read_text().splitlines() == [
        "a-service 101",
        "a-service.service 101",
        f"another {104 if earlier else 0}",
        "update-rc.d a-service disable",
    ]
    left = {path.name: path.read_text() for path in (tmp_path / "sbin").iterdir()}
    assert left == ({} if earlier is None else {"policy-rc.d": earlier})


# venv


def test_venv_is_made_once_by_the_system_python_and_again_where_it_is_stale(
    scratch: Path, tmp_path: Path
) -> None:
    shim = tmp_path / "shims"
    program(shim, "python3", "exit 97")
    assert run(scratch / "setup" / "venv", path=shim).stdout == "making .venv (about a minute)\n"
    venv = scratch / ".venv"
    assert (venv / "bin" / "python3").resolve() == Path("/usr/bin/python3").resolve()
    assert run(venv / "bin" / "balancer").stdout == "this is balancer\n"
    assert run(venv / "bin" / "packetbridge").stdout == "this is packetbridge\n"

    assert run(scratch / "setup" / "venv", path=shim).stdout == ""

    with (scratch / "setup" / "constraints.txt").open("a") as lock:
        lock.write("a-new-one==1.0\n")
    assert run(scratch / "setup" / "venv").stdout == "bringing .venv up to date\n"
    assert run(scratch / "setup" / "venv").stdout == ""

    moved = tmp_path / "moved"
    scratch.rename(moved)
    assert run(moved / "setup" / "venv").stdout == "making .venv (about a minute)\n"
    assert (moved / ".venv" / "bin" / "pip").read_text().startswith(f"#!{moved}/.venv/bin/python3\n")
    assert run(moved / ".venv" / "bin" / "balancer").stdout == "this is balancer\n"


def test_venv_of_another_interpreter_is_made_again(scratch: Path) -> None:
    binaries = scratch / ".venv" / "bin"
    binaries.mkdir(parents=True)
    program(binaries, "python3", "echo Python 3.99.0")
    program(binaries, "pip", "exit 1")
    assert run(scratch / "setup" / "venv").stdout == "making .venv (about a minute)\n"
    assert run(binaries / "balancer").stdout == "this is balancer\n"


# install and uninstall


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    target = tmp_path / "target"
    return {
        "PREFIX": str(target / "opt" / "l3dsr"),
        "BINDIR": str(target / "bin"),
        "CONFDIR": str(target / "etc"),
        "KEY_FILE": str(target / "etc" / "handoff.key"),
        "UNITDIR": str(target / "units"),
        "GROUP": "",
    }


def names_in(directory: str) -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


def test_installation_is_updated_outlives_its_checkout_and_goes_without_the_key(
    scratch: Path, places: dict[str, str]
) -> None:
    run(scratch / "setup" / "install", environ=places)
    key = Path(places["KEY_FILE"]).read_text()
    balancer, packetbridge, tool = (
        Path(places["BINDIR"]) / name for name in ("balancer", "packetbridge", "l3dsr")
    )
    assert str(balancer.readlink()) == f"{places['PREFIX']}/current/bin/balancer"
    assert run(balancer).stdout == "this is balancer\n"

    backend = (scratch / "backend.py").read_text()
    (scratch / "backend.py").write_text("this is no Python\n")
    run(scratch / "setup" / "install", environ=places, expect=1)
    assert run(balancer).stdout == "this is balancer\n"  # a failed update changes nothing

    (scratch / "backend.py").write_text(backend)
    (scratch / "balancer.py").write_text("def main():\n    print('this is the next balancer')\n")
    run(scratch / "setup" / "install", environ=places)
    shutil.rmtree(scratch)
    assert run(balancer).stdout == "this is the next balancer\n"
    assert run(packetbridge).stdout == "this is packetbridge\n"
    assert run(tool).stdout == "this is tool\n"
    assert Path(places["KEY_FILE"]).read_text() == key

    run(SETUP / "uninstall", environ=places)
    assert not Path(places["PREFIX"]).exists()
    assert names_in(places["BINDIR"]) == names_in(places["UNITDIR"]) == []
    assert names_in(places["CONFDIR"]) == ["handoff.key"]
    assert Path(places["KEY_FILE"]).read_text() == key
    assert "nothing is installed" in run(SETUP / "uninstall", environ=places).stdout


def test_running_daemon_keeps_its_release_through_updates(scratch: Path, places: dict[str, str]) -> None:
    said = run(scratch / "setup" / "install", environ=places).stdout
    assert "daemons that run" not in said  # there were none
    current = Path(places["PREFIX"]) / "current"
    first = current.resolve()
    with subprocess.Popen([first / "bin" / "python3", "-c", "input()"], stdin=subprocess.PIPE) as daemon:
        for _ in range(2):
            done = run(scratch / "setup" / "install", environ=places)
            assert "daemons that run go on with the release they have" in done.stdout
        assert run(first / "bin" / "balancer").stdout == "this is balancer\n"
        second = next(
            release for release in first.parent.iterdir() if release not in (first, current.resolve())
        )
        daemon.communicate(b"end\n")
    run(scratch / "setup" / "install", environ=places)
    assert not first.exists()
    assert not second.exists()  # nobody used it, and it is not the last before


@pytest.mark.parametrize("then", ["install", "uninstall"])
def test_installation_that_fills_the_prefix_itself_is_replaced_or_removed(
    scratch: Path, places: dict[str, str], then: str
) -> None:
    """As earlier releases were installed."""
    prefix, bindir = Path(places["PREFIX"]), Path(places["BINDIR"])
    for directory in (prefix / "bin", prefix / "lib", bindir):
        directory.mkdir(parents=True)
    (prefix / ".l3dsr").touch()
    for name in ("balancer", "packetbridge"):
        program(prefix / "bin", name, "echo an earlier release")
        (bindir / name).symlink_to(prefix / "bin" / name)
    run(scratch / "setup" / then, environ=places)
    if then == "install":
        assert run(bindir / "balancer").stdout == "this is balancer\n"
        assert names_in(places["PREFIX"]) == [".l3dsr", "current", "releases"]
    else:
        assert names_in(places["BINDIR"]) == []
        assert not prefix.exists()


def test_configuration_of_the_operator_is_neither_replaced_nor_removed(
    scratch: Path, places: dict[str, str]
) -> None:
    own = Path(places["CONFDIR"]) / "balancer.toml"
    own.parent.mkdir(parents=True)
    own.write_text("# mine\n")
    run(scratch / "setup" / "install", environ=places)
    assert names_in(places["CONFDIR"]) == [
        "balancer.toml",
        "balancer.toml.example",
        "handoff.key",
        "packetbridge.toml.example",
    ]
    run(SETUP / "uninstall", environ=places)
    assert own.read_text() == "# mine\n"


UNITS = ("balancer.service", "packetbridge.service", "run-l3dsr-bpf.mount")
EXPOSURE = 4.0
"""Of 10, as systemd-analyze reckons it: from 4.1 on it says "medium"."""


@pytest.mark.root
def test_installed_units_are_understood_by_systemd_and_hardened(
    scratch: Path, places: dict[str, str]
) -> None:
    run(scratch / "setup" / "install", environ=places)
    units = [Path(places["UNITDIR"]) / name for name in UNITS]
    shown = run("systemd-analyze", "verify", "--man=no", *units, environ={"SYSTEMD_LOG_LEVEL": "warning"})
    assert shown.stderr == ""
    for unit in units[:2]:
        assert f"ExecStart={places['BINDIR']}/{unit.stem} " in unit.read_text()
        judged = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit).stdout
        exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", judged)
        assert exposure is not None
        assert float(exposure[1]) <= EXPOSURE


def test_program_of_somebody_else_is_neither_replaced_nor_removed(
    scratch: Path, places: dict[str, str]
) -> None:
    other = Path(places["BINDIR"]) / "balancer"
    other.parent.mkdir(parents=True)
    other.write_text("another program")
    assert (
        "balancer is another program" in run(scratch / "setup" / "install", expect=1, environ=places).stderr
    )
    assert not Path(places["PREFIX"]).exists()
    run(SETUP / "uninstall", environ=places)
    assert other.read_text() == "another program"


def test_directory_of_somebody_else_is_neither_filled_nor_removed(
    scratch: Path, places: dict[str, str]
) -> None:
    document = Path(places["PREFIX"]) / "document"
    document.parent.mkdir(parents=True)
    document.write_text("precious")
    assert "holds something else" in run(scratch / "setup" / "install", expect=1, environ=places).stderr
    run(SETUP / "uninstall", environ=places)
    assert document.read_text() == "precious"


@pytest.mark.root
def test_make_install_and_uninstall_of_the_real_thing(places: dict[str, str]) -> None:
    options = [f"{name}={value}" for name, value in places.items()]
    make = ["make", "--no-print-directory", "-C", str(ROOT)]
    subprocess.run([*make, "install", *options], capture_output=True, check=True, timeout=600)
    prefix = Path(places["PREFIX"])
    assert prefix.stat().st_uid == 0
    assert mode(Path(places["KEY_FILE"])) == 0o600
    for name in ("balancer", "packetbridge", "l3dsr"):
        shown = run(Path(places["BINDIR"]) / name, "--help").stdout
        assert shown.startswith(f"usage: {name}")
    for name in ("balancer", "packetbridge"):
        example = Path(places["CONFDIR"]) / f"{name}.toml.example"
        told = (f"--config={example}", f"--key-file={places['KEY_FILE']}", "--check")
        assert ": ok, " in run(Path(places["BINDIR"]) / name, *told).stdout
    located = run(
        prefix / "current" / "bin" / "python3", "-I", "-c", "import common; print(common.__file__)"
    ).stdout
    assert located.startswith(str(prefix))
    subprocess.run([*make, "uninstall", *options], capture_output=True, check=True, timeout=600)
    assert not prefix.exists()
