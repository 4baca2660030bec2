"""What all tests share: where tests that need root may run, and how property tests behave.

A test marked `root` needs root and the right to make network and mount namespaces. Elsewhere it is
skipped, with the reason shown. With L3DSR_REQUIRE_LAB=1, as in CI, a skip of such a test is a failure,
whatever its reason: a green run then means that the lab was there. Those that boot a systemd of their own
(the fixture `installation`) may skip even so, as what runs CI may be a container.

A run is like the one before: property tests try the same examples every time. With
`--hypothesis-profile=explore` they try others.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import hypothesis
import hypothesis.configuration
import pytest

from bpf import build

# Not in the checkout, where files that root's runs leave would be in the way of other users'.
hypothesis.configuration.set_hypothesis_home_dir(
    Path(tempfile.gettempdir()) / f"l3dsr-hypothesis-{os.getuid()}"
)
# Not Phase.explain: it traces every line, scapy's too, and takes minutes over a failure.
hypothesis.settings.register_profile(
    "l3dsr",
    database=None,
    deadline=None,
    derandomize=True,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink),
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # that is the machine's, if it is busy
)
hypothesis.settings.register_profile("explore", hypothesis.settings.get_profile("l3dsr"), derandomize=False)
hypothesis.settings.load_profile("l3dsr")


def pytest_sessionstart() -> None:
    """The daemons run the eBPF programs as their sources are now; one that does not compile is missing."""
    if build.reason_against() is None:
        try:
            build.build_all()
        except build.CompileError as error:
            print(error, file=sys.stderr)


@functools.cache
def reason_against_root_tests() -> str | None:
    """Why tests marked `root` cannot run here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    trial = subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, text=True, timeout=30, check=False
    )
    if trial.returncode != 0:
        return f"this kernel makes no namespaces: {trial.stderr.strip()}"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is not None and (reason := reason_against_root_tests()) is not None:
        pytest.skip(reason)


def _must_run(item: pytest.Item) -> bool:
    if os.environ.get("L3DSR_REQUIRE_LAB") != "1" or item.get_closest_marker("root") is None:
        return False
    return not (isinstance(item, pytest.Function) and "installation" in item.fixturenames)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _must_run(item) and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped although L3DSR_REQUIRE_LAB=1: {reason}"
    return report
