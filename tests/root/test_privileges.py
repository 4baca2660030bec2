"""What a process keeps of root's privileges, in children that give them up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

NET_ADMIN, NET_RAW, SYS_ADMIN, PERFMON, BPF = (1 << number for number in (12, 13, 21, 38, 39))
WORKING = NET_ADMIN | NET_RAW | PERFMON | BPF
SHOW = (
    'print(*(line for line in open("/proc/thread-self/status") if line.startswith(("Cap", "NoNew"))), sep="")'
)
DROP = "from common.net import privileges; from common.net.privileges import Capability;"
WITHOUT_SETPCAP = ("setpriv", "--bounding-set=-setpcap")


def run(code: str, *by: str) -> str:
    """Standard output of a Python that runs this."""
    argv = [*by, sys.executable, "-c", f"{DROP}\n{code}"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def status(shown: str) -> dict[str, int]:
    """Sets of capabilities by their names in proc(5); NoNewPrivs."""
    pairs = [line.split(":\t") for line in shown.split("\n") if line]
    return {name: int(value, 16) for name, value in pairs}


def test_four_capabilities_are_kept_and_all_others_given_up_for_good() -> None:
    assert status(run(f"privileges.drop()\n{SHOW}")) == {
        "CapInh": 0,
        "CapPrm": WORKING,
        "CapEff": WORKING,
        "CapBnd": WORKING,
        "CapAmb": 0,
        "NoNewPrivs": 1,
    }


def test_one_in_reserve_is_in_effect_only_while_it_is_raised() -> None:
    reserve = "privileges.drop(in_reserve=[Capability.SYS_ADMIN])"
    assert status(run(f"{reserve}\nwith privileges.raised(Capability.SYS_ADMIN):\n    {SHOW}"))["CapEff"] == (
        WORKING | SYS_ADMIN
    )
    after = status(run(f"{reserve}\nwith privileges.raised(Capability.SYS_ADMIN):\n    pass\n{SHOW}"))
    assert (after["CapEff"], after["CapPrm"]) == (WORKING, WORKING | SYS_ADMIN)


def test_raising_what_was_not_kept_changes_nothing() -> None:
    shown = run(f"privileges.drop()\nwith privileges.raised(Capability.SYS_ADMIN):\n    {SHOW}")
    assert status(shown)["CapEff"] == WORKING


def test_a_program_that_is_executed_gets_no_more() -> None:
    shown = run(
        "import os, sys\n"
        "privileges.drop()\n"
        'os.execv("/bin/grep", ["grep", "-E", "^(Cap|NoNew)", "/proc/self/status"])'
    )
    assert status(shown)["CapPrm"] == WORKING


def test_threads_that_are_started_later_have_no_more() -> None:
    shown = run(f"import threading\nprivileges.drop()\nthreading.Thread(target=lambda: {SHOW}).start()")
    assert status(shown)["CapPrm"] == WORKING


def test_without_the_capability_to_shrink_the_bounding_set_all_else_is_given_up() -> None:
    found = status(run(f"privileges.drop()\n{SHOW}", *WITHOUT_SETPCAP))
    assert (found["CapEff"], found["CapPrm"], found["NoNewPrivs"]) == (WORKING, WORKING, 1)
    assert found["CapBnd"] & WORKING == WORKING


def test_files_of_others_are_closed_to_a_root_that_has_given_up(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.touch(mode=0o600)
    os.chown(path, 65534, 65534)
    tmp_path.chmod(0o755)
    shown = run(f"import os\nprivileges.drop()\nprint(os.access({str(path)!r}, os.R_OK))")
    assert shown == "False\n"
