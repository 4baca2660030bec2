"""Which data plane is chosen, and what becomes of what a failing one had taken."""

import logging
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from common import engine
from common.bpf.errors import BpfError
from common.config import AUTO, EBPF, RAW
from common.net.errors import HostError

LOGGER = logging.getLogger("engine")


class Host:
    """What was taken from it and is not given back."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def starter(self, name: str, *, failing_with: Exception | None = None) -> Callable[[ExitStack], str]:
        """One that takes two things, and then fails or not."""

        def start(owned: ExitStack) -> str:
            for thing in ("device", "table"):
                self.taken.append(f"{name} {thing}")
                owned.callback(self.taken.remove, f"{name} {thing}")
            if failing_with is not None:
                raise failing_with
            return name

        return start


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture(autouse=True)
def _at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def start(
    host: Host, wanted: str, ebpf_fails: Exception | None = None, raw_fails: Exception | None = None
) -> tuple[str, ExitStack]:
    owned = ExitStack()
    chosen = engine.start(
        wanted,
        ebpf=host.starter(EBPF, failing_with=ebpf_fails),
        raw=host.starter(RAW, failing_with=raw_fails),
        owned=owned,
        logger=LOGGER,
    )
    return chosen, owned


REFUSED = BpfError("the kernel has no eBPF", "line one\nline two")


@pytest.mark.parametrize(
    ("wanted", "chosen", "lines"),
    [
        (AUTO, EBPF, ["engine ebpf, because its programs load here"]),
        (EBPF, EBPF, []),
        (RAW, RAW, []),
    ],
)
def test_engine_is_the_one_that_is_wanted_and_auto_says_why(
    host: Host, caplog: pytest.LogCaptureFixture, wanted: str, chosen: str, lines: list[str]
) -> None:
    name, owned = start(host, wanted)
    assert name == chosen
    assert caplog.messages == lines
    assert host.taken == [f"{chosen} device", f"{chosen} table"]
    owned.close()
    assert host.taken == []


def test_auto_is_raw_where_ebpf_fails_and_says_why_in_one_line(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    name, owned = start(host, AUTO, ebpf_fails=REFUSED)
    assert name == RAW
    assert caplog.messages == ["engine raw, because engine ebpf cannot be used: the kernel has no eBPF"]
    assert host.taken == ["raw device", "raw table"]
    owned.close()


def test_what_the_verifier_said_is_for_who_debugs(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    start(host, AUTO, ebpf_fails=REFUSED)[1].close()
    assert caplog.messages[0] == "line one\nline two"


def test_ebpf_that_was_asked_for_is_an_error_where_it_fails(host: Host) -> None:
    with pytest.raises(BpfError, match="the kernel has no eBPF"):
        start(host, EBPF, ebpf_fails=REFUSED)
    assert host.taken == []


@pytest.mark.parametrize("wanted", [AUTO, EBPF])
def test_what_another_engine_could_not_do_either_is_an_error(host: Host, wanted: str) -> None:
    with pytest.raises(HostError, match="already served"):
        start(host, wanted, ebpf_fails=HostError("the VIP is already served by another process"))
    assert host.taken == []


Fails = Callable[[Host], object]


@pytest.mark.parametrize(
    "fails",
    [
        lambda host: start(host, RAW, raw_fails=HostError("no TUN")),
        lambda host: start(host, AUTO, ebpf_fails=REFUSED, raw_fails=HostError("no TUN")),
    ],
    ids=["alone", "behind ebpf"],
)
def test_raw_that_fails_leaves_nothing(host: Host, fails: Fails) -> None:
    with pytest.raises(HostError, match="no TUN"):
        fails(host)
    assert host.taken == []
