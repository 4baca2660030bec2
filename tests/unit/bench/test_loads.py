"""What the client's programs say, asked of a small server on loopback, and what is made of it."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.errors import BenchError
from bench.origin import urls
from bench.programs import script
from bench.readings import Load
from bench.workloads import load_of_times, parse_wrk, percentile

BODY = b"x" * 100_000


class Answer(BaseHTTPRequestHandler):
    """`/ok` is whole, `/short` promises more than it gives, anything else is not found."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(404 if self.path not in {"/ok", "/short"} else 200)
        self.send_header("Content-Length", str(len(BODY) + (self.path == "/short")))
        self.end_headers()
        self.wfile.write(BODY)
        self.close_connection = self.close_connection or self.path == "/short"

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server() -> Iterator[tuple[ThreadingHTTPServer, list[str]]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as serving:
        asked: list[str] = []
        serving.asked = asked  # type: ignore[attr-defined]
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield serving, asked
        finally:
            serving.shutdown()
            thread.join()


def run(program: str, serving: ThreadingHTTPServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", str(script(program)), "127.0.0.1", str(serving.server_port), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_downloads_follow_one_another_until_the_time_is_over() -> None:
    with server() as (serving, asked):
        told = json.loads(run("downloads.py", serving, "2", "1.0", "/ok").stdout)
    assert told["failures"] == 0
    assert told["requests"] > 2
    assert told["requests"] - 2 <= len(asked) <= told["requests"]
    whole = told["requests"] - 2
    assert told["bytes"] >= whole * len(BODY)
    assert 1.0 <= told["seconds"] < 15


@pytest.mark.parametrize("path", ["/short", "/none"])
def test_a_download_that_is_not_whole_or_not_found_is_a_failure(path: str) -> None:
    with server() as (serving, _):
        told = json.loads(run("downloads.py", serving, "1", "0.6", path).stdout)
    assert told["failures"] in {told["requests"] - 1, told["requests"]}
    assert told["failures"] > 0


@pytest.mark.parametrize("kind", ["kept", "fresh"])
def test_latency_is_that_of_each_request_for_the_paths_in_turn(kind: str) -> None:
    with server() as (serving, asked):
        times = json.loads(run("latency.py", serving, kind, "5", "0", "/ok", "/ok").stdout)
    assert len(times) == len(asked) == 5
    assert all(0 < seconds < 5 for seconds in times)


@pytest.mark.parametrize("kind", ["kept", "fresh"])
def test_latency_of_an_answer_that_is_none_is_an_error(kind: str) -> None:
    with server() as (serving, _):
        done = run("latency.py", serving, kind, "5", "0", "/none")
    assert done.returncode != 0
    assert "ConnectionError" in done.stderr


def test_wrks_last_line_is_the_load() -> None:
    output = "Running 1s test\n  100 requests in 1.10s\nmeasured 1.250000 5000 6000000 3\n"
    assert parse_wrk(output) == Load(1.25, 5000, 6_000_000, 3, {"rate": 4000})


@pytest.mark.parametrize("output", ["unable to connect: refused\n", "measured 1.0 0 0 16\n"])
def test_wrk_without_an_answer_is_an_error_that_shows_what_it_said(output: str) -> None:
    with pytest.raises(BenchError, match=output.strip()):
        parse_wrk(output)


def test_times_become_percentiles_in_milliseconds() -> None:
    load = load_of_times([number / 1000 for number in range(1, 201)])
    assert load.values == pytest.approx({"p50": 100.5, "p99": 198})
    assert (load.requests, load.failures) == (200, 0)


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.2, 1), (0.21, 2), (0.5, 3), (0.99, 5), (1.0, 5)])
def test_a_percentile_is_a_value_that_was_measured(share: float, value: float) -> None:
    assert percentile([3, 1, 2, 5, 4], share) == value


def test_a_file_has_many_urls() -> None:
    assert len(set(urls("1k"))) == 64
    with pytest.raises(BenchError, match="no such file: 2k"):
        urls("2k")
