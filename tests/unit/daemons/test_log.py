"""The log, as a process of its own writes it to its standard error."""

import json
import os
import pty
import re
import select
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

PROGRAM = """
import logging, sys
from common.log import configure_logging, lost_lines
logger = configure_logging("balancer", "info", sys.argv[1])
logger.info("ready: %s on %d", "VIP", 3, extra={"node": "n1", "connection": "10.0.0.1:5 to VIP"})
logger.debug("too much")
logging.getLogger("library").info("too much")
logging.getLogger("library").warning("100 %")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("it broke", extra={"path": "/sys"})
print(lost_lines())
"""
ROOT = Path(__file__).parents[3]


def run(form: str, standard_error: int) -> str:
    """What is printed: how many lines were lost."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form],
        stdout=subprocess.PIPE,
        stderr=standard_error,
        cwd=ROOT,
        check=True,
        text=True,
        timeout=60,
    )
    return done.stdout


def written(form: str, tmp_path: Path) -> list[str]:
    with (tmp_path / "log").open("w+b") as log:
        assert run(form, log.fileno()) == "0\n"
        log.seek(0)
        return log.read().decode().splitlines()


def test_lines_for_people_have_time_daemon_level_text_and_fields(tmp_path: Path) -> None:
    first, second, third, *traceback = written("human", tmp_path)
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    assert re.fullmatch(
        stamp + r' balancer INFO: ready: VIP on 3 node=n1 connection="10\.0\.0\.1:5 to VIP"', first
    )
    assert re.fullmatch(stamp + " library WARNING: 100 %", second)
    assert re.fullmatch(stamp + " balancer ERROR: it broke path=/sys", third)
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1] == "ZeroDivisionError: division by zero"


HOSTILE = r"""
from common.log import configure_logging
logger = configure_logging("balancer", "info", "human")
logger.info("it says \x1b[2J\r\n2026-01-01 00:00:00,000 balancer ERROR: forged", extra={"node": "\x9b1m\n"})
"""


def test_what_others_have_said_moves_no_cursor_and_forges_no_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE], stderr=subprocess.PIPE, cwd=ROOT, check=True, timeout=60
    )
    first, second = done.stderr.decode().removesuffix("\n").split("\n")
    assert first.endswith(r" balancer INFO: it says \x1b[2J\r")
    assert second == r'    2026-01-01 00:00:00,000 balancer ERROR: forged node="\u009b1m\n"'


@pytest.mark.parametrize("form", ["auto", "json"])
def test_where_no_terminal_is_each_line_is_a_json_object(form: str, tmp_path: Path) -> None:
    before = datetime.now().astimezone()
    first, second, third = map(json.loads, written(form, tmp_path))
    moment = datetime.fromisoformat(first.pop("ts"))
    assert moment.utcoffset() == timedelta(0)
    assert timedelta(seconds=-1) < moment - before < timedelta(seconds=60)
    assert first == {
        "level": "info",
        "daemon": "balancer",
        "event": "ready: VIP on 3",
        "node": "n1",
        "connection": "10.0.0.1:5 to VIP",
    }
    assert (second["daemon"], second["level"], second["event"]) == ("library", "warning", "100 %")
    assert (third["event"], third["path"]) == ("it broke", "/sys")
    assert third["exception"].startswith("Traceback (most recent call last):\n")
    assert third["exception"].endswith("\nZeroDivisionError: division by zero")


def test_on_a_terminal_it_is_written_for_people() -> None:
    ours, its = pty.openpty()
    try:
        assert run("auto", its) == "0\n"
        assert b" balancer INFO: ready: VIP on 3 node=n1 " in os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(its)


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    with Path("/dev/full").open("wb") as full:
        assert run("auto", full.fileno()) == "3\n"


def test_a_closed_pipe_costs_lines_and_nothing_else() -> None:
    ours, its = os.pipe()
    os.close(ours)
    try:
        assert run("auto", its) == "3\n"
    finally:
        os.close(its)


def test_a_reader_that_sleeps_is_not_waited_for() -> None:
    ours, its = os.pipe()
    try:
        os.set_blocking(its, False)
        while select.select([], [its], [], 0)[1]:
            os.write(its, bytes(4096))
        os.set_blocking(its, True)
        assert run("auto", its) == "3\n"
    finally:
        os.close(ours)
        os.close(its)


TORN = """
import logging, os, sys
from common.log import configure_logging, lost_lines
logger = configure_logging("balancer", "info", "human")
logger.info("x" * 6000)
os.read(int(sys.argv[1]), 65536)
logger.info("next")
print(lost_lines())
"""


def test_a_line_that_was_cut_off_is_ended_before_the_next_one() -> None:
    ours, its = os.pipe()
    try:
        os.set_blocking(its, False)
        os.write(its, bytes(65536 - 4096))
        os.set_blocking(its, True)
        done = subprocess.run(
            [sys.executable, "-c", TORN, str(ours)],
            stdout=subprocess.PIPE,
            stderr=its,
            pass_fds=[ours],
            cwd=ROOT,
            check=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == "1\n"
        assert re.fullmatch(rb"\n\d{4}-\S+ \S+ balancer INFO: next\n", os.read(ours, 65536))
    finally:
        os.close(ours)
        os.close(its)
