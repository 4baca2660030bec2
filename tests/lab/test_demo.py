"""The demo: what it finds out, and the line that it ends with."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab import LabError, demo, outage, run_directory, showing
from tests.lab.instead import have_daemons_run
from tests.lab.lossless import overflows

REPOSITORY = Path(__file__).parents[2]
DOWNLOAD = demo.Download(
    node="node2", md5="d41d8cd98f00b204e9800998ecf8427e", balancer_bytes=120, size=100_000
)


def spreading(first: str, second: str) -> demo.Spreading:
    """One letter is the node of one URL."""
    return demo.Spreading(
        {f"/{number}": node for number, node in enumerate(first)},
        {f"/{number}": node for number, node in enumerate(second)},
        nodes=("a", "b", "c"),
    )


# --- what it finds out ---


def test_affinity_counts_urls_that_went_to_the_same_node_both_times() -> None:
    assert spreading("aabbcc", "aabbcc").affinity == 1
    assert spreading("aaaabbbbcc", "aaaabbbccc").affinity == 0.9


def test_a_node_without_urls_has_the_least_share() -> None:
    assert spreading("aaaaab", "aaaaab").least_share == 0
    assert spreading("aaabbbbccc", "aaabbbbccc").least_share == 0.3


def test_a_request_is_taken_from_what_curl_tells_of_it() -> None:
    fetched = demo.parse_fetched("http://192.168.33.10/video/001.mp4 node3 198.51.100.10 1")
    assert fetched == outage.Fetched("http://192.168.33.10/video/001.mp4", "node3", "198.51.100.10")


@pytest.mark.parametrize(
    "line",
    [
        "http://192.168.33.10/video/001.mp4 node3 198.51.100.10 0",
        "http://192.168.33.10/video/001.mp4  198.51.100.10 1",
        "http://192.168.33.10/video/001.mp4 node3 198.51.100.10",
    ],
    ids=["connection used before", "answer of no node", "cut"],
)
def test_what_is_no_fresh_request_to_a_node_is_an_error(line: str) -> None:
    with pytest.raises(LabError, match="not a request over a fresh connection"):
        demo.parse_fetched(line)


def test_a_bar_is_as_long_as_its_share_and_never_invisible() -> None:
    assert showing.bar(1, 8) == "████████"
    assert showing.bar(0.5, 8) == "████"
    assert showing.bar(0.3125, 8) == "██▌"
    assert showing.bar(0.0001, 8) == "▏"


# --- how it ends ---


def test_the_last_line_has_all_figures() -> None:
    found = demo.Findings(
        "ebpf", spreading("aaabbbbccc", "aaabbbbccc"), DOWNLOAD, gbit=9.14, direct_gbit=40.25, problems=()
    )
    assert found.line == (
        "demo: ok engine=ebpf urls=10 nodes=3 affinity=1.000 least_share=0.30 "
        "balancer_bytes_ratio=0.0012 gbit=9.1 direct_gbit=40.2"
    )


def test_the_last_line_says_all_that_was_wrong() -> None:
    found = demo.Findings(
        "raw", spreading("abc", "abc"), DOWNLOAD, gbit=1, direct_gbit=1, problems=("no echo", "wrong MD5")
    )
    assert found.line == "demo: failed engine=raw no echo; wrong MD5"


READY = (
    "2026-11-20 14:33:20,850 balancer INFO: engine ebpf, because its programs load here\n"
    "2026-11-20 14:33:20,851 balancer INFO: ready: VIP 192.168.33.10:80 as DSCP 1 on eth0, nodes n=10.0.0.1@1"
    ", engine ebpf\n"
    "2026-11-20 14:33:20,896 balancer INFO: counters: engine=1\n"
)


def test_the_engine_is_the_one_that_a_daemon_says_when_it_is_ready() -> None:
    assert demo.engine_of(READY) == "ebpf"
    assert demo.engine_of("") == "unknown"


CHOICES: dict[str, list[str]] = {"raw": ["--engine=raw"], "ebpf": []}
"""eBPF is what the demo takes by itself."""


@pytest.mark.root
def test_the_demo_finds_everything_as_it_has_to_be_and_leaves_nothing(engine: str) -> None:
    program = [sys.executable, "-m", "lab.demo", *CHOICES[engine]]
    overflowed = overflows()
    with subprocess.Popen(program, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as running:
        shown, _ = running.communicate(timeout=250)
    assert running.returncode == 0, shown
    *lines, last = shown.splitlines()
    figures = re.fullmatch(
        rf"demo: ok engine={engine} urls=300 nodes=3 affinity=1\.000 least_share=(0\.\d\d) "
        r"balancer_bytes_ratio=(0\.\d{4}) gbit=(\d+\.\d) direct_gbit=(\d+\.\d)",
        last,
    )
    assert figures is not None, shown
    assert 0.2 <= float(figures[1]) <= 0.34
    assert 0 < float(figures[2]) < 0.03
    assert "The same node both times: 300 of 300 URLs." in shown
    assert "NGINX has logged 600 requests from 198.51.100.10: the client itself." in shown
    assert "TcpRetransSegs 0, TcpInCsumErrors 0." in shown or overflows() > overflowed
    assert "The balancer says: node2 is down: the backend refuses connections" in shown
    assert len(re.findall(r"[1-9]\d* requests for URLs of other nodes: none failed, \d+ moved\.", shown)) == 2
    assert "The download came to its end; `l3dsr drain` waited for it." in shown
    for name in ("node2", "node3"):
        assert re.search(rf"{name}'s [1-9]\d* URLs are served all the same: ", shown)
    assert max(len(line) for line in lines) <= 110
    assert not any(found.prefix.startswith(f"l3dsr-{running.pid}-") for found in run_directory.find())


@pytest.mark.root
def test_a_daemon_that_does_not_start_ends_the_demo_with_one_line_and_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have_daemons_run("echo no such address\nexit 2", tmp_path, monkeypatch)
    assert demo.main([]) == 1
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith("demo: failed engine=unknown ")
    assert "ended with 2 before it said 'ready'" in shown.splitlines()[-1]
    assert "no such address" in shown
    assert not any(found.prefix.startswith(f"l3dsr-{os.getpid()}-") for found in run_directory.find())
