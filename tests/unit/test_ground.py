"""The ground that everything stands on: Makefile, lock file, Vagrantfile, .ci/run and conftest.py."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = [
    "help",
    "setup",
    "demo",
    "lab-up",
    "lab-down",
    "test",
    "test-unit",
    "test-kernel-6.1",
    "check",
    "bench",
    "install",
    "uninstall",
    "clean",
]


def run(
    argv: Sequence[str | Path], *, cwd: Path = ROOT, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    inherited.pop("L3DSR_REQUIRE_LAB", None)
    return subprocess.run(
        argv,
        cwd=cwd,
        env={**inherited, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def ordinary_user(tmp_path: Path) -> str:
    """A PATH on which `id -u` tells that the user is not root, whoever runs the tests."""
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "user" / "id").chmod(0o755)
    return f"{tmp_path}/user:{os.environ['PATH']}"


# Makefile


def test_make_alone_lists_every_target_with_what_it_does() -> None:
    lines = run(["make"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == TARGETS
    assert all(len(line.split()) > 2 for line in lines)
    assert run(["make", "help"]).stdout.splitlines() == lines


def test_makefile_has_just_these_targets() -> None:
    database = run(["make", "--print-data-base", "--question", "--no-builtin-rules", "help"]).stdout
    listed = re.findall(r"^([\w.-]+):.*\n#  Phony target", database, flags=re.MULTILINE)
    assert sorted(listed) == sorted(TARGETS)


@pytest.mark.parametrize("target", ["demo", "lab-up", "lab-down", "test", "test-kernel-6.1", "bench"])
def test_target_that_needs_root_says_so_before_it_does_anything(target: str, ordinary_user: str) -> None:
    done = run(["make", "--no-print-directory", target], environ={"PATH": ordinary_user})
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == f"make {target} needs root: run 'sudo make {target}'"


def test_readme_names_only_targets_that_exist_and_the_test_command() -> None:
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"(?:^    |`|\bsudo )make ([a-z](?:[a-z0-9.-]*[a-z0-9])?)", readme, re.MULTILINE))
    assert named >= {"demo", "test", "check", "install", "uninstall"}
    assert named <= set(TARGETS)
    assert "sudo make test\n" in re.sub(r" +#.*", "", readme)


# Versions


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_installed_package_has_the_version_of_the_lock_file() -> None:
    lock = (ROOT / "setup" / "constraints.txt").read_text()
    locked = {
        _normalized(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", lock, re.MULTILINE)
    }
    not_locked = {"pip", "setuptools", "l3dsr"}
    installed = {
        _normalized(found.metadata["Name"]): found.version for found in importlib.metadata.distributions()
    }
    differing = {
        name: (version, locked.get(name))
        for name, version in installed.items()
        if name not in not_locked and locked.get(name) != version
    }
    assert differing == {}


# Vagrant


def test_vagrantfile_has_no_address_of_its_own() -> None:
    text = (ROOT / "vagrant" / "Vagrantfile").read_text() + (ROOT / "vagrant" / "provision").read_text()
    assert re.findall(r"\d+\.\d+\.\d+\.\d+", text) == []
    assert '"lab", "topology.json"' in text


# .ci/run


@pytest.fixture
def ci(tmp_path: Path) -> Path:
    """A copy of .ci/run whose `make` and `sudo` say what they were asked; `make test` ends with $STATUS."""
    (tmp_path / "checkout" / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / "checkout" / ".ci")
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    (fakes / "make").write_text(
        """#!/bin/bash
        echo "make $* require=$L3DSR_REQUIRE_LAB"
        [ "$1" = test ] || exit 0
        echo "=========== 3 passed, 1 skipped in 4.56s ==========="
        [ "$STATUS" = 0 ] || echo "make: *** [test] Error" >&2
        exit "$STATUS"
        """
    )
    (fakes / "sudo").write_text('#!/bin/bash\necho "sudo $1"\nshift\nexec "$@"\n')
    for fake in fakes.iterdir():
        fake.chmod(0o755)
    return tmp_path


def run_ci(ci: Path, status: int, path: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": f"{ci}/fakes:{path}", "STATUS": str(status)}
    return run(["bash", ci / "checkout" / ".ci" / "run"], cwd=ci, environ=environ)


def test_ci_sets_up_checks_and_tests_and_allows_no_skip_of_the_lab(ci: Path, ordinary_user: str) -> None:
    done = run_ci(ci, 0, ordinary_user)
    ran = re.findall(r"^make (\w+) require=1$", done.stdout, re.MULTILINE)
    assert ran == ["setup", "check", "test"]
    assert done.returncode == 0


@pytest.mark.parametrize("status", [0, 2])
def test_ci_ends_with_the_closing_line_of_pytest_and_the_status_of_the_tests(
    ci: Path, status: int, ordinary_user: str
) -> None:
    done = run_ci(ci, status, ordinary_user)
    assert done.stdout.splitlines()[-1] == "=========== 3 passed, 1 skipped in 4.56s ==========="
    assert done.returncode == status


def test_ci_of_an_ordinary_user_uses_sudo_for_just_what_needs_root(ci: Path, ordinary_user: str) -> None:
    lines = run_ci(ci, 0, ordinary_user).stdout.splitlines()
    before = {line.split()[1]: lines[at - 1] for at, line in enumerate(lines) if line.startswith("make ")}
    assert before["setup"].startswith("sudo ")
    assert before["test"].startswith("sudo --preserve-env=")
    assert not before["check"].startswith("sudo ")


def test_ci_of_root_needs_no_sudo(ci: Path, tmp_path: Path) -> None:
    (tmp_path / "fakes" / "id").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "fakes" / "id").chmod(0o755)
    assert "sudo" not in run_ci(ci, 0, os.environ["PATH"]).stdout


# conftest.py


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite under a copy of our conftest.py."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = root\naddopts = --strict-markers\n")
    (tmp_path / "test_it.py").write_text(
        """
import pytest

@pytest.fixture
def costly():
    print("the costly fixture was made")

@pytest.mark.root
def test_needs_root(costly):
    pass

@pytest.mark.root
@pytest.mark.xfail(reason="known")
def test_known_to_fail(costly):
    assert False

def test_ordinary():
    pass

def test_ordinary_skip():
    pytest.skip("not today")
"""
    )
    return tmp_path


def run_suite(
    suite: Path, reason: str | None, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run where root tests cannot run for `reason`, or can."""
    with (suite / "conftest.py").open("a") as conftest:
        conftest.write(f"\ndef reason_against_root_tests():\n    return {reason!r}\n")
    command = [sys.executable, "-m", "pytest", "-rs", "-s", "-p", "no:cacheprovider", "."]
    return run(command, cwd=suite, environ=environ)


def test_root_test_is_skipped_with_the_reason_before_its_fixtures_are_made(suite: Path) -> None:
    done = run_suite(suite, "needs root", {})
    assert re.search(r"SKIPPED .*: needs root", done.stdout)
    assert "1 passed, 3 skipped" in done.stdout
    assert "costly fixture" not in done.stdout
    assert done.returncode == 0


def test_skipped_root_test_is_a_failure_where_the_lab_is_required(suite: Path) -> None:
    done = run_suite(suite, "needs root", {"L3DSR_REQUIRE_LAB": "1"})
    assert "skipped although L3DSR_REQUIRE_LAB=1: Skipped: needs root" in done.stdout
    assert done.returncode == 1


def test_root_test_that_skips_itself_is_a_failure_too_where_the_lab_is_required(suite: Path) -> None:
    with (suite / "test_it.py").open("a") as tests:
        tests.write("\n@pytest.mark.root\ndef test_skips_itself():\n    pytest.skip('no such program')\n")
    assert "2 passed, 2 skipped, 1 xfailed" in run_suite(suite, None, {}).stdout
    done = run_suite(suite, None, {"L3DSR_REQUIRE_LAB": "1"})
    assert "1 failed, 2 passed, 1 skipped, 1 xfailed" in done.stdout
    assert "Skipped: no such program" in done.stdout


def test_a_host_that_boots_no_systemd_is_no_failure_where_the_lab_is_required(suite: Path) -> None:
    with (suite / "test_it.py").open("a") as tests:
        tests.write("\n@pytest.fixture\ndef installation():\n    pytest.skip('a container')\n")
        tests.write("\n@pytest.mark.root\ndef test_wants_a_machine(installation):\n    pass\n")
    done = run_suite(suite, None, {"L3DSR_REQUIRE_LAB": "1"})
    assert "2 passed, 2 skipped, 1 xfailed" in done.stdout
    assert "SKIPPED [1] test_it.py" in done.stdout
    assert "a container" in done.stdout
